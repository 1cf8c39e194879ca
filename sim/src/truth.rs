//! What is true of the table, whatever anybody was told: each commit as it happened, and the promises
//! that can be checked at that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use headwater_protocol::AgentId;
use headwater_tables::schema::{RAW_EVENTS, RAW_QUARANTINE};
use headwater_tables::watermark::Watermarks;
use headwater_tables::{Catalog, Table, TableName};
use iceberg::spec::Operation;
use parking_lot::Mutex;

use crate::world::World;

/// Table property: whose plan decides, see `collector/src/commit/fence.rs`.
const FENCE: &str = "headwater.plan.fence";

/// (agent, epoch).
pub(crate) type Key = (String, u64);
pub(crate) type Marks = BTreeMap<Key, u64>;

/// The watermarks before and after one commit.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) sequence_number: i64,
    pub(crate) before: Marks,
    pub(crate) after: Marks,
}

/// The history of one table.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) marks: Marks,
    pub(crate) commits: Vec<Commit>,
    snapshot_id: Option<i64>,
    fence: Option<String>,
    /// All snapshots of its metadata.
    snapshots: BTreeSet<i64>,
}

/// The histories of both tables.
#[derive(Debug)]
pub(crate) struct Truth {
    pub(crate) catalog: Catalog,
    tables: Mutex<BTreeMap<TableName, History>>,
}

impl Truth {
    pub(crate) fn new(catalog: Catalog) -> Self {
        Self {
            catalog,
            tables: Mutex::default(),
        }
    }

    pub(crate) fn history<T>(&self, name: &TableName, read: impl FnOnce(&History) -> T) -> T {
        read(self.tables.lock().entry(name.clone()).or_default())
    }

    /// Returns the fence of a table.
    pub(crate) fn fence(&self, name: &TableName) -> Option<String> {
        self.history(name, |history| history.fence.clone())
    }

    /// Looks at the head of a table that has just moved.
    pub(crate) async fn observe(&self, world: &Arc<World>, name: &TableName) {
        let table = match self.catalog.load(name).await {
            Ok(table) => table,
            Err(error) => return world.trace.violation(format!("{name} is broken: {error}")),
        };
        let marks = match Watermarks::of(&table) {
            Ok(marks) => marks,
            Err(error) => return world.trace.violation(format!("{name} is broken: {error}")),
        };
        let after: Marks = marks
            .agents()
            .map(|(agent, epoch, through)| ((agent.to_owned(), epoch), through))
            .collect();
        let short = if *name == *RAW_EVENTS {
            "events"
        } else {
            "quarantine"
        };
        let mut tables = self.tables.lock();
        let history = tables.entry(name.clone()).or_default();
        let before = std::mem::replace(&mut history.marks, after.clone());
        let snapshot_id = table.metadata().current_snapshot_id();
        for (key, old) in &before {
            if after.get(key).is_none_or(|new| new < old) {
                world
                    .trace
                    .violation(format!("EO-3: the {short} watermark of {key:?} moves back"));
            }
        }
        if before != after && history.snapshot_id == snapshot_id {
            world.trace.violation(format!(
                "EO-4: a {short} watermark moves without a snapshot"
            ));
        }
        history.snapshot_id = snapshot_id;
        history.fence = table.metadata().properties().get(FENCE).cloned();
        let snapshots = table.metadata().snapshots();
        let snapshots: BTreeSet<i64> = snapshots.map(|it| it.snapshot_id()).collect();
        if !history.snapshots.is_subset(&snapshots) {
            world.trace.count("snapshots: expired");
        }
        history.snapshots = snapshots;
        let moved: Vec<_> = after
            .iter()
            .filter(|(key, to)| before.get(*key) != Some(to))
            .collect();
        world.trace.count(kind(&table, name, !moved.is_empty()));
        world.trace.line(format_args!(
            "committed to {short}: {} {moved:?}",
            summary(&table)
        ));
        history.commits.push(Commit {
            sequence_number: table.metadata().last_sequence_number(),
            before,
            after,
        });
    }

    /// Checks an ack or a Welcome at the moment it is sent (EO-2).
    pub(crate) fn acked(&self, world: &Arc<World>, agent: &AgentId, epoch: u64, through: u64) {
        let key = (agent.as_str().to_owned(), epoch);
        let committed = self.history(&RAW_EVENTS, |history| history.marks.get(&key).copied());
        if committed.unwrap_or(0) < through {
            world.trace.violation(format!(
                "EO-2: {key:?} is acked through {through} and committed through {committed:?}"
            ));
        }
    }
}

/// Returns what a commit is counted as.
fn kind(table: &Table, name: &TableName, moves_marks: bool) -> &'static str {
    let snapshot = table.metadata().current_snapshot();
    // The quarantine's watermark may be ahead of what another plan puts there.
    let is_empty = !moves_marks && entry(table, "added-records").parse().unwrap_or(0_u64) == 0;
    if snapshot.is_some_and(|it| it.summary().operation == Operation::Replace) {
        "commit: compaction"
    } else if is_empty {
        "commit: fence"
    } else if *name == *RAW_QUARANTINE {
        "commit: quarantine"
    } else {
        "commit: events"
    }
}

/// Returns an entry of the summary of the newest snapshot.
fn entry<'a>(table: &'a Table, key: &str) -> &'a str {
    let snapshot = table.metadata().current_snapshot();
    let entries = snapshot.map(|it| &it.summary().additional_properties);
    entries
        .and_then(|it| it.get(key))
        .map_or("", String::as_str)
}

fn summary(table: &Table) -> String {
    format!(
        "{} +{} rows, {} rows in {} files",
        table.metadata().last_sequence_number(),
        entry(table, "added-records"),
        entry(table, "total-records"),
        entry(table, "total-data-files")
    )
}
