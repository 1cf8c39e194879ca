//! The judge: reads the tables at the end of a run and compares them with what was promised.
//!
//! | promise | check |
//! |---|---|
//! | EO-1 | no (agent, epoch, sequence) has two rows, over both tables; no event has two in one epoch, and none at all has two unless its agent's disk was set back or wiped |
//! | EO-2 | each ack and each Welcome was covered by the head at the moment it was sent (`truth`) |
//! | EO-3 | every sequence up to a watermark has its row, and none beyond it |
//! | EO-4 | each row was added by the commit that moved its watermark past it |
//! | EO-5 | every file of every snapshot in the history is there |
//! | D-1, D-2 | every event that a client was told of has a row, unless its disk was taken away; no row is of an event that nobody sent |
//! | order | the events of an epoch are its agent's, in the order in which it took them |
//! | one plan a row | a row lacks what the plan omits that it names, and nothing that the other stores |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use headwater_tables::schema::{RAW_EVENTS, RAW_QUARANTINE};
use headwater_tables::write::live_entries;
use headwater_tables::{Table, TableName};

use crate::agent::{Accepted, Agent, Kind};
use crate::collector::OMITTING_VERSION;
use crate::compactor;
use crate::truth::{Key, Marks};
use crate::world::World;

/// Columns that say what a row is; `raw.quarantine` has the first four and `payload`, `raw.events` all others.
const COLUMNS: [&str; 7] = [
    "_agent_id",
    "_epoch",
    "_sequence",
    "message_id",
    "schema_version",
    "properties",
    "payload",
];

/// One row, as far as the promises speak of it.
struct Row {
    key: Key,
    sequence: u64,
    /// Name of the event.
    id: String,
    is_valid: bool,
    /// Whether it was judged by the plan that omits a property.
    omits: bool,
    /// Whether it lacks that property.
    is_without: bool,
}

impl Row {
    /// Returns the number in the name of the event, if that is one of the agent's.
    fn number(&self) -> Option<u64> {
        let agent = self.key.0.strip_prefix("agent-")?;
        let name = self.id.strip_prefix('e')?;
        name.strip_prefix(agent)?.strip_prefix('-')?.parse().ok()
    }
}

/// Judges a run that has come to rest; violations go to the trace.
pub(crate) async fn judge(world: &Arc<World>, agents: &[Agent]) {
    let mut rows = Vec::new();
    for name in [&*RAW_EVENTS, &*RAW_QUARANTINE] {
        match read(world, name).await {
            Ok(read) => rows.extend(read),
            Err(error) => world
                .trace
                .violation(format!("EO-5: {name} cannot be read: {error:#}")),
        }
        if let Err(error) = history_is_whole(world, name).await {
            world
                .trace
                .violation(format!("EO-5: the history of {name} is damaged: {error:#}"));
        }
    }
    let marks = world
        .truth
        .history(&RAW_EVENTS, |history| history.marks.clone());
    positions(world, &rows, &marks);
    order(world, &rows);
    plans(world, &rows);
    events(world, &rows, agents);
    world.trace.line(format_args!(
        "judged: {} rows, watermarks {marks:?}",
        rows.len()
    ));
}

/// EO-1 and EO-3.
fn positions(world: &World, rows: &[Row], marks: &Marks) {
    let mut found: BTreeMap<&Key, BTreeMap<u64, Vec<&str>>> = BTreeMap::new();
    for row in rows {
        let sequences = found.entry(&row.key).or_default();
        sequences.entry(row.sequence).or_default().push(&row.id);
    }
    for (key, sequences) in &found {
        for (sequence, ids) in sequences {
            if ids.len() > 1 {
                world
                    .trace
                    .violation(format!("EO-1: {key:?} {sequence} is stored twice: {ids:?}"));
            }
        }
        // Of an epoch that was given up between the two commits, only the quarantine has something.
        let stored = rows.iter().filter(|row| row.is_valid && row.key == **key);
        let last = stored.map(|row| row.sequence).max().unwrap_or(0);
        let mark = marks.get(*key).copied().unwrap_or(0);
        if last > mark {
            world.trace.violation(format!(
                "EO-4: {key:?} has a row at {last} above watermark {mark}"
            ));
        }
    }
    for (key, mark) in marks {
        let sequences = found.get(key);
        let is_there = |sequence: &u64| sequences.is_some_and(|it| it.contains_key(sequence));
        if let Some(gap) = (1..=*mark).find(|sequence| !is_there(sequence)) {
            world.trace.violation(format!(
                "EO-3: {key:?} {gap} is missing below watermark {mark}"
            ));
        }
    }
}

