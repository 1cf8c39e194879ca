//! What a buffer holds, by generation: the document behind `/inspect` and `headwater-agent inspect`.
//!
//! A running agent tells what its books say and reads only the generations that are open anyway; a
//! stopped one's directory is read whole (see `stopped`). Both come from the same walk over a
//! generation, so that they can be compared.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use headwater_protocol::{AgentId, Record, timestamp};
use serde::{Deserialize, Serialize};

use super::batch::Pieces;
use super::chunk::{Chunk, Position};
use super::generation::{Generation, StoreError};
use super::refused::{self, Refused};
use super::{Buffer, Slot, files};

/// What a buffer holds. No payloads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// The agent runs and answered itself.
    pub running: bool,
    /// Whose buffer it is; `None` when `buffer.json` cannot be read.
    pub agent_id: Option<AgentId>,
    /// Everything up to this position is acknowledged.
    pub acked: Position,
    /// Nothing above this position has ever been sent.
    pub sent: Position,
    /// Everything up to this position is durable.
    pub durable: Position,
    /// Events accepted and not acknowledged.
    pub events: u64,
    /// How many of them `contents` of the generations tell about: all when the agent is stopped, those
    /// of open generations while it runs.
    pub events_described: u64,
    /// Bytes that the directory takes on disk, reserve and quarantine included.
    pub disk_bytes: u64,
    /// When the oldest unacknowledged event was accepted (ISO-8601, UTC).
    pub oldest_received_at: Option<String>,
    /// When the newest unacknowledged event was accepted (ISO-8601, UTC).
    pub newest_received_at: Option<String>,
    /// The generations, oldest first.
    pub generations: Vec<GenerationView>,
    /// What was set aside because it could not be read.
    pub quarantined: Vec<Quarantined>,
    /// Events that the collector did not take.
    pub refused: Refused,
}

/// One generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationView {
    /// Its first position.
    pub first: Position,
    /// Its last position; below `first` when it is empty.
    pub last: Position,
    /// Events of it that are not acknowledged.
    pub events: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// What the events are; `None` for one that a running agent keeps closed, or that cannot be read.
    pub contents: Option<Contents>,
    /// Why it cannot be read.
    pub error: Option<String>,
}

/// The unacknowledged events of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Contents {
    /// When the oldest was accepted (ISO-8601, UTC).
    pub oldest_received_at: Option<String>,
    /// When the newest was accepted (ISO-8601, UTC).
    pub newest_received_at: Option<String>,
    /// Events whose bytes cannot be read.
    pub unreadable: u64,
    /// Counts by company and source.
    pub sources: Vec<SourceView>,
}

/// Unacknowledged events of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceView {
    /// Paying company.
    pub company: String,
    /// Source within the company.
    pub source: String,
    /// Events.
    pub events: u64,
    /// Bytes of the events as the clients sent them.
    pub bytes: u64,
}

/// A generation in `quarantine/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Name of its directory.
    pub name: String,
    /// Bytes on disk.
    pub disk_bytes: u64,
}

impl Buffer {
    /// Returns what the running buffer holds. Reads the open generations, so it blocks on the disk
    /// for up to some tenths of a second; memory does not grow with what is buffered.
    pub fn inspect(&self) -> Inspection {
        // Opens the oldest generation, as shipping does.
        let oldest = self.oldest_received_at();
        let durable = *self.shared.durable.borrow();
        let state = self.shared.state.lock();
        let acked = state.acked;
        let starts: Vec<Position> = state.generations.keys().copied().collect();
        let ends = starts.iter().skip(1).map(|next| next - 1).chain([durable]);
        let generations: Vec<_> = starts
            .iter()
            .zip(ends)
            .zip(state.generations.values())
            .map(|((&first, last), slot)| {
                let view = GenerationView {
                    first,
                    last,
                    events: state.epochs.count(acked.max(first - 1), last),
                    disk_bytes: slot.disk_bytes(),
                    contents: None,
                    error: None,
                };
                let open = match slot {
                    Slot::Open(generation) => Some(generation.clone()),
                    Slot::Closed { .. } => None,
                };
                (view, open)
            })
            .collect();
        let mut inspection = Inspection {
            running: true,
            agent_id: Some(self.shared.agent_id.clone()),
            acked,
            sent: state.sent,
            durable,
            events: state.epochs.count(acked, durable),
            events_described: 0,
            disk_bytes: 0,
            oldest_received_at: oldest.and_then(timestamp::format),
            newest_received_at: None,
            generations: Vec::new(),
            quarantined: Vec::new(),
            refused: Refused::default(),
        };
        drop(state);
        inspection.quarantined = quarantined(&self.shared.directory);
        inspection.refused = refused::summary(&self.shared.directory);
        for (mut view, open) in generations {
            if let Some(generation) = open {
                let mut tally = Tally::after(acked);
                let walked = walk(&generation, view.last, |position, record| {
                    tally.add(position, record);
                    ControlFlow::Continue(())
                });
                view.error = walked.error.as_ref().map(ToString::to_string);
                view.contents = Some(tally.contents(&walked));
            }
            inspection.generations.push(view);
        }
        inspection.sum_up();
        inspection.disk_bytes = self.measured_disk_bytes();
        inspection
    }

