//! One run from its seed to its verdict, and many of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use headwater_agent::shipper::Credentials;
use headwater_service::tls::TlsFiles;
use headwater_tables::catalog::Parts as CatalogParts;
use headwater_tables::{Catalog, schema};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::dice::Dice;
use crate::heads::{Rows, SoundHeads};
use crate::knobs::Knobs;
use crate::store::{Files, Store, WAREHOUSE};
use crate::trace::Trace;
use crate::truth::Truth;
use crate::world::{self, World};
use crate::{collector, compactor, entropy, oracle};

/// Virtual time within which everything is delivered once the faults are over.
const DRAIN: Duration = Duration::from_secs(900);

/// What a batch of runs must have met at least once, each.
pub const REQUIRED: [&str; 64] = [
    "agent: disk backed up",
    "agent: disk restored",
    "agent: disk wiped",
    "agent: moved",
    "agent: power cut",
    "agent: power cut before the answer",
    "agent: stopped",
    "agent: welcomed with numbers in use",
    "answer: ack",
    "answer: retry",
    "batch: sent",
    "catalog: answers long after the commit",
    "catalog: cannot be read",
    "catalog: commits after it has failed",
    "catalog: fails after the commit",
    "catalog: fails before the commit",
    "catalog: hangs",
    "catalog: reports a commit that is none",
    "collector: frozen",
    "collector: thawed",
    "collector: with the mild plan",
    "collector: with the strict plan",
    "commit: compaction",
    "commit: conflict",
    "commit: events",
    "commit: fence",
    "commit: quarantine",
    "compaction: done",
    "crash: any time",
    "crash: before an ack leaves",
    "crash: before the acks",
    "crash: between quarantine and events",
    "crash: between the fences",
    "crash: events, after the catalog swap",
    "crash: events, before the catalog swap",
    "crash: events, data file closed",
    "crash: events, manifest list written",
    "crash: events, manifest written",
    "crash: events, metadata written",
    "crash: planned",
    "crash: quarantine, after the catalog swap",
    "crash: quarantine, before the catalog swap",
    "crash: quarantine, data file closed",
    "crash: quarantine, manifest list written",
    "crash: quarantine, manifest written",
    "crash: quarantine, metadata written",
    "event: debatable",
    "event: invalid",
    "event: sent again in a new epoch",
    "link: a batch is doubled",
    "link: a batch is lost",
    "link: a batch overtakes another",
    "link: a connection breaks",
    "link: an answer is lost",
    "link: no connection",
    "row: without what its plan omits",
    "run: one collector",
    "run: three collectors",
    "run: two collectors",
    "session: replaced by a new one",
    "snapshots: expired",
    "store: a file is deleted",
    "store: a write fails",
    "store: a write fails and is done",
];

/// What came of one seed.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Identity of the run: a hash of its whole trace.
    pub hash: u64,
    /// How often each kind of thing happened.
    pub counts: BTreeMap<String, u64>,
    /// Promises that were broken.
    pub violations: Vec<String>,
}

impl std::fmt::Display for Outcome {
    /// Says which seed it was and how to see it again.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seed = self.seed;
        write!(
            f,
            "seed {seed} (replay: cargo run -p headwater-sim -- --seed {seed} --trace)"
        )
    }
}

const HASH: &str = "trace ";
const VIOLATION: &str = "broken: ";

impl Outcome {
    /// Returns the outcome as lines of text.
    pub fn lines(&self) -> String {
        let counts = self
            .counts
            .iter()
            .map(|(kind, count)| format!("{count:>8}  {kind}\n"));
        let violations = self
            .violations
            .iter()
            .map(|it| format!("{VIOLATION}{it}\n"));
        let hash = format!("{HASH}{:016x}\n", self.hash);
        counts.chain(violations).chain([hash]).collect()
    }