/// A row is what one plan makes of its event, the one that it names.
fn plans(world: &World, rows: &[Row]) {
    for row in rows.iter().filter(|row| row.is_valid) {
        if row.omits {
            world.trace.count("row: without what its plan omits");
        }
        if row.omits != row.is_without {
            world.trace.violation(format!(
                "event {} was judged by a plan that omits: {}, and is without: {}",
                row.id, row.omits, row.is_without
            ));
        }
    }
}

/// Sequences are given in the order in which events are taken, and so are their names.
fn order(world: &World, rows: &[Row]) {
    let mut sorted: Vec<&Row> = rows.iter().collect();
    sorted.sort_by_key(|row| (&row.key, row.sequence));
    for row in &sorted {
        if row.number().is_none() {
            world.trace.violation(format!(
                "order: {:?} {} is `{}`, which is no event of that agent",
                row.key, row.sequence, row.id
            ));
        }
    }
    for pair in sorted.windows(2) {
        let (one, next) = (pair[0], pair[1]);
        // Two rows at one position are the matter of EO-1.
        if one.key == next.key && one.sequence < next.sequence && one.number() >= next.number() {
            world.trace.violation(format!(
                "order: {:?} has {} at {} and {} at {}",
                one.key, one.id, one.sequence, next.id, next.sequence
            ));
        }
    }
}

/// D-1, D-2 and EO-1, by the names of events.
fn events(world: &World, rows: &[Row], agents: &[Agent]) {
    let mut found: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        found.entry(&row.id).or_default().push(row);
    }
    for agent in agents {
        for event in &agent.accepted {
            let rows = found.remove(event.id.as_str()).unwrap_or_default();
            if rows.is_empty() && !event.is_excused {
                world
                    .trace
                    .violation(format!("D-2: event {} of {} is lost", event.id, agent.id));
            }
            stored(world, agent, event, &rows);
        }
        for event in &agent.unheard {
            let rows = found.remove(event.id.as_str()).unwrap_or_default();
            stored(world, agent, event, &rows);
        }
    }
    for id in found.keys() {
        world
            .trace
            .violation(format!("D-1: event {id} is stored and nobody sent it"));
    }
}

/// What holds of an event wherever it is stored, if it is.
fn stored(world: &World, agent: &Agent, event: &Accepted, rows: &[&Row]) {
    let epochs: BTreeSet<u64> = rows.iter().map(|row| row.key.1).collect();
    // Whoever goes on with another disk may send events again under new numbers, and nobody else may.
    let most = if agent.disk_changed { epochs.len() } else { 1 };
    if rows.len() > most {
        let places: Vec<_> = rows.iter().map(|row| (row.key.1, row.sequence)).collect();
        world.trace.violation(format!(
            "EO-1: event {} of {} is stored twice: {places:?}",
            event.id, agent.id
        ));
    }
    let is_wrong = |row: &&Row| match event.kind {
        Kind::Good => !row.is_valid,
        Kind::Bad => row.is_valid,
        // Wherever it is, it is there once (EO-1).
        Kind::Debatable => false,
    };
    if rows.iter().any(is_wrong) {
        world
            .trace
            .violation(format!("event {} is in the wrong table", event.id));
    }
    if epochs.len() > 1 {
        world.trace.count("event: sent again in a new epoch");
    }
}

