//! The collector without its sockets: who may speak, the batches, the committer, and what they share.
//!
//! Place on the path: below the session, which brings bytes, and above the catalog, which keeps rows.
//! Promise: nothing here knows a socket, the time or a random number but through the values it is
//! given, so that a simulation drives the code that production runs.

use std::sync::Arc;

use headwater_protocol::frame::USED_THROUGH_SINCE;
use headwater_protocol::{AgentId, Hello, Sequence, Welcome};
use headwater_service::chance::SharedChance;
use headwater_service::clock::SharedClock;
use headwater_tables::Catalog;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::commit::{CommitHook, Committer, StagedBatch};
use crate::config::Config;
use crate::intake::{self, Intake};
use crate::ledger::Ledger;
use crate::plan::live::LivePlan;
use crate::readiness::Readiness;
use crate::room::Room;
use crate::series::{self, Companies};
use crate::sessions::Sessions;

/// Batches between staging and the committer; their bytes are bounded apart.
const QUEUE_BATCHES: usize = 1024;

/// What all sessions share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) catalog: Catalog,
    pub(crate) clock: SharedClock,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) sessions: Sessions,
    /// For staged bytes.
    pub(crate) room: Room,
    pub(crate) cores: Arc<Semaphore>,
    pub(crate) plan: LivePlan,
    pub(crate) queue: mpsc::Sender<StagedBatch>,
    /// Streams between their header and the queue.
    pub(crate) admitting: TaskTracker,
    /// All batch streams.
    pub(crate) streams: TaskTracker,
    /// Take nothing new.
    pub(crate) stopping: CancellationToken,
    /// Nothing more will be committed: whoever waits must retry.
    pub(crate) abandoned: CancellationToken,
    /// End without a word, as a killed process would.
    pub(crate) killed: CancellationToken,
}

/// What an engine is made of.
pub struct EngineParts {
    /// Limits and times; addresses and files are not looked at.
    pub config: Config,
    /// Where events are committed; its tables exist.
    pub catalog: Catalog,
    /// The wall clock.
    pub clock: SharedClock,
    /// Spreads the waits between attempts.
    pub chance: SharedChance,
    /// Faults around commits.
    pub hook: Arc<dyn CommitHook>,
    /// What events are judged by.
    pub plan: LivePlan,
}

/// A collector without sockets; clones are the same one.
#[derive(Clone)]
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) companies: Arc<Companies>,
    /// Nothing more is staged: the committer commits what is there and ends.
    pub(crate) drain: CancellationToken,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl EngineParts {
    /// Puts the parts together. Nothing is committed until the committer runs; nothing new is taken
    /// after `stop`.
    pub fn assemble(self, stop: &CancellationToken) -> (Engine, Committer) {
        let Self {
            config,
            catalog,
            clock,
            chance,
            hook,
            plan,
        } = self;
        let (queue, staged) = mpsc::channel(QUEUE_BATCHES);
        let readiness = Arc::new(Readiness::new(&config.commit));
        let shared = Arc::new(Shared {
            catalog,
            clock,
            ledger: Arc::default(),
            sessions: Sessions::default(),
            room: Room::new(&config.limits),
            cores: intake::cores(),
            plan,
            queue,
            admitting: TaskTracker::new(),
            streams: TaskTracker::new(),
            stopping: stop.child_token(),
            abandoned: CancellationToken::new(),
            killed: CancellationToken::new(),
            config,
        });
        // Half of the room, and of one agent's: a full one would stop agents until the interval is over.
        let limits = &shared.config.limits;
        let half = limits.staged_bytes_max.min(limits.agent_staged_bytes_max) / 2;
        let half = u64::from(half).max(1);
        let drain = CancellationToken::new();
        let companies: Arc<Companies> = Arc::default();
        let committer = Committer {
            clock: shared.clock.clone(),
            companies: Arc::clone(&companies),
            catalog: shared.catalog.clone(),
            config: shared.config.commit.clone(),
            early_bytes: shared.config.commit.staged_bytes.clamp(1, half),
            ledger: Arc::clone(&shared.ledger),
            readiness: Arc::clone(&readiness),
            chance,
            hook,
            staged,
            held: None,
            drain: drain.clone(),
            abandon: shared.abandoned.clone(),
        };
        let engine = Engine {
            shared,
            readiness,
            companies,
            drain,
        };
        (engine, committer)
    }
}

impl Engine {
    /// Returns the series of `/metrics` that are made when somebody looks.
    pub(crate) fn series(&self) -> String {
        let most = self.shared.config.limits.series_max;
        let oldest_staged = self.readiness.oldest_staged_age();
        series::text(&self.shared.ledger, &self.companies, oldest_staged, most)
    }

    /// Decides whether the agent is served whose certificate names it `certified`: the place for its
    /// batches and what it is told. Reads the table.
    ///
    /// # Errors
    /// One line for the agent's log.
    pub async fn welcome(
        &self,
        certified: &AgentId,
        hello: &Hello,
    ) -> Result<(Intake, Welcome), String> {
        if *certified != hello.agent_id {
            return Err(format!(
                "agent id `{}` is not the common name `{certified}` of the certificate",
                hello.agent_id
            ));
        }
        // Later versions are compatible: one that is not has another ALPN.
        if hello.protocol_version == 0 {
            return Err("protocol version `0` is none".to_owned());
        }
        if self.shared.stopping.is_cancelled() {
            return Err("the collector stops".to_owned());
        }
        let mut intake = Intake::new(Arc::clone(&self.shared), certified.clone());
        // The table's own word: what an ack said before Hello, it covers, unless it was set back.
        let (entry, committed) = intake.greet(hello.epoch).await?;
        if lacks_history(hello.lowest_unacknowledged, committed.through) {
            tracing::error!(
                agent_id = %certified,
                epoch = hello.epoch,
                agent_holds_from = hello.lowest_unacknowledged,
                committed_through = committed.through,
                "acked events are not in the table: another catalog, or a table that was rolled back; \
                 the agent must go on with a new epoch"
            );
        }
        let quarantined = intake.quarantined(hello.epoch).await?;
        // Last of all: what is staged while the tables are read counts, too.
        let used = entry.staged().max(quarantined);
        let is_understood = hello.protocol_version >= USED_THROUGH_SINCE;
        let welcome = Welcome {
            committed_through: committed.through,
            limits: self.shared.config.limits.on_the_wire(),
            used_through: Some(used).filter(|used| is_understood && *used > committed.through),
        };
        Ok((intake, welcome))
    }
}

/// Says whether the agent has forgotten events that the table does not have. Welcome tells it the
/// watermark; its sequences can be contiguous again only in a new epoch, and until then its batches
/// are gaps.
fn lacks_history(lowest: Sequence, committed: Sequence) -> bool {
    lowest > committed.saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgotten_events_that_the_table_lacks_are_noticed() {
        for (lowest, committed) in [(0, 0), (1, 0), (1, 50), (51, 50)] {
            assert!(!lacks_history(lowest, committed), "{lowest} {committed}");
        }
        assert!(lacks_history(52, 50));
    }
}
