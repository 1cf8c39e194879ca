//! One life of a process: it can be frozen, and it can die at a chosen point, for good.
//!
//! Everything that the process does outside its own memory passes here. A dead process does nothing
//! more: its tasks are gone, and what asks on its behalf waits for ever.

use std::collections::BTreeSet;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use headwater_protocol::AgentId;
use headwater_tables::TableName;
use headwater_tables::schema::RAW_QUARANTINE;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;
use crate::trace::Trace;

/// A table that collectors commit to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Events,
    Quarantine,
}

impl Target {
    pub(crate) fn of(name: &TableName) -> Self {
        match *name == *RAW_QUARANTINE {
            true => Self::Quarantine,
            false => Self::Events,
        }
    }
}

/// Points of a commit at which a collector can die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Point {
    Planned,
    DataFileClosed(Target),
    ManifestWritten(Target),
    ManifestListWritten(Target),
    MetadataWritten(Target),
    BeforeSwap(Target),
    AfterSwap(Target),
    BetweenCommits,
    BeforeAcks,
    BeforeAck,
    /// No point of its own: reading.
    Other,
}

impl Point {
    /// Every point to die at, in the order in which a collector passes them.
    pub(crate) const ALL: [Self; 16] = [
        Self::Planned,
        Self::DataFileClosed(Target::Quarantine),
        Self::ManifestWritten(Target::Quarantine),
        Self::ManifestListWritten(Target::Quarantine),
        Self::MetadataWritten(Target::Quarantine),
        Self::BeforeSwap(Target::Quarantine),
        Self::AfterSwap(Target::Quarantine),
        Self::BetweenCommits,
        Self::DataFileClosed(Target::Events),
        Self::ManifestWritten(Target::Events),
        Self::ManifestListWritten(Target::Events),
        Self::MetadataWritten(Target::Events),
        Self::BeforeSwap(Target::Events),
        Self::AfterSwap(Target::Events),
        Self::BeforeAcks,
        Self::BeforeAck,
    ];

    /// Returns the name under which a death here is counted.
    pub(crate) fn death(self) -> &'static str {
        use Target::{Events, Quarantine};
        match self {
            Self::Planned => "crash: planned",
            Self::DataFileClosed(Events) => "crash: events, data file closed",
            Self::DataFileClosed(Quarantine) => "crash: quarantine, data file closed",
            Self::ManifestWritten(Events) => "crash: events, manifest written",
            Self::ManifestWritten(Quarantine) => "crash: quarantine, manifest written",
            Self::ManifestListWritten(Events) => "crash: events, manifest list written",
            Self::ManifestListWritten(Quarantine) => "crash: quarantine, manifest list written",
            Self::MetadataWritten(Events) => "crash: events, metadata written",
            Self::MetadataWritten(Quarantine) => "crash: quarantine, metadata written",
            Self::BeforeSwap(Events) => "crash: events, before the catalog swap",
            Self::BeforeSwap(Quarantine) => "crash: quarantine, before the catalog swap",
            Self::AfterSwap(Events) => "crash: events, after the catalog swap",
            Self::AfterSwap(Quarantine) => "crash: quarantine, after the catalog swap",
            Self::BetweenCommits => "crash: between quarantine and events",
            Self::BeforeAcks => "crash: before the acks",
            Self::BeforeAck => "crash: before an ack leaves",
            Self::Other => "crash: any time",
        }
    }
}

/// Where a life ends: at the n-th time (from 1) that a point is passed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) point: Point,
    pub(crate) times: u32,
}

/// One life of a process.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    trace: Trace,
    dice: Dice,
    dead: CancellationToken,
    frozen: watch::Sender<bool>,
    plan: Mutex<Option<Plan>>,
    /// The quarantine was committed since the last plan was made.
    has_quarantined: AtomicBool,
    /// The fence of `raw.events` in the last commit of this life to it.
    fence: Mutex<Option<String>>,
    /// Agents that come back to this life; it does not die before they have.
    awaited: Mutex<BTreeSet<AgentId>>,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Connections that break some time after its death.
    connections: Mutex<Vec<CancellationToken>>,
}

