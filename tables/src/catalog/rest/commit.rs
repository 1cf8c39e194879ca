//! The moment a commit becomes true on a REST catalog: the updates are sent with what they require, and
//! the table is read back.
//!
//! Place on the event's path: the last step before the ack; [`swap`](crate::catalog::swap) for a server
//! that writes the metadata itself. Promise: as there: what is reported as committed was read back
//! (EO-2), an unknown outcome is resolved by reading (EO-5), and a manifest is deleted only when the
//! server has refused it and another commit is seen in its place.

use std::time::Duration;

use iceberg::TableRequirement;
use iceberg::spec::MAIN_BRANCH;
use iceberg::table::Table;
use tracing::warn;

use super::outcome::{self, Evidence};
use super::{Loaded, Reply, RestError, RestHeads, rest};
use crate::catalog::outcome::Outcome;
use crate::catalog::swap::{READ_BACK_PAUSES_MS, apply, next_location};
use crate::catalog::{Catalog, CatalogError, table_error};
use crate::commit::{COMMIT_ID, CommitError, Prepared};
use crate::durable;
use crate::metrics;
use crate::name::TableName;

/// A commit that was asked for.
struct Asked<'a> {
    name: &'a TableName,
    base: &'a Table,
    prepared: &'a Prepared,
    reply: &'a Reply,
}

impl Catalog {
    /// Makes data and manifests durable, asks for the commit, and reads back what became of it.
    pub(in crate::catalog) async fn ask_for(
        &self,
        server: &RestHeads,
        name: &TableName,
        base: &Table,
        prepared: Prepared,
        added: Vec<String>,
    ) -> Result<Table, CommitError> {
        let location = base.metadata().location();
        if let Some(list) = prepared.files.last() {
            let synced = durable::sync(location, list, added).await;
            synced.map_err(|error| CommitError::failed(name, error.into()))?;
        }
        let required = requirements(base);
        let (updates, id) = (&prepared.updates, &prepared.commit_id);
        let reply = server.commit(name, &required, updates, id).await;
        let asked = Asked {
            name,
            base,
            prepared: &prepared,
            reply: &reply,
        };
        let result = self.found_out(server, &asked).await;
        let is_refused = matches!(reply, Reply::Refused(_));
        match result {
            Ok(table) => Ok(table),
            Err((Outcome::Overtaken, _)) => {
                // Without an answer the request may still be on its way, and whoever sets `main` back
                // to our base by hand would let it in.
                if is_refused {
                    self.delete(prepared.files).await;
                }
                Err(CommitError::Conflict {
                    table: name.clone(),
                })
            }
            Err((Outcome::NotCommitted, unread)) => {
                Err(CommitError::failed(name, said(reply).unwrap_or(unread)))
            }
            Err((_, unread)) => Err(unknown(name, &prepared, said(reply).unwrap_or(unread))),
        }
    }

    /// Finds out by reading what became of a commit. The error is its outcome, and why it is not known.
    async fn found_out(
        &self,
        server: &RestHeads,
        asked: &Asked<'_>,
    ) -> Result<Table, (Outcome, CatalogError)> {
        if let Reply::Doubtful(error) = asked.reply {
            metrics::commit_resolved(&asked.name.to_string());
            let id = &asked.prepared.commit_id;
            warn!(table = %asked.name, commit_id = id, error = %error, "commit outcome unknown, reading the table");
        }
        let mut pauses = READ_BACK_PAUSES_MS.into_iter();
        loop {
            let read = self.read_after(server, asked).await;
            let is_denied = matches!(asked.reply, Reply::Done(_))
                && matches!(read, Ok((Outcome::NotCommitted, _)));
            match (read, pauses.next()) {
                (Ok((Outcome::Committed, table)), _) => return Ok(table),
                // A cache between us and the server may be behind it: look again.
                (Ok(_), Some(pause)) if is_denied => wait(pause).await,
                (Err(_), Some(pause)) => wait(pause).await,
                (Ok((outcome, _)), _) => {
                    let source = match outcome {
                        Outcome::NotCommitted => rest("commit", RestError::Untrue),
                        _ => CatalogError::Refused {
                            table: asked.name.clone(),
                            reason: "its history does not reach back to the base".to_owned(),
                        },
                    };
                    return Err((outcome, source));
                }
                (Err(unread), None) => return Err((Outcome::Unknown, unread)),
            }
        }
    }

    /// Reads the head, and returns with it what became of the commit; a committed one as the table was
    /// right after it, which is what the caller goes on from.
    async fn read_after(
        &self,
        server: &RestHeads,
        asked: &Asked<'_>,
    ) -> Result<(Outcome, Table), CatalogError> {
        let name = asked.name;
        let head = server.get(name).await?;
        let head = head.ok_or_else(|| CatalogError::NoSuchTable(name.clone()))?;
        let told = match asked.reply {
            Reply::Done(loaded) => Some(self.told(name, loaded)?),
            _ => None,
        };
        let told = told.filter(|table| asked.is_after(table));
        if let Some(table) = told
            .as_ref()
            .filter(|it| it.metadata_location() == Some(&head))
        {
            sync(table, &head).await?;
            self.remember(name, table);
            return Ok((Outcome::Committed, table.clone()));
        }
        let table = self.load_at(name, &head).await?;
        let outcome = asked.outcome(&table, &head, told.as_ref());
        if outcome != Outcome::Committed {
            return Ok((outcome, table));
        }
        sync(&table, &head).await?;
        if asked.is_main(&table) {
            return Ok((outcome, table));
        }
        // Others have built on it already. What they did is not what the caller has seen.
        let after = told.map_or_else(|| self.rebuilt(asked), Ok)?;
        Ok((Outcome::Committed, after))
    }