    /// Measures what the directory takes on disk, the reserve included.
    pub fn measured_disk_bytes(&self) -> u64 {
        files::disk_bytes(&self.shared.directory)
    }
}

impl Inspection {
    /// Counts what is told about, and takes the newest time of the newest generation that tells one.
    pub(super) fn sum_up(&mut self) {
        let described = self.generations.iter().filter(|it| it.contents.is_some());
        self.events_described = described.map(|it| it.events).sum();
        let newest_first = self.generations.iter().rev();
        let contents = newest_first.filter_map(|view| view.contents.as_ref());
        self.newest_received_at = contents
            .filter_map(|contents| contents.newest_received_at.clone())
            .next();
    }
}

/// Lists what lies in `quarantine/`.
pub(super) fn quarantined(directory: &std::path::Path) -> Vec<Quarantined> {
    let entries = std::fs::read_dir(directory.join("quarantine"));
    let mut found: Vec<Quarantined> = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| Quarantined {
            name: entry.file_name().to_string_lossy().into_owned(),
            disk_bytes: files::disk_bytes(&entry.path()),
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// Counts the events above a position.
pub(super) struct Tally {
    after: Position,
    oldest: Option<i64>,
    newest: Option<i64>,
    undecodable: u64,
    sources: BTreeMap<(String, String), (u64, u64)>,
}

impl Tally {
    pub(super) fn after(after: Position) -> Self {
        Self {
            after,
            oldest: None,
            newest: None,
            undecodable: 0,
            sources: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, position: Position, record: &[u8]) {
        if position <= self.after {
            return;
        }
        let Ok(record) = Record::decode(record) else {
            self.undecodable += 1;
            return;
        };
        let at = record.received_at;
        self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
        self.newest = Some(self.newest.map_or(at, |newest| newest.max(at)));
        let source = (record.company_id, record.source_id);
        let (events, bytes) = self.sources.entry(source).or_default();
        *events += 1;
        *bytes += record.body.len() as u64;
    }

    pub(super) fn oldest(&self) -> Option<i64> {
        self.oldest
    }

    pub(super) fn contents(self, walked: &Walked) -> Contents {
        let lost = walked
            .unreadable
            .iter()
            .map(|&(first, last)| (last + 1).saturating_sub(first.max(self.after + 1)));
        Contents {
            oldest_received_at: self.oldest.and_then(timestamp::format),
            newest_received_at: self.newest.and_then(timestamp::format),
            unreadable: self.undecodable + lost.sum::<u64>(),
            sources: self
                .sources
                .into_iter()
                .map(|((company, source), (events, bytes))| SourceView {
                    company,
                    source,
                    events,
                    bytes,
                })
                .collect(),
        }
    }
}

/// What a walk over a generation found.
#[derive(Debug)]
pub(super) struct Walked {
    /// Position after the last one that was seen.
    pub(super) next: Position,
    /// Positions up to there that are damaged or missing: first and last of each stretch, in order.
    pub(super) unreadable: Vec<(Position, Position)>,
    /// Why the store could not be read further.
    pub(super) error: Option<StoreError>,
}

/// Visits the events of a generation in order, up to position `through`, until `visit` breaks. Every
/// value's checksum is checked. What is cut off at the end was never acknowledged and is left out.
pub(super) fn walk(
    generation: &Generation,
    through: Position,
    mut visit: impl FnMut(Position, &[u8]) -> ControlFlow<()>,
) -> Walked {
    let mut walked = Walked {
        next: generation.start(),
        unreadable: Vec::new(),
        error: None,
    };
    let mut pieces = Pieces::default();
    let outcome = generation.scan(|position, chunk| {
        if position > through {
            return ControlFlow::Break(());
        }
        match chunk {
            Some(Chunk::Events(events)) => {
                walked.reach(position);
                for (place, record) in (position..=through).zip(events.iter()) {
                    walked.next = place + 1;
                    visit(place, record)?;
                }
            }
            Some(Chunk::Piece {
                piece,
                total,
                bytes,
            }) => {
                walked.reach(position);
                if pieces.add(piece, total, bytes) {
                    walked.next = position + 1;
                    visit(position, &pieces.take())?;
                }
            }
            None => pieces.spoil(),
        }
        ControlFlow::Continue(())
    });
    walked.error = outcome.err();
    walked
}

impl Walked {
    /// Notes that everything before `position` which was not seen cannot be read.
    fn reach(&mut self, position: Position) {
        if position > self.next {
            self.unreadable.push((self.next, position - 1));
            self.next = position;
        }
    }

    /// Notes what should have been there up to `last`.
    pub(super) fn expect_through(&mut self, last: Position) {
        if last >= self.next {
            self.reach(last + 1);
        }
    }
}