    /// Reads what [`Outcome::lines`] has written. A run that did not come to its end has failed.
    fn read(seed: u64, lines: &str) -> Self {
        let mut outcome = Self {
            seed,
            hash: 0,
            counts: BTreeMap::new(),
            violations: Vec::new(),
        };
        let mut is_whole = false;
        for line in lines.lines() {
            if let Some(violation) = line.strip_prefix(VIOLATION) {
                outcome.violations.push(violation.to_owned());
            } else if let Some(hash) = line.strip_prefix(HASH) {
                outcome.hash = u64::from_str_radix(hash, 16).unwrap_or(0);
                is_whole = true;
            } else if let Some((count, kind)) = line.trim_start().split_once("  ")
                && let Ok(count) = count.parse()
            {
                outcome.counts.insert(kind.to_owned(), count);
            }
        }
        if !is_whole {
            outcome
                .violations
                .push("the run died; see above".to_owned());
        }
        outcome
    }
}

/// Certificates that the shipper wants to have; the simulated network does not look at them.
fn credentials() -> Arc<Credentials> {
    let directory = tempfile::tempdir().expect("a directory for certificates");
    let file = |name: &str| directory.path().join(name);
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate");
    let files = TlsFiles {
        certificate: file("certificate.pem"),
        key: file("key.pem"),
        ca: file("ca.pem"),
    };
    std::fs::write(&files.certificate, certificate.pem()).expect("room for a certificate");
    std::fs::write(&files.ca, certificate.pem()).expect("room for a certificate");
    std::fs::write(&files.key, key.serialize_pem()).expect("room for a key");
    Credentials::read(&files).expect("files that were just written")
}

/// Runs one seed on a thread of its own; prints its trace when it is `shown`. At most once in a process:
/// what libraries make once and keep, and tokio's count of runtimes, make a second run another one.
pub fn run(seed: u64, shown: bool) -> Outcome {
    // Outside the thread that has a seed.
    let credentials = credentials();
    let thread = std::thread::Builder::new()
        .name(format!("seed {seed}"))
        .stack_size(16 << 20)
        .spawn(move || {
            entropy::seed_thread(seed);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime without IO");
            runtime.block_on(simulate(seed, shown, credentials))
        })
        .expect("a thread");
    thread.join().unwrap_or_else(|_| Outcome {
        seed,
        hash: 0,
        counts: BTreeMap::new(),
        violations: vec!["the real code panicked; see above".to_owned()],
    })
}

async fn simulate(seed: u64, shown: bool, credentials: Arc<Credentials>) -> Outcome {
    let trace = Trace::begin(shown);
    let dice = Dice::new(seed);
    let knobs = Knobs::draw(&dice);
    trace.line(format_args!("{knobs:?}"));
    trace.count(match knobs.collectors {
        1 => "run: one collector",
        2 => "run: two collectors",
        _ => "run: three collectors",
    });
    // In memory where there is such a place: a sync then costs nothing.
    let memory = Path::new("/dev/shm");
    let directory = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    let directory = directory.expect("a directory for the agents' disks");
    let (files, rows) = (Arc::<Files>::default(), Arc::<Rows>::default());
    let clock = world::clock();
    let now = clock.clone();
    let truth = Catalog::assemble(CatalogParts {
        heads: Arc::new(SoundHeads(rows.clone())),
        warehouse: WAREHOUSE.to_owned(),
        file_io: Store::sound(files.clone()),
        now: Arc::new(move || now.now()),
    });
    for spec in [schema::raw_events(), schema::raw_quarantine()] {
        let spec = spec
            .with_property("headwater.snapshots-max", &knobs.snapshots_max.to_string())
            .with_property(
                "write.metadata.previous-versions-max",
                &knobs.metadata_log_max.to_string(),
            );
        truth.ensure(&spec).await.expect("tables in memory");
    }
    let world = World::new(world::Parts {
        dice,
        knobs,
        trace: trace.clone(),
        clock,
        files,
        rows,
        truth: Truth::new(truth),
        directory: directory.path().to_owned(),
        credentials,
    });
    let agents = act(&world).await;
    oracle::judge(&world, &agents).await;
    for kind in ["events: accepted", "commit: events", "answer: ack"] {
        if !trace.counts().contains_key(kind) {
            trace.violation(format!("nothing was tried: no `{kind}`"));
        }
    }
    Outcome {
        seed,
        hash: trace.hash(),
        counts: trace
            .counts()
            .into_iter()
            .map(|(kind, count)| (kind.to_owned(), count))
            .collect(),
        violations: trace.violations(),
    }
}

