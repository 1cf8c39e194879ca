//! The moment a commit becomes true: new metadata is written, made durable, and the catalog's head is
//! swapped from the base to it.
//!
//! Place on the event's path: the last step before the ack. Promise: what is reported as committed
//! was read back from the catalog (EO-2), an unknown outcome is resolved by reading (EO-5), and a
//! file is deleted only when nothing can refer to it.

use std::time::{Duration, Instant};

use iceberg::spec::TableMetadata;
use iceberg::table::Table;
use iceberg::{ErrorKind, MetadataLocation, TableUpdate};
use tracing::{debug, warn};

use super::heads::{Heads, Swap};
use super::keeper::Keeper;
use super::outcome::{Evidence, Outcome, resolve};
use super::{Catalog, CatalogError, metadata_file, system_now, table_error};
use crate::commit::{self, COMMIT_ID, Change, CommitError, Prepared};
use crate::durable;
use crate::metrics;
use crate::name::TableName;

/// Pauses between attempts to read the catalog back after a commit: 3.1 s in total.
pub(super) const READ_BACK_PAUSES_MS: [u64; 5] = [100, 200, 400, 800, 1600];
/// Most by which metadata may be stamped before what it follows: every reader refuses more.
const BACKWARDS_MS_MAX: i64 = 60_000;

impl Catalog {
    /// Commits `change` as one snapshot on top of `base`: everything or nothing, and only when
    /// `base` is still the head. The result was read back from the catalog (EO-2).
    ///
    /// Not cancel safe: when the future is dropped, the outcome is unknown.
    pub async fn commit(&self, base: &Table, change: Change) -> Result<Table, CommitError> {
        let name = table_name(base)?;
        let started = Instant::now();
        let result = self.commit_snapshot(&name, base, change).await;
        let outcome = match &result {
            Ok(_) => "committed",
            Err(CommitError::Conflict { .. }) => "conflict",
            Err(CommitError::Unknown { .. }) => "unknown",
            Err(CommitError::Failed { .. }) => "failed",
        };
        metrics::commit_ended(&name.to_string(), outcome, started.elapsed());
        result
    }

    /// Commits metadata updates that add no rows (tags, expiry, schema) on top of `base`, with the
    /// same promises as [`Catalog::commit`].
    pub async fn update(
        &self,
        base: &Table,
        updates: Vec<TableUpdate>,
    ) -> Result<Table, CommitError> {
        let name = table_name(base)?;
        let prepared = Prepared {
            updates,
            commit_id: uuid::Uuid::now_v7().to_string(),
            files: Vec::new(),
        };
        self.publish(&name, base, prepared, Vec::new()).await
    }

    /// Commits updates as [`Catalog::update`] does. Where the base is stamped ahead of this machine's clock,
    /// an empty snapshot comes with them: its stamp becomes that of the table, and may be the base's.
    pub(super) async fn evolve(
        &self,
        base: &Table,
        updates: Vec<TableUpdate>,
    ) -> Result<Table, CommitError> {
        let stamp_ms = base.metadata().last_updated_ms();
        if stamp_ms <= system_now() / 1000 {
            return self.update(base, updates).await;
        }
        let name = table_name(base)?;
        let nothing = commit::prepare(&name, base, Change::default(), stamp_ms);
        let mut prepared = Box::pin(nothing)
            .await
            .map_err(|source| CommitError::failed(&name, source))?;
        prepared.updates.extend(updates);
        self.publish(&name, base, prepared, Vec::new()).await
    }

    async fn commit_snapshot(
        &self,
        name: &TableName,
        base: &Table,
        change: Change,
    ) -> Result<Table, CommitError> {
        let added = change.add.iter().map(|file| file.file_path().to_owned());
        let added: Vec<String> = added.collect();
        let now_ms = (self.inner.now)() / 1000;
        let prepared = commit::prepare(name, base, change, now_ms)
            .await
            .map_err(|source| CommitError::failed(name, source))?;
        let commit_id = prepared.commit_id.clone();
        let table = self.publish(name, base, prepared, added).await?;
        let kept = table.metadata().snapshots().len();
        metrics::snapshots_kept(&name.to_string(), kept);
        debug!(table = %name, commit_id, "committed");
        Ok(table)
    }