    fn told(&self, name: &TableName, loaded: &Loaded) -> Result<Table, CatalogError> {
        self.table(name, &loaded.metadata_location, loaded.metadata.clone())
    }

    /// Returns the table as it was right after our commit, of which no answer came. Its location is
    /// one that was never written.
    fn rebuilt(&self, asked: &Asked<'_>) -> Result<Table, CatalogError> {
        let error = |source| table_error(asked.name, source);
        let base = asked.base.metadata_location_result().map_err(error)?;
        let updates = asked.prepared.updates.clone();
        let (metadata, _) = apply(asked.base, base, updates).map_err(error)?;
        let location = next_location(base, &metadata).map_err(error)?;
        self.table(asked.name, &location.to_string(), metadata)
    }
}

impl Asked<'_> {
    fn base_snapshot(&self) -> Option<i64> {
        self.base.metadata().current_snapshot_id()
    }

    /// Decides what became of the commit, from the table at `head`.
    fn outcome(&self, table: &Table, head: &str, told: Option<&Table>) -> Outcome {
        let metadata = table.metadata();
        let told = told.and_then(Table::metadata_location);
        let mut former = metadata.metadata_log().iter();
        let is_told = told
            .is_some_and(|told| told == head || former.any(|entry| entry.metadata_file == told));
        if self.prepared.files.is_empty() {
            let base = self.base.metadata_location().unwrap_or_default();
            return outcome::of_properties(base, head, is_told);
        }
        let mut snapshots = metadata.snapshots();
        outcome::of_snapshot(Evidence {
            base: self.base_snapshot(),
            is_listed: is_told || snapshots.any(|snapshot| self.is_ours(snapshot)),
            history: &history(table),
        })
    }

    fn is_ours(&self, snapshot: &iceberg::spec::Snapshot) -> bool {
        let id = snapshot.summary().additional_properties.get(COMMIT_ID);
        id == Some(&self.prepared.commit_id)
    }

    /// Whether this can be the table right after our commit.
    fn is_after(&self, table: &Table) -> bool {
        let has_moved = table.metadata_location() != self.base.metadata_location();
        has_moved && (self.prepared.files.is_empty() || self.is_main(table))
    }

    /// Whether `main` is our snapshot.
    fn is_main(&self, table: &Table) -> bool {
        let main = table.metadata().current_snapshot();
        main.is_some_and(|snapshot| self.is_ours(snapshot))
    }
}

/// What the table has to be like in the moment of the commit. Watermarks and fences move only together
/// with `main` (EO-4), so `main` pins them; the others pin what the files and updates were made for.
fn requirements(base: &Table) -> Vec<TableRequirement> {
    let metadata = base.metadata();
    vec![
        TableRequirement::UuidMatch {
            uuid: metadata.uuid(),
        },
        TableRequirement::RefSnapshotIdMatch {
            r#ref: MAIN_BRANCH.to_owned(),
            snapshot_id: metadata.current_snapshot_id(),
        },
        TableRequirement::CurrentSchemaIdMatch {
            current_schema_id: metadata.current_schema_id(),
        },
        TableRequirement::LastAssignedFieldIdMatch {
            last_assigned_field_id: metadata.last_column_id(),
        },
        TableRequirement::DefaultSpecIdMatch {
            default_spec_id: metadata.default_partition_spec_id(),
        },
    ]
}

/// Makes the metadata that the server wrote at `head` durable where it is on a disk of ours: an ack must
/// survive a power cut (D-2).
async fn sync(table: &Table, head: &str) -> Result<(), CatalogError> {
    if durable::local_path(head).is_some_and(|path| path.exists()) {
        durable::sync(table.metadata().location(), head, Vec::new()).await?;
    }
    Ok(())
}

/// Returns `main` and what it follows, newest first, as far as the table lists it.
fn history(table: &Table) -> Vec<(i64, Option<i64>)> {
    let metadata = table.metadata();
    let mut history = Vec::new();
    let mut next = metadata.current_snapshot();
    // A history without an end would be a broken table; it lists no snapshot twice.
    while let Some(snapshot) = next.filter(|_| history.len() < metadata.snapshots().len()) {
        let parent = snapshot.parent_snapshot_id();
        history.push((snapshot.snapshot_id(), parent));
        next = parent.and_then(|parent| metadata.snapshot_by_id(parent));
    }
    history
}

/// Returns what the server said, if it did not confirm the commit.
fn said(reply: Reply) -> Option<CatalogError> {
    match reply {
        Reply::Done(_) => None,
        Reply::Refused(error) | Reply::Doubtful(error) => Some(error),
    }
}

fn unknown(name: &TableName, prepared: &Prepared, source: CatalogError) -> CommitError {
    CommitError::Unknown {
        table: name.clone(),
        commit_id: prepared.commit_id.clone(),
        source: Box::new(source),
    }
}

async fn wait(pause_ms: u64) {
    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
}