/// Lets faults strike for a while, unless they do: collectors die, freeze and lose their connections, and
/// their commits race with a compaction.
pub(crate) fn storm(world: &Arc<World>, lasts: Duration) {
    let Some(healed) = world.storm() else {
        return;
    };
    tokio::spawn(collector::disturb(world.clone(), healed.clone()));
    tokio::spawn(compactor::run(world.clone(), healed));
    let world = world.clone();
    tokio::spawn(async move {
        tokio::time::sleep(lasts).await;
        world.trace.line(format_args!("the faults are over"));
        world.heal();
    });
}

/// Plays the run: faults for a while, and again where an agent comes back with an old disk; then none until
/// everything has arrived.
async fn act(world: &Arc<World>) -> Vec<Agent> {
    let stop = CancellationToken::new();
    storm(world, Duration::from_millis(world.knobs.faults_ms));
    let collectors: Vec<_> = (0..world.knobs.collectors)
        .map(|index| {
            let running = collector::run(world.clone(), World::address(index), stop.clone());
            tokio::spawn(running)
        })
        .collect();
    let agents: Vec<_> = (0..world.knobs.agents)
        .map(|index| tokio::spawn(Agent::new(world, index).run()))
        .collect();
    let mut rested = Vec::new();
    for agent in agents {
        let mut agent = agent.await.expect("an agent does not panic");
        if !agent.drains(DRAIN).await {
            let (id, left) = (agent.id.clone(), agent.buffered());
            world.trace.violation(format!(
                "{id} cannot deliver {left} events after the faults"
            ));
        }
        rested.push(agent);
    }
    for agent in &mut rested {
        agent.end().await;
    }
    stop.cancel();
    for collector in collectors {
        collector.await.expect("a collector does not panic");
    }
    rested
}

/// What came of many seeds.
#[derive(Debug, Default)]
pub struct Tally {
    /// Number of seeds.
    pub seeds: u64,
    /// How often each kind of thing happened, over all of them.
    pub counts: BTreeMap<String, u64>,
    /// Runs with broken promises.
    pub failed: Vec<Outcome>,
}

impl Tally {
    /// Returns what should have happened at least once and did not.
    pub fn missing(&self) -> Vec<&'static str> {
        let is_missing = |kind: &&'static str| !self.counts.contains_key(*kind);
        REQUIRED.into_iter().filter(is_missing).collect()
    }
}

/// Runs one seed in a process of its own; `program` is `headwater-sim`.
///
/// # Panics
/// When the program cannot be started.
pub fn run_apart(program: &Path, seed: u64) -> Outcome {
    let output = Command::new(program)
        .args(["--seed", &seed.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .expect("the simulation can be started");
    Outcome::read(seed, &String::from_utf8_lossy(&output.stdout))
}

/// Runs many seeds on all cores, each in a process of its own; `is_enough` is told of every outcome, in
/// no order, and ends the search by saying yes.
pub fn run_all(
    program: &Path,
    seeds: Range<u64>,
    is_enough: impl Fn(&Outcome) -> bool + Sync,
) -> Tally {
    let next = AtomicU64::new(seeds.start);
    let tally = Mutex::new(Tally::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let outcome = run_apart(program, seed);
            if is_enough(&outcome) {
                next.store(seeds.end, Ordering::Relaxed);
            }
            let mut tally = tally.lock();
            tally.seeds += 1;
            for (kind, count) in &outcome.counts {
                *tally.counts.entry(kind.clone()).or_default() += count;
            }
            if !outcome.violations.is_empty() {
                tally.failed.push(outcome);
            }
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    tally.into_inner()
}