    /// Makes a prepared commit true, in the way of this catalog.
    async fn publish(
        &self,
        name: &TableName,
        base: &Table,
        prepared: Prepared,
        added: Vec<String>,
    ) -> Result<Table, CommitError> {
        let heads = match &self.inner.keeper {
            Keeper::Swaps(heads) => heads.as_ref(),
            Keeper::Writes(server) => {
                return self.ask_for(server, name, base, prepared, added).await;
            }
        };
        let (updates, id) = (prepared.updates, &prepared.commit_id);
        let result = self.swap(heads, name, base, updates, id, added).await;
        // Another commit is known to have followed the base: nothing will ever refer to these
        // manifests. An unknown outcome is no such knowledge (EO-5).
        if matches!(result, Err(CommitError::Conflict { .. })) {
            self.delete(prepared.files).await;
        }
        result
    }

    /// Writes new metadata, makes it durable, points the catalog at it, and reads it back.
    async fn swap(
        &self,
        heads: &dyn Heads,
        name: &TableName,
        base: &Table,
        updates: Vec<TableUpdate>,
        commit_id: &str,
        added: Vec<String>,
    ) -> Result<Table, CommitError> {
        let failed = |source: CatalogError| CommitError::failed(name, source);
        let iceberg = |source: iceberg::Error| failed(table_error(name, source));
        let base_location = base.metadata_location_result().map_err(iceberg)?;
        let (metadata, expired) = apply(base, base_location, updates).map_err(iceberg)?;
        let location = next_location(base_location, &metadata).map_err(iceberg)?;
        let written = metadata_file::write(&self.inner.file_io, metadata, &location).await;
        let metadata = written.map_err(iceberg)?;
        let location = location.to_string();
        durable::sync(metadata.location(), &location, added)
            .await
            .map_err(|error| failed(error.into()))?;

        let swapped = heads.swap(name, base_location, &location).await;
        if matches!(swapped, Ok(Swap::Lost)) {
            self.delete(vec![location]).await;
            return Err(CommitError::Conflict {
                table: name.clone(),
            });
        }
        self.read_back(name, base_location, &location, commit_id, swapped.err())
            .await?;
        let table = self.table(name, &location, metadata).map_err(failed)?;
        self.remember(name, &table);
        if deletes_old_metadata(&table) {
            self.delete(expired).await;
        }
        Ok(table)
    }

    /// Finds out by reading whether `location` became the head (EO-2, EO-5). The answer of the
    /// database to the commit is only a hint: `error` is what it said, if it was not "done".
    async fn read_back(
        &self,
        name: &TableName,
        base: &str,
        location: &str,
        commit_id: &str,
        error: Option<CatalogError>,
    ) -> Result<(), CommitError> {
        if error.is_some() {
            metrics::commit_resolved(&name.to_string());
            warn!(table = %name, commit_id, error = ?error, "commit outcome unknown, reading the table");
        }
        let mut pauses = READ_BACK_PAUSES_MS.into_iter();
        let unread = loop {
            let outcome = self.outcome(name, base, location, commit_id).await;
            match (outcome, pauses.next()) {
                (Ok(Outcome::Committed), _) => return Ok(()),
                (Ok(Outcome::Overtaken), _) => {
                    return Err(CommitError::Conflict {
                        table: name.clone(),
                    });
                }
                (Ok(Outcome::NotCommitted), _) => {
                    let source = error.unwrap_or_else(|| CatalogError::Refused {
                        table: name.clone(),
                        reason: "the database reported success and kept the old head".to_owned(),
                    });
                    return Err(CommitError::failed(name, source));
                }
                (Ok(Outcome::Unknown), _) => {
                    let reason = "the log of its heads does not reach back to the base";
                    break CatalogError::Refused {
                        table: name.clone(),
                        reason: reason.to_owned(),
                    };
                }
                (Err(_), Some(pause)) => tokio::time::sleep(Duration::from_millis(pause)).await,
                (Err(unread), None) => break unread,
            }
        };
        Err(CommitError::Unknown {
            table: name.clone(),
            commit_id: commit_id.to_owned(),
            source: Box::new(error.unwrap_or(unread)),
        })
    }

    /// Reads what `resolve` needs to know.
    async fn outcome(
        &self,
        name: &TableName,
        base: &str,
        ours: &str,
        commit_id: &str,
    ) -> Result<Outcome, CatalogError> {
        let head = self.inner.keeper.get(name).await?;
        let head = head.ok_or_else(|| CatalogError::NoSuchTable(name.clone()))?;
        let mut evidence = Evidence {
            base,
            ours,
            head: &head,
            log: &[],
            has_snapshot: false,
        };
        if head == ours || head == base {
            return Ok(resolve(evidence));
        }
        let table = self.load_at(name, &head).await?;
        let metadata = table.metadata();
        let former = metadata.metadata_log().iter();
        let log: Vec<&str> = former.map(|it| it.metadata_file.as_str()).collect();
        evidence.log = &log;
        evidence.has_snapshot = metadata.snapshots().any(|snapshot| {
            let id = snapshot.summary().additional_properties.get(COMMIT_ID);
            id.is_some_and(|id| id == commit_id)
        });
        Ok(resolve(evidence))
    }
}

