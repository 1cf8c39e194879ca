//! A throwaway PostgreSQL for tests: own directory, own port on loopback, gone at the end.
//!
//! PostgreSQL refuses to run as root, so root hands it to the user `postgres` (or `nobody`). A shell
//! stands between: it stops the server as soon as our end of its standard input closes, so the
//! server also ends when this command is killed.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments: binaries, directory, port. Waits for the end of its standard input.
const GUARD: &str = r#"
"$1/postgres" -D "$2/data" -p "$3" -k "$2" -c listen_addresses=127.0.0.1 \
    -c fsync=off -c max_connections=50 -c log_min_messages=warning &
server=$!
trap '' INT
read -r _
kill -INT $server
wait $server
rm -rf "$2"
"#;

/// A running server. It is stopped, and its directory removed, when this is dropped.
pub(crate) struct Postgres {
    guard: Child,
    directory: PathBuf,
    port: u16,
}

impl Postgres {
    /// Makes a database cluster and starts a server on it.
    pub(crate) fn start() -> Result<Self> {
        let binaries = binaries().context(
            "PostgreSQL's server programs (`initdb`, `postgres`) are not installed; run `cargo xtask test --only toolbox`",
        )?;
        let directory = std::env::temp_dir().join(format!("headwater-pg-{}", std::process::id()));
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make `{}`", directory.display()))?;
        let owner = owner_for(&directory)?;
        initialise(&binaries, &directory, owner)?;
        let port = free_port()?;
        let log = std::fs::File::create(directory.join("server.log"))?;
        let mut command = Command::new("sh");
        command
            .args(["-c", GUARD, "headwater-postgres"])
            .arg(&binaries)
            .arg(&directory)
            .arg(port.to_string())
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log);
        run_as(&mut command, owner);
        let guard = command.spawn().context("cannot start PostgreSQL")?;
        let mut server = Self {
            guard,
            directory,
            port,
        };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Returns the URL of the server's first database; its user may make others.
    pub(crate) fn url(&self) -> String {
        format!("postgres://headwater@127.0.0.1:{}/postgres", self.port)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        // The pid file says `ready` in its last line once the server answers queries.
        let pid_file = self.directory.join("data/postmaster.pid");
        while started.elapsed() < START_TIMEOUT {
            let is_ready = std::fs::read_to_string(&pid_file)
                .is_ok_and(|text| text.lines().any(|line| line.trim() == "ready"));
            if is_ready && TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            ensure!(
                self.guard.try_wait()?.is_none(),
                "PostgreSQL ended at once: {}",
                self.log_text()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!(
            "PostgreSQL did not start within {} s: {}",
            START_TIMEOUT.as_secs(),
            self.log_text()
        )
    }

    fn log_text(&self) -> String {
        std::fs::read_to_string(self.directory.join("server.log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // Nothing to tell anybody: the guard has ended, or it is not ours any more.
        drop(self.guard.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// Returns the directory of the newest installed server's programs.
pub(crate) fn binaries() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .filter(|(_, bin)| has_server(bin))
        .collect();
    found.sort();
    if let Some((_, bin)) = found.pop() {
        return Some(bin);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|directory| has_server(directory))
}

fn has_server(directory: &Path) -> bool {
    directory.join("initdb").is_file() && directory.join("postgres").is_file()
}

/// Gives `directory` to the user that the server runs as; `None` when that is us.
fn owner_for(directory: &Path) -> Result<Option<(u32, u32)>> {
    if std::fs::metadata(directory)?.uid() != 0 {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").context("cannot read `/etc/passwd`")?;
    let (uid, gid) = ["postgres", "nobody"]
        .iter()
        .find_map(|name| user_ids(&users, name))
        .context("PostgreSQL cannot run as root and there is no user `postgres` or `nobody`")?;
    std::os::unix::fs::chown(directory, Some(uid), Some(gid))
        .with_context(|| format!("cannot hand `{}` to PostgreSQL", directory.display()))?;
    Ok(Some((uid, gid)))
}

fn user_ids(users: &str, name: &str) -> Option<(u32, u32)> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some((uid, gid))
    })
}

fn run_as(command: &mut Command, owner: Option<(u32, u32)>) {
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
}

fn initialise(binaries: &Path, directory: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let mut command = Command::new(binaries.join("initdb"));
    command
        .args(["--username=headwater", "--auth=trust", "--encoding=UTF8"])
        .args(["--locale=C", "--no-sync", "-D"])
        .arg(directory.join("data"))
        .current_dir(directory)
        .stdin(Stdio::null());
    run_as(&mut command, owner);
    let output = command.output().context("cannot run `initdb`")?;
    ensure!(
        output.status.success(),
        "`initdb` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_are_read_from_the_password_file() {
        let users = "root:x:0:0:root:/:/bin/sh\npostgres:x:101:104:a,b:/var:/bin/sh\n";
        assert_eq!(user_ids(users, "postgres"), Some((101, 104)));
        assert_eq!(user_ids(users, "post"), None);
    }
}
