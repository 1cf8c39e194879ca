//! The Unix socket beside the TCP port, for clients on this machine.
//!
//! Its file appears with its mode at once and only when somebody listens. A file that a dead agent
//! left is replaced; that of a living process is not. A stop removes the file, unless another
//! process has put its own there.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A living process answers there.
    #[error(
        "another process listens on `{path}` (http.socket); stop it or set another path", path = path.display()
    )]
    InUse {
        /// The socket's file.
        path: PathBuf,
    },
    /// Something else has this name.
    #[error("`{path}` (http.socket) is not a socket; move it away or set another path", path = path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refuses.
    #[error("cannot listen on `{path}` (http.socket): {source}", path = path.display())]
    System {
        /// The socket's file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// The socket, listening. Its file goes when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file that is ours.
    file: (u64, u64),
}

impl Socket {
    /// Listens on `path`, which gets the permissions `mode`. Must be called within a runtime.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(path: &Path, mode: u32) -> Result<Self, SocketError> {
        check_free(path)?;
        bind(path, mode).map_err(|source| SocketError::System {
            path: path.to_owned(),
            source,
        })
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if file_of(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "the socket's file cannot be removed");
        }
    }
}

/// Fails when what stands at `path` is not the socket of a dead process.
fn check_free(path: &Path) -> Result<(), SocketError> {
    let path_buf = || path.to_owned();
    let system = |source| SocketError::System {
        path: path_buf(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path_buf() });
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path_buf() }),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Ok(()),
            // Its queue is full: somebody has to be alive for that.
            io::ErrorKind::WouldBlock => Err(SocketError::InUse { path: path_buf() }),
            _ => Err(system(error)),
        },
    }
}

/// Binds under another name first, so that the file is never there without its mode.
fn bind(path: &Path, mode: u32) -> io::Result<Socket> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(name);
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdListener::bind(&new)?;
    let place = || {
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode))?;
        std::fs::rename(&new, path)?;
        listener.set_nonblocking(true)?;
        file_of(path)
    };
    let file = match place() {
        Ok(file) => file,
        Err(error) => {
            // The first error is the one to tell.
            drop(std::fs::remove_file(&new));
            return Err(error);
        }
    };
    Ok(Socket {
        listener: UnixListener::from_std(listener)?,
        path: path.to_owned(),
        file,
    })
}

fn file_of(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_of_a_dead_process_is_replaced_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let first = Socket::open(&path, 0o600).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let refused = Socket::open(&path, 0o600).unwrap_err();
        assert!(matches!(refused, SocketError::InUse { .. }), "{refused}");
        drop(first);
        assert!(!path.exists(), "a stop removes the file");

        // As a kill leaves it.
        drop(StdListener::bind(&path).unwrap());
        let second = Socket::open(&path, 0o660).unwrap();
        std::fs::remove_file(&path).unwrap();
        let third = StdListener::bind(&path).unwrap();
        drop(second);
        assert!(path.exists(), "the file of another stays");
        drop(third);

        let file = directory.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        let refused = Socket::open(&file, 0o600).unwrap_err();
        assert!(matches!(refused, SocketError::NotASocket { .. }));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
        let missing = directory.path().join("missing").join("agent.sock");
        let refused = Socket::open(&missing, 0o600).unwrap_err();
        assert!(matches!(refused, SocketError::System { .. }));
        let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 2, "no other file is left: {left:?}");
    }
}