pub(super) fn apply(
    base: &Table,
    base_location: &str,
    updates: Vec<TableUpdate>,
) -> Result<(TableMetadata, Vec<String>), iceberg::Error> {
    let metadata = base.metadata().clone();
    let mut builder = metadata.into_builder(Some(base_location.to_owned()));
    for update in updates {
        builder = update.apply(builder)?;
    }
    let built = builder.build()?;
    check_clock(base.metadata(), &built.metadata)?;
    let expired = built.expired_metadata_logs.into_iter();
    let expired = expired.map(|entry| entry.metadata_file).collect();
    Ok((built.metadata, expired))
}

/// Refuses metadata that could be written and never read. What has no snapshot of its own is stamped by
/// this machine's clock, and the crate compares it with the base only when it reads.
fn check_clock(base: &TableMetadata, next: &TableMetadata) -> Result<(), iceberg::Error> {
    let ahead_ms = base.last_updated_ms() - next.last_updated_ms();
    if ahead_ms <= BACKWARDS_MS_MAX {
        return Ok(());
    }
    let message = format!(
        "the table is stamped {ahead_ms} ms ahead of this machine's clock, and nobody could read what is stamped so long before it: one of the two clocks is wrong"
    );
    Err(iceberg::Error::new(ErrorKind::DataInvalid, message))
}

pub(super) fn next_location(
    base: &str,
    metadata: &TableMetadata,
) -> Result<MetadataLocation, iceberg::Error> {
    let base: MetadataLocation = base.parse()?;
    Ok(base.with_next_version().with_new_metadata(metadata))
}

fn deletes_old_metadata(table: &Table) -> bool {
    let properties = table.metadata().properties();
    properties
        .get("write.metadata.delete-after-commit.enabled")
        .is_some_and(|value| value == "true")
}

