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

/// Syncs `file`, and every directory between `root` and each of `file` and `others`.
/// Locations that are not local files are left to their store.
pub(crate) async fn sync(root: &str, file: &str, others: Vec<String>) -> Result<(), SyncError> {
    let (Some(root), Some(file)) = (local_path(root), local_path(file)) else {
        return Ok(());
    };
    let mut directories = BTreeSet::new();
    let others = others.iter().filter_map(|other| local_path(other));
    for path in others.chain([file.clone()]) {
        // The root itself may be new, so its parent is synced too.
        let stop = root.parent().and_then(Path::parent);
        directories.extend(
            path.ancestors()
                .skip(1)
                .take_while(|ancestor| Some(*ancestor) != stop)
                .map(Path::to_owned),
        );
    }
    blocking(move || {
        sync_path(&file)?;
        directories.iter().try_for_each(|path| sync_path(path))
    })
    .await
    .expect("syncing does not panic and is not cancelled")
}

fn sync_path(path: &Path) -> Result<(), SyncError> {
    std::fs::File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| SyncError {
            path: path.to_owned(),
            source,
        })
}