impl Host {
    pub(crate) fn new(name: String, trace: Trace, dice: Dice, plan: Option<Plan>) -> Arc<Self> {
        Arc::new(Self {
            name,
            trace,
            dice,
            dead: CancellationToken::new(),
            frozen: watch::Sender::new(false),
            plan: Mutex::new(plan),
            has_quarantined: AtomicBool::new(false),
            fence: Mutex::default(),
            awaited: Mutex::default(),
            tasks: Mutex::default(),
            connections: Mutex::default(),
        })
    }

    /// Runs a task of this process, which ends when the task panics.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        if self.dead.is_cancelled() {
            return;
        }
        let host = self.clone();
        let guarded = async move {
            if let Err(payload) = AssertUnwindSafe(task).catch_unwind().await {
                let text = payload.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
                let text = text.unwrap_or("no message");
                host.trace
                    .violation(format!("{} panics: {text}", host.name));
                host.end();
            }
        };
        let mut tasks = self.tasks.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(tokio::spawn(guarded).abort_handle());
    }

    /// Notes a connection to this process.
    pub(crate) fn connected(&self, closed: CancellationToken) {
        self.connections.lock().push(closed);
    }

    /// Passes a point of the process's way to the outside: takes a moment, waits while it is frozen,
    /// and never returns when it dies here or has died.
    pub(crate) async fn pass(&self, point: Point) {
        tokio::time::sleep(Duration::from_micros(self.dice.within(50..=2500))).await;
        let mut frozen = self.frozen.subscribe();
        // The sender lives in `self`.
        drop(frozen.wait_for(|frozen| !frozen).await);
        if self.dies_at(point) || self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    /// Says whether the process dies at this point, now; then it is dead.
    pub(crate) fn dies_at(&self, point: Point) -> bool {
        if self.is_awaited() {
            return false;
        }
        let mut plan = self.plan.lock();
        let Some(next) = plan.as_mut().filter(|plan| plan.point == point) else {
            return false;
        };
        next.times -= 1;
        if next.times > 0 {
            return false;
        }
        *plan = None;
        drop(plan);
        self.die(point);
        true
    }

    /// Ends the process without a word.
    pub(crate) fn die(&self, point: Point) {
        if self.dead.is_cancelled() || self.is_awaited() {
            return;
        }
        self.trace
            .line(format_args!("{} dies at {point:?}", self.name));
        self.trace.count(point.death());
        self.end();
    }

    /// Ends the process; its peers notice at once or later.
    pub(crate) fn end(&self) {
        self.dead.cancel();
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        for connection in self.connections.lock().drain(..) {
            let noticed = self.dice.ms(0..=3000);
            tokio::spawn(async move {
                tokio::time::sleep(noticed).await;
                connection.cancel();
            });
        }
    }

    /// Sets where it dies from now on, if anywhere.
    pub(crate) fn plan(&self, plan: Option<Plan>) {
        *self.plan.lock() = plan;
    }

    /// Notes whether this life has committed to the quarantine in its present attempt.
    pub(crate) fn quarantined(&self, is_done: bool) {
        self.has_quarantined.store(is_done, Ordering::Relaxed);
    }

    pub(crate) fn has_quarantined(&self) -> bool {
        self.has_quarantined.load(Ordering::Relaxed)
    }

    /// Notes the fence of `raw.events` that this life has just committed to.
    pub(crate) fn fenced(&self, fence: Option<String>) {
        *self.fence.lock() = fence;
    }

    pub(crate) fn fence(&self) -> Option<String> {
        self.fence.lock().clone()
    }

    /// Lets it live until the agent is back.
    pub(crate) fn awaits(&self, agent: &AgentId) {
        self.awaited.lock().insert(agent.clone());
    }

    /// Notes that the agent is back, if it was away.
    pub(crate) fn met(&self, agent: &AgentId) {
        self.awaited.lock().remove(agent);
    }

    fn is_awaited(&self) -> bool {
        !self.awaited.lock().is_empty()
    }

    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    pub(crate) fn thaw(&self) {
        let was_frozen = self.frozen.send_replace(false);
        if was_frozen && !self.dead.is_cancelled() {
            self.trace.count("collector: thawed");
        }
    }

    /// Resolves when the process is dead.
    pub(crate) async fn died(&self) {
        self.dead.cancelled().await;
    }
}
