//! Makes files and the directory entries that lead to them survive a power cut.
//!
//! Place on the event's path: the last step before the catalog points at new metadata. The agent
//! forgets an event after the ack, so what the ack stands for must be on the disk (D-2). Data files
//! and manifests are synced when their writer closes; the metadata file and the directories are not.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::blocking::blocking;

/// Returns the local path of a `file:` location, `None` for any other store.
pub(crate) fn local_path(location: &str) -> Option<PathBuf> {
    let path = location
        .strip_prefix("file://")
        .or_else(|| location.strip_prefix("file:"))
        .unwrap_or(location);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// A path could not be synced.
#[derive(Debug, thiserror::Error)]
#[error("cannot sync `{}` to disk: {source}", path.display())]
pub struct SyncError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Syncs `file`, every directory between `root` and each of `file` and `others`, and the one that `root`
/// is in. Locations that are not local files are left to their store.
pub(crate) async fn sync(root: &str, file: &str, others: Vec<String>) -> Result<(), SyncError> {
    let (Some(root), Some(file)) = (local_path(root), local_path(file)) else {
        return Ok(());
    };
    let others = others.iter().filter_map(|other| local_path(other));
    let directories = directories(&root, others.chain([file.clone()]));
    blocking(move || {
        sync_path(&file)?;
        directories.iter().try_for_each(|path| sync_path(path))
    })
    .await
    .expect("syncing does not panic and is not cancelled")
}

/// Makes a directory and those above it, and syncs the entries of those that are new.
pub(crate) fn make_directories(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let new = path.ancestors().take_while(|above| !above.exists());
    let new: Vec<&Path> = new.collect();
    std::fs::create_dir_all(&path)?;
    for parent in new.into_iter().filter_map(Path::parent) {
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn directories(root: &Path, files: impl Iterator<Item = PathBuf>) -> BTreeSet<PathBuf> {
    // The root itself may be new, so its parent is synced too.
    let stop = root.parent().and_then(Path::parent);
    let mut directories = BTreeSet::new();
    for file in files {
        let above = file.ancestors().skip(1);
        let above = above.take_while(|ancestor| Some(*ancestor) != stop);
        directories.extend(above.map(Path::to_owned));
    }
    directories
}

fn sync_path(path: &Path) -> Result<(), SyncError> {
    std::fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| SyncError {
            path: path.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_the_root_is_synced_and_nothing_above() {
        let below = |root: &str| {
            let file = PathBuf::from("/lake/raw/events/metadata/00000.metadata.json");
            let directories = directories(Path::new(root), std::iter::once(file));
            let paths = directories.iter().map(|path| path.display().to_string());
            paths.collect::<Vec<_>>().join(" ")
        };
        let of_a_commit = "/lake/raw /lake/raw/events /lake/raw/events/metadata";
        assert_eq!(below("/lake/raw/events"), of_a_commit);
        // A table that is made brings its namespace, whose entry is in the warehouse.
        assert_eq!(below("/lake/raw"), format!("/lake {of_a_commit}"));
    }
}