fn table_name(table: &Table) -> Result<TableName, CommitError> {
    TableName::try_from(table.identifier()).map_err(|error| {
        let name = TableName::new("unknown", "unknown").expect("a constant name is valid");
        CommitError::failed(
            &name,
            CatalogError::Refused {
                table: name.clone(),
                reason: error.to_string(),
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{DataType, Field, Schema};
    use iceberg::io::{FileIOBuilder, LocalFsStorageFactory};

    use super::*;
    use crate::catalog::heads::SqlHeads;
    use crate::catalog::{CATALOG_NAME, CatalogConfig, Parts, sqlite};
    use crate::schema::{Partition, TableSpec};

    /// A table with one commit, and the base of that commit.
    struct Small {
        catalog: Catalog,
        heads: Arc<SqlHeads<sqlx::Sqlite>>,
        name: TableName,
        base: Table,
        first: Table,
        _directory: tempfile::TempDir,
    }

    impl Small {
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let database = directory.path().join("catalog.db");
            let config = CatalogConfig::default();
            let heads = sqlite::open(&config, &database, CATALOG_NAME)
                .await
                .unwrap();
            let heads = Arc::new(heads);
            let catalog = Catalog::assemble(Parts {
                heads: heads.clone(),
                warehouse: format!("file://{}/warehouse", directory.path().display()),
                file_io: FileIOBuilder::new(Arc::new(LocalFsStorageFactory)).build(),
                now: Arc::new(|| 0),
            });
            let arrow = Schema::new(vec![Field::new("id", DataType::Int64, false)]);
            let name: TableName = "raw.small".parse().unwrap();
            let spec = TableSpec::from_arrow(name.clone(), &arrow, Partition::None).unwrap();
            let base = catalog.ensure(&spec).await.unwrap();
            let first = catalog.commit(&base, Change::default()).await.unwrap();
            Self {
                catalog,
                heads,
                name,
                base,
                first,
                _directory: directory,
            }
        }

        /// Reads back what became of a commit on the base that wrote `ours`, after a lost answer.
        async fn read_back(&self, ours: &str, commit_id: &str) -> Result<(), CommitError> {
            let base = location(&self.base);
            self.read_back_on(&base, ours, commit_id).await
        }

        /// Returns the head as a clock would have stamped it that is ahead.
        fn stamped_ahead(&self, ahead_ms: i64) -> Table {
            let metadata = self.first.metadata();
            let mut stored = serde_json::to_value(metadata).unwrap();
            stored["last-updated-ms"] = (metadata.last_updated_ms() + ahead_ms).into();
            let metadata: TableMetadata = serde_json::from_value(stored).unwrap();
            let table = self
                .catalog
                .table(&self.name, &location(&self.first), metadata);
            table.unwrap()
        }

        async fn read_back_on(&self, base: &str, ours: &str, id: &str) -> Result<(), CommitError> {
            let lost_answer = Some(CatalogError::NoSuchTable(self.name.clone()));
            let read = self
                .catalog
                .read_back(&self.name, base, ours, id, lost_answer);
            read.await
        }
    }

    fn location(table: &Table) -> String {
        table.metadata_location().unwrap().to_owned()
    }

    fn owner() -> Vec<TableUpdate> {
        let updates = [("owner".to_owned(), "me".to_owned())].into();
        vec![TableUpdate::SetProperties { updates }]
    }

    #[tokio::test]
    async fn metadata_that_no_reader_would_take_is_not_written() {
        let small = Small::new().await;
        let ahead = small.stamped_ahead(300_000);
        let error = small.catalog.update(&ahead, owner()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("ms ahead of this machine's clock"), "{text}");
        assert!(error.is_retryable());
        let head = small.heads.get(&small.name).await.unwrap();
        assert_eq!(head, Some(location(&small.first)));

        // What readers bear is committed.
        let ahead = small.stamped_ahead(30_000);
        let head = small.catalog.update(&ahead, owner()).await.unwrap();
        let files = &small.catalog.inner.file_io;
        let read = TableMetadata::read_from(files, location(&head)).await;
        assert_eq!(read.unwrap().properties()["owner"], "me");
    }

    #[tokio::test]
    async fn what_a_clock_ahead_has_stamped_evolves_with_an_empty_snapshot() {
        let small = Small::new().await;
        let ahead = small.stamped_ahead(300_000);
        let head = small.catalog.evolve(&ahead, owner()).await.unwrap();
        let files = &small.catalog.inner.file_io;
        let read = TableMetadata::read_from(files, location(&head)).await;
        let read = read.unwrap();
        assert_eq!(read.properties()["owner"], "me");
        assert_eq!(read.snapshots().len(), 2);
        assert_eq!(read.last_updated_ms(), ahead.metadata().last_updated_ms());
    }

    const NEVER: &str = "file:///never.metadata.json";

    #[tokio::test]
    async fn a_commit_that_was_built_upon_at_once_still_counts_as_committed() {
        let small = Small::new().await;
        let head = small.catalog.commit(&small.first, Change::default()).await;
        let head = location(&head.unwrap());
        let first = location(&small.first);
        small.read_back(&first, "id").await.unwrap();
        let lost = small.read_back(NEVER, "id").await;
        assert!(matches!(lost, Err(CommitError::Conflict { .. })));
        let unmoved = small.read_back_on(&head, NEVER, "id").await;
        assert!(matches!(unmoved, Err(CommitError::Failed { .. })));
        small.heads.close();
        let unread = small.read_back(&first, "id").await;
        assert!(matches!(unread, Err(CommitError::Unknown { .. })));
    }

    #[tokio::test]
    async fn a_commit_that_the_log_no_longer_lists_is_not_taken_for_refused() {
        let small = Small::new().await;
        let mut head = small.first.clone();
        let is_listed = |head: &Table| {
            let mut log = head.metadata().metadata_log().iter();
            log.any(|entry| entry.metadata_file == location(&small.first))
        };
        let mut commits = 0;
        while commits == 0 || is_listed(&head) {
            head = small
                .catalog
                .commit(&head, Change::default())
                .await
                .unwrap();
            commits += 1;
        }
        assert!(commits > 40, "{commits} commits");
        let first = small.first.metadata().current_snapshot().unwrap();
        let id = &first.summary().additional_properties[COMMIT_ID];
        small.read_back(&location(&small.first), id).await.unwrap();
        // Nothing says any more whether a commit without a snapshot was there.
        for ours in [&location(&small.first), NEVER] {
            let unknown = small.read_back(ours, "id").await;
            assert!(matches!(unknown, Err(CommitError::Unknown { .. })));
        }
    }
}
