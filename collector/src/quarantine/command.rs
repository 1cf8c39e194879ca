//! `headwater-collector quarantine list|show|replay`.
//!
//! Beside the path. Answers go to standard output; payloads are shown only by `show`, to the person
//! who asks for them, and never reach a log.

use std::cmp::Reverse;
use std::fmt::Write as _;

use clap::{Args, Subcommand};
use headwater_protocol::timestamp;
use headwater_tables::schema::{self, RAW_EVENTS, RAW_QUARANTINE};
use headwater_tables::{Catalog, TableName};

use super::replay::{Extent, Replayed, replay};
use super::{Entry, Filter, Positions, QuarantineError, present, scan};
use crate::config::Config;
use crate::plan::{Plan, PlanError};

const HELP: &str = "\
A row of raw.quarantine is open until raw.events has its event. Replay judges the original bytes again
under the tracking plan of the configuration and adds what is valid now, once, under the time at which
it arrived. It may be run again, stopped at any moment, and run beside collectors.

Examples:
  headwater-collector quarantine list --config collector.toml --since 2026-11-20T00:00:00Z
  headwater-collector quarantine show --config collector.toml agent-1/1790000000000/17
  headwater-collector quarantine replay --config collector.toml --type schema_violation --dry-run
  headwater-collector quarantine replay --config collector.toml --limit 10000

Exit codes: 0 done, 1 failed (what was added stays), 2 the arguments or the configuration cannot be used.";

/// Largest `--limit` of a replay, which holds the positions of so many events.
const LIMIT_MAX: i64 = 1_000_000;