/// Reads a table, file by file, and checks each row against the commit that added it.
async fn read(world: &Arc<World>, name: &TableName) -> anyhow::Result<Vec<Row>> {
    let table = world.truth.catalog.load(name).await?;
    let commits: BTreeMap<i64, (Marks, Marks)> = world.truth.history(name, |history| {
        let commits = history.commits.iter();
        commits
            .map(|it| (it.sequence_number, (it.before.clone(), it.after.clone())))
            .collect()
    });
    let mut rows = Vec::new();
    for live in live_entries(&table).await? {
        let path = live.file.file_path();
        let mut of_file = Vec::new();
        for batch in compactor::read(world, path, Some(&COLUMNS))? {
            of_file.extend(rows_of(&batch, *name == *RAW_EVENTS));
        }
        if !world.is_moved(path) {
            let commit = commits.get(&live.sequence_number);
            for row in &of_file {
                let mark = |marks: &Marks| marks.get(&row.key).copied().unwrap_or(0);
                let is_inside = commit.is_some_and(|(before, after)| {
                    // The quarantine's watermark may be ahead of what another plan puts there.
                    let is_above = row.sequence > mark(before) || *name == *RAW_QUARANTINE;
                    is_above && row.sequence <= mark(after)
                });
                if !is_inside {
                    world.trace.violation(format!(
                        "EO-4: {:?} {} came with commit {}, which did not move its watermark",
                        row.key, row.sequence, live.sequence_number
                    ));
                }
            }
        }
        rows.extend(of_file);
    }
    Ok(rows)
}

fn rows_of(batch: &RecordBatch, is_valid: bool) -> Vec<Row> {
    let column = |name: &str| batch.column_by_name(name).expect("a column of both tables");
    let agents = column("_agent_id").as_string::<i32>();
    let epochs = column("_epoch").as_primitive::<Int64Type>();
    let sequences = column("_sequence").as_primitive::<Int64Type>();
    let id = |row: usize| match is_valid {
        true => column("message_id")
            .as_string::<i32>()
            .value(row)
            .to_owned(),
        // The name is the last word of what is no event, and the last value of one that is.
        false => {
            let payload = column("payload");
            let payload = match payload.as_binary_opt::<i32>() {
                Some(payload) => payload.value(row),
                None => payload.as_binary::<i64>().value(row),
            };
            let text = String::from_utf8_lossy(payload);
            let last = text.trim_end_matches("\"}").rsplit([' ', '"']).next();
            last.unwrap_or_default().to_owned()
        }
    };
    let version = |row: usize| {
        column("schema_version")
            .as_primitive::<Int32Type>()
            .value(row)
    };
    let properties = |row: usize| column("properties").as_string::<i32>().value(row);
    (0..batch.num_rows())
        .map(|row| Row {
            key: (
                agents.value(row).to_owned(),
                epochs.value(row).cast_unsigned(),
            ),
            sequence: sequences.value(row).cast_unsigned(),
            id: id(row),
            is_valid,
            omits: is_valid && version(row) == OMITTING_VERSION,
            is_without: is_valid && !properties(row).contains("code"),
        })
        .collect()
}

/// Reads the manifests of every snapshot that the table still knows, and looks for their files.
async fn history_is_whole(world: &Arc<World>, name: &TableName) -> anyhow::Result<()> {
    let table: Table = world.truth.catalog.load(name).await?;
    let mut manifests = BTreeMap::new();
    for snapshot in table.metadata().snapshots() {
        let list = table.manifest_list_reader(snapshot).load().await?;
        for manifest in list.consume_entries() {
            manifests.insert(manifest.manifest_path.clone(), manifest);
        }
    }
    for manifest in manifests.values() {
        for entry in manifest.load_manifest(table.file_io()).await?.entries() {
            if entry.is_alive() && world.files.read(entry.file_path()).is_none() {
                anyhow::bail!("a data file of the history is gone");
            }
        }
    }
    Ok(())
}
