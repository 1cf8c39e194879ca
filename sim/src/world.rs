//! What all parts of one run share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use headwater_agent::shipper::Credentials;
use headwater_protocol::AgentId;
use headwater_service::clock::{Clock, Micros, SharedClock};
use headwater_tables::DataFile;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::collector::{self, Life};
use crate::dice::Dice;
use crate::heads::Rows;
use crate::knobs::Knobs;
use crate::store::Files;
use crate::trace::Trace;
use crate::truth::Truth;

/// Half a minute before midnight, UTC: most runs write into two partitions.
const BEGIN: Micros = 1_767_225_570_000_000;

/// Most storms of one run: even one soon after the other they leave most of a restored agent's wait calm.
const STORMS_MAX: u32 = 3;

/// The wall clock of a run: moves with the virtual time.
struct RunClock(Instant);

impl Clock for RunClock {
    fn now(&self) -> Micros {
        BEGIN + i64::try_from(self.0.elapsed().as_micros()).unwrap_or(i64::MAX)
    }
}

/// Returns the clock of a run that begins now.
pub(crate) fn clock() -> SharedClock {
    Arc::new(RunClock(Instant::now()))
}

/// What all parts of one run share.
pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) knobs: Knobs,
    pub(crate) trace: Trace,
    pub(crate) clock: SharedClock,
    pub(crate) files: Arc<Files>,
    pub(crate) rows: Arc<Rows>,
    pub(crate) truth: Truth,
    /// Where agents have their disks.
    pub(crate) directory: PathBuf,
    /// Read once; the simulated network does not look at them.
    pub(crate) credentials: Arc<Credentials>,
    /// Cancelled when no fault strikes any more; each storm has its own.
    healed: Mutex<CancellationToken>,
    storms: Mutex<u32>,
    lives: Mutex<BTreeMap<String, Arc<Life>>>,
    connections: Mutex<Vec<CancellationToken>>,
    events: Mutex<u64>,
    moved: Mutex<Vec<String>>,
    /// Where each agent was welcomed last.
    welcomed: Mutex<BTreeMap<AgentId, String>>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

/// What a world is made of.
pub(crate) struct Parts {
    pub(crate) dice: Dice,
    pub(crate) knobs: Knobs,
    pub(crate) trace: Trace,
    pub(crate) clock: SharedClock,
    pub(crate) files: Arc<Files>,
    pub(crate) rows: Arc<Rows>,
    pub(crate) truth: Truth,
    pub(crate) directory: PathBuf,
    pub(crate) credentials: Arc<Credentials>,
}

impl World {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            dice: parts.dice,
            knobs: parts.knobs,
            trace: parts.trace,
            clock: parts.clock,
            files: parts.files,
            rows: parts.rows,
            truth: parts.truth,
            directory: parts.directory,
            credentials: parts.credentials,
            healed: Mutex::default(),
            storms: Mutex::default(),
            lives: Mutex::default(),
            connections: Mutex::default(),
            events: Mutex::default(),
            moved: Mutex::default(),
            welcomed: Mutex::default(),
        })
    }

    /// Returns the address of a collector.
    pub(crate) fn address(index: usize) -> String {
        format!("collector-{index}:7080")
    }

    /// Lets faults strike, unless they do or have done so often enough. Returns what is cancelled when they
    /// are over.
    pub(crate) fn storm(&self) -> Option<CancellationToken> {
        let mut storms = self.storms.lock();
        if !self.knobs.is_healed() || *storms == STORMS_MAX {
            return None;
        }
        *storms += 1;
        let healed = CancellationToken::new();
        *self.healed.lock() = healed.clone();
        self.knobs.storm();
        for life in self.lives.lock().values() {
            life.host.plan(collector::draw_death(self));
        }
        Some(healed)
    }

    /// Ends all faults: everybody lives, thaws and is reached.
    pub(crate) fn heal(&self) {
        self.knobs.heal();
        self.healed.lock().cancel();
        for life in self.lives.lock().values() {
            life.host.plan(None);
            life.host.thaw();
        }
    }

    /// The way of one message.
    pub(crate) async fn way(&self) {
        let most = if self.knobs.is_healed() {
            2
        } else {
            self.knobs.way_ms
        };
        tokio::time::sleep(self.dice.ms(0..=most)).await;
    }

    /// Notes who serves at an address now.
    pub(crate) fn lives(&self, address: &str, life: Option<Arc<Life>>) {
        let mut lives = self.lives.lock();
        match life {
            Some(life) => drop(lives.insert(address.to_owned(), life)),
            None => drop(lives.remove(address)),
        }
    }

    pub(crate) fn life(&self, address: &str) -> Option<Arc<Life>> {
        self.lives.lock().get(address).cloned()
    }

    pub(crate) fn any_life(&self) -> Option<Arc<Life>> {
        let lives = self.lives.lock();
        let count = lives.len();
        (count > 0).then(|| lives.values().nth(self.dice.index(count)).cloned())?
    }

    pub(crate) fn connected(&self, closed: CancellationToken) {
        let mut connections = self.connections.lock();
        connections.retain(|connection| !connection.is_cancelled());
        connections.push(closed);
    }

    /// Breaks a connection if there is one.
    pub(crate) fn break_a_connection(&self) -> bool {
        let mut connections = self.connections.lock();
        connections.retain(|connection| !connection.is_cancelled());
        if connections.is_empty() {
            return false;
        }
        let broken = self.dice.index(connections.len());
        let broken = connections.swap_remove(broken);
        drop(connections);
        broken.cancel();
        true
    }

    /// Notes where an agent is welcomed; says whether it was another collector before.
    pub(crate) fn welcomed(&self, agent: &AgentId, collector: &str) -> bool {
        let mut welcomed = self.welcomed.lock();
        let before = welcomed.insert(agent.clone(), collector.to_owned());
        before.is_some_and(|before| before != collector)
    }

    /// Returns a name for the next event of an agent.
    pub(crate) fn next_event(&self, agent: usize) -> String {
        let mut events = self.events.lock();
        *events += 1;
        format!("e{agent}-{events}")
    }

    /// Notes files with rows that were committed before.
    pub(crate) fn moved(&self, files: &[DataFile]) {
        let paths = files.iter().map(|file| file.file_path().to_owned());
        self.moved.lock().extend(paths);
    }

    pub(crate) fn is_moved(&self, path: &str) -> bool {
        self.moved.lock().iter().any(|moved| moved == path)
    }
}