/// What to do with the quarantine.
#[derive(Debug, Subcommand)]
#[command(after_help = HELP)]
pub enum QuarantineCommand {
    /// Show what lies there, newest first
    List {
        /// Which rows
        #[command(flatten)]
        which: Which,
        /// Most rows to show
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Show one event: why it lies there, and its original bytes
    Show {
        /// As `list` shows it: agent/epoch/sequence
        id: String,
    },
    /// Judge events again and add those that are valid now to raw.events, once
    Replay {
        /// Only this one; may be given several times
        #[arg(long, value_name = "ID")]
        id: Vec<String>,
        /// Which rows
        #[command(flatten)]
        which: Which,
        /// Look at so many at most, those that were received first
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
        limit: Option<u32>,
        /// Say what would be added, and add nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which rows are meant: all of them, unless something is said.
#[derive(Debug, Args)]
pub struct Which {
    /// Received at or after this time (ISO-8601; without an offset it is UTC)
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<i64>,
    /// Of this company
    #[arg(long)]
    company: Option<String>,
    /// With this failure_type
    #[arg(long = "type", value_name = "TYPE")]
    failure_type: Option<String>,
}

fn time(text: &str) -> Result<i64, String> {
    timestamp::parse(text).ok_or_else(|| format!("`{text}` is no time: write 2026-11-20T00:00:00Z"))
}

impl Which {
    fn filter(self, ids: Vec<String>) -> Filter {
        Filter {
            ids,
            since: self.since,
            company: self.company,
            failure_type: self.failure_type,
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The tables.
    #[error(transparent)]
    Quarantine(#[from] QuarantineError),
    /// The plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The answer cannot be written as JSON.
    #[error("an answer cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

impl QuarantineCommand {
    /// Does it and returns what to print.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn execute(self, config: &Config) -> Result<String, CommandError> {
        let catalog = Catalog::open(&config.catalog).await;
        let catalog = catalog.map_err(QuarantineError::from)?;
        // A table that an older version made lacks columns that are asked for.
        let events = catalog.ensure(&schema::raw_events()).await;
        events.map_err(QuarantineError::from)?;
        let quarantine = catalog.ensure(&schema::raw_quarantine()).await;
        quarantine.map_err(QuarantineError::of_ensure)?;
        match self {
            Self::List { which, limit, json } => {
                let entries = list(&catalog, &which.filter(Vec::new()), limit).await?;
                if json {
                    as_json(&entries)
                } else {
                    Ok(as_table(&entries))
                }
            }
            Self::Show { id } => Ok(show(&catalog, id).await?),
            Self::Replay {
                id,
                which,
                limit,
                dry_run,
            } => {
                let plan = Plan::load(config.plan.directory().as_deref())?;
                let filter = which.filter(id);
                let limit = limit.map(|limit| limit as usize);
                let extent = Extent { dry_run, limit };
                let done = replay(&catalog, &plan, &filter, extent, &|_| true).await?;
                Ok(report(&done, dry_run))
            }
        }
    }
}

/// A row and whether it is open.
type Listed = (Entry, bool);

/// Returns the newest rows that the filter means, at most `limit`.
///
/// # Errors
/// See [`QuarantineError`].
pub async fn list(
    catalog: &Catalog,
    filter: &Filter,
    limit: usize,
) -> Result<Vec<Listed>, QuarantineError> {
    let quarantine = catalog.load(&RAW_QUARANTINE).await?;
    let mut newest: Vec<Entry> = Vec::new();
    let keep = |newest: &mut Vec<Entry>| {
        newest.sort_by_cached_key(|it| (Reverse(it.received_at), it.quarantine_id.clone()));
        newest.truncate(limit);
    };
    scan(&quarantine, filter.predicate()?, async |entries| {
        newest.extend(entries.into_iter().map(Entry::without_payload));
        keep(&mut newest);
        Ok(())
    })
    .await?;
    let mut positions = Positions::new();
    for entry in &newest {
        let of_key = positions.entry(entry.key.clone()).or_default();
        of_key.insert(entry.sequence);
    }
    let there = there(catalog, &RAW_EVENTS, &positions).await?;
    let is_open = |entry: &Entry| {
        let of_key = there.get(&entry.key);
        !of_key.is_some_and(|of_key| of_key.contains(&entry.sequence))
    };
    let listed = newest.into_iter().map(|entry| {
        let is_open = is_open(&entry);
        (entry, is_open)
    });
    Ok(listed.collect())
}

async fn there(
    catalog: &Catalog,
    table: &TableName,
    positions: &Positions,
) -> Result<Positions, QuarantineError> {
    present(&catalog.load(table).await?, positions).await
}

fn status(is_open: bool) -> &'static str {
    if is_open { "open" } else { "replayed" }
}

fn moment(micros: i64) -> String {
    timestamp::format(micros).unwrap_or_else(|| micros.to_string())
}

fn as_json(listed: &[Listed]) -> Result<String, CommandError> {
    let mut out = String::new();
    for (entry, is_open) in listed {
        let mut value = serde_json::to_value(entry)?;
        value["received_at"] = moment(entry.received_at).into();
        value["failed_at"] = moment(entry.failed_at).into();
        value["retention_until"] = moment(entry.retention_until).into();
        value["status"] = status(*is_open).into();
        writeln!(out, "{value}").expect("writing to a string cannot fail");
    }
    Ok(out)
}

fn as_table(listed: &[Listed]) -> String {
    let mut out = String::new();
    for (entry, is_open) in listed {
        let text = |value: &Option<String>| printable(value.as_deref().unwrap_or("-"));
        writeln!(
            out,
            "{}  {}  {}  {}  {}  {}  {}",
            entry.quarantine_id,
            moment(entry.received_at),
            status(*is_open),
            entry.failure_type,
            text(&entry.company_id),
            text(&entry.event_name),
            printable(
                &entry
                    .errors
                    .first()
                    .map_or_else(|| "-".to_owned(), ToString::to_string)
            ),
        )
        .expect("writing to a string cannot fail");
    }
    if out.is_empty() {
        out.push_str("nothing in quarantine\n");
    }
    out
}

/// What a client sent must not write to the terminal as it likes.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

async fn show(catalog: &Catalog, id: String) -> Result<String, QuarantineError> {
    let filter = Filter {
        ids: vec![id.clone()],
        ..Filter::default()
    };
    let quarantine = catalog.load(&RAW_QUARANTINE).await?;
    let mut found = None;
    scan(&quarantine, filter.predicate()?, async |entries| {
        found = found.take().or_else(|| entries.into_iter().next());
        Ok(())
    })
    .await?;
    let entry = found.ok_or(QuarantineError::NoSuchId(id))?;
    let positions = Positions::from([(entry.key.clone(), [entry.sequence].into())]);
    let there = there(catalog, &RAW_EVENTS, &positions).await?;
    let is_open = there.values().all(|of_key| of_key.is_empty());
    let text = |value: &Option<String>| printable(value.as_deref().unwrap_or("-"));
    let mut out = String::new();
    for (name, value) in [
        ("id", entry.quarantine_id.clone()),
        ("status", status(is_open).to_owned()),
        ("failure", entry.failure_type.clone()),
        ("schema", text(&entry.schema_ref)),
        ("company", text(&entry.company_id)),
        ("source", text(&entry.source_id)),
        ("event", text(&entry.event_name)),
        ("message id", text(&entry.message_id)),
        ("received", moment(entry.received_at)),
        ("judged", moment(entry.failed_at)),
        ("keep until", moment(entry.retention_until)),
        ("path", text(&entry.http_path)),
        ("type", text(&entry.content_type)),
        ("encoding", text(&entry.encoding)),
        ("bytes", entry.actual_bytes.to_string()),
    ] {
        writeln!(out, "{name:>10}  {value}").expect("writing to a string cannot fail");
    }
    for error in &entry.errors {
        let error = printable(&error.to_string());
        writeln!(out, "{:>10}  {error}", "error").expect("writing to a string");
    }
    if entry.payload_truncated {
        out.push_str(" truncated  only the first 64 KiB are kept: this event cannot be replayed\n");
    }
    out.push_str(&pretty(&entry.payload));
    out.push('\n');
    Ok(out)
}

/// Returns JSON laid out, and what is no JSON as text with everything else escaped.
fn pretty(payload: &[u8]) -> String {
    let value = serde_json::from_slice::<serde_json::Value>(payload);
    let laid_out = value.and_then(|value| serde_json::to_string_pretty(&value));
    laid_out.unwrap_or_else(|_| payload.escape_ascii().to_string())
}

fn report(done: &Replayed, dry_run: bool) -> String {
    let verb = if dry_run { "would be added" } else { "added" };
    let mut out = format!(
        "{} events {verb} to raw.events, {} were there already, {} cannot be stored\n",
        done.added,
        done.present,
        done.refused.values().sum::<u64>()
    );
    if let Some(through) = done.through.filter(|_| done.left > 0) {
        writeln!(
            out,
            "{} more are left, received later: raise --limit, or go on with --since {}",
            done.left,
            moment(through)
        )
        .expect("writing to a string cannot fail");
    }
    for (class, count) in &done.refused {
        writeln!(out, "{count:>8}  {class}").expect("writing to a string cannot fail");
    }
    for (id, reason) in &done.examples {
        writeln!(out, "{id}  {}", printable(reason)).expect("writing to a string cannot fail");
    }
    out
}
