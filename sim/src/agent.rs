//! An agent: the real buffer on a directory in memory and the real shipper, life after life. Power cuts
//! leave the disk as it is at that moment; disks are restored from backups and wiped.
//!
//! Everything that the buffer writes is synced before it returns, but for one mark, which a power cut
//! takes back. What else a power cut can do to a disk is the matter of the agent's own tests
//! (`agent/tests/agent/power_cut.rs`, `recorded_cut.rs`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use headwater_agent::Config;
use headwater_agent::buffer::{Appender, Buffer};
use headwater_agent::config::{BufferConfig, CollectorConfig};
use headwater_agent::reload::Settings;
use headwater_agent::shipper::{self, Parts};
use headwater_protocol::{AgentId, Record, SourceKind};
use headwater_service::tls::TlsFiles;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::collector::Life;
use crate::host::Point;
use crate::link::Links;
use crate::run;
use crate::world::World;

/// Where the unsynced mark stands in the file `marks` of a buffer.
const UNSYNCED_MARK: std::ops::Range<usize> = 4096..4608;

/// Longer than a batch can be on its way to the table, in a calm.
const RESTORED_AFTER: Duration = Duration::from_secs(90);

/// What a collector makes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `raw.events` takes it.
    Good,
    /// No table takes it but `raw.quarantine`.
    Bad,
    /// The tracking plan of the collector decides.
    Debatable,
}

/// An event that a client was told is safe.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    /// Names the event, in whichever table it ends.
    pub(crate) id: String,
    /// What a collector makes of it.
    pub(crate) kind: Kind,
    /// The disk that held it was wiped or set back afterwards: it may be gone.
    pub(crate) is_excused: bool,
}

/// A copy of an agent's disk.
struct Backup {
    directory: PathBuf,
    /// Number of events accepted before it.
    accepted: usize,
}

/// One agent.
pub(crate) struct Agent {
    world: Arc<World>,
    index: usize,
    pub(crate) id: AgentId,
    /// Everything of this agent, all lives.
    home: PathBuf,
    config: Config,
    disks: u32,
    backup: Option<Backup>,
    running: Option<Running>,
    pub(crate) accepted: Vec<Accepted>,
    /// Events that may be stored and whose clients never heard of it: they may be anywhere or nowhere.
    pub(crate) unheard: Vec<Accepted>,
    /// A disk was wiped or set back, so that events may come again under other numbers.
    pub(crate) disk_changed: bool,
}

struct Running {
    buffer: Buffer,
    appender: Appender,
    shipper: JoinHandle<()>,
    stop: CancellationToken,
    maintained: Instant,
}

impl Agent {
    pub(crate) fn new(world: &Arc<World>, index: usize) -> Self {
        let id: AgentId = format!("agent-{index}").parse().expect("a plain name");
        let dice = &world.dice;
        let mut addresses: Vec<String> = (0..world.knobs.collectors).map(World::address).collect();
        let first = dice.index(addresses.len());
        addresses.rotate_left(first);
        let home = world.directory.join(id.as_str());
        let nowhere = TlsFiles {
            certificate: "-".into(),
            key: "-".into(),
            ca: "-".into(),
        };
        let config = Config {
            buffer: BufferConfig {
                directory: home.join("disk-0"),
                disk_bytes_max: 1 << 30,
                disk_free_bytes_min: 0,
                reserve_bytes: 0,
                generation_events_max: dice.within(10..=60),
                ..BufferConfig::default()
            },
            collector: CollectorConfig {
                addresses,
                batch_events_max: u32::try_from(dice.within(1..=9)).unwrap_or(1),
                linger_ms: dice.within(1..=150),
                batches_in_flight_max: u32::try_from(dice.within(1..=6)).unwrap_or(1),
                connect_timeout_ms: 3_000,
                reply_timeout_ms: dice.within(3_000..=12_000),
                stall_timeout_ms: dice.within(2_000..=10_000),
                handover_drain_ms: dice.within(500..=4_000),
                preferred_probe_ms: dice.within(1_000..=8_000),
                backoff_max_ms: 2_000,
                session_age_max_s: dice.within(3..=30),
                ..CollectorConfig::default()
            },
            ..Config::new(nowhere, Vec::new())
        };
        Self {
            world: world.clone(),
            index,
            id,
            home,
            config,
            disks: 0,
            backup: None,
            running: None,
            accepted: Vec::new(),
            unheard: Vec::new(),
            disk_changed: false,
        }
    }

    /// Takes events and meets with misfortune until the faults are over; then ships what is left.
    pub(crate) async fn run(mut self) -> Self {
        self.start();
        while !self.world.knobs.is_healed() {
            tokio::time::sleep(self.world.dice.ms(5..=400)).await;
            self.maintain();
            let (dice, knobs) = (self.world.dice.clone(), &self.world.knobs);
            if !knobs.strikes(&dice, knobs.agent_faults) {
                self.take_events();
                continue;
            }
            match dice.index(if knobs.disks_change { 8 } else { 4 }) {
                0 | 1 => self.power_cut().await,
                2 => self.power_cut_before_the_answer().await,
                3 => self.stop().await,
                4..=6 if self.backup.is_none() => self.back_up(),
                4..=6 => self.restore().await,
                _ => self.wipe().await,
            }
        }
        // Whatever happened to it, it takes events.
        for _ in 0..3 {
            tokio::time::sleep(self.world.dice.ms(5..=400)).await;
            self.take_events();
        }
        self
    }

    /// Ships until nothing is left; false when that takes longer than `most`.
    pub(crate) async fn drains(&mut self, most: Duration) -> bool {
        let until = Instant::now() + most;
        while self.buffered() > 0 {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.maintain();
        }
        true
    }

    pub(crate) fn buffered(&self) -> u64 {
        self.running.as_ref().map_or(0, |it| it.buffer.buffered())
    }

    /// Ends the agent for good.
    pub(crate) async fn end(&mut self) {
        self.kill().await;
    }

    fn start(&mut self) {
        let world = &self.world;
        let clock = world.clock.clone();
        let opened = Buffer::open(&self.config.buffer, &self.id, clock.clone());
        let (buffer, appender) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                world
                    .trace
                    .violation(format!("D-2: {} cannot open its buffer: {error}", self.id));
                return;
            }
        };
        let stop = CancellationToken::new();
        let parts = Parts {
            buffer: buffer.clone(),
            agent_id: self.id.clone(),
            settings: Settings::fixed(self.config.clone()),
            credentials: world.credentials.clone(),
            network: Arc::new(Links {
                world: world.clone(),
                agent: self.id.clone(),
                buffer: buffer.clone(),
            }),
            clock,
            chance: Arc::new(world.dice.clone()),
        };
        let head = buffer.head();
        world.trace.line(format_args!(
            "{} starts: epoch {} acked {} sent {} buffered {}",
            self.id,
            head.stretch.epoch,
            head.acked,
            head.sent,
            buffer.buffered()
        ));
        let shipper = tokio::spawn(shipper::run_over(parts, stop.clone()));
        self.running = Some(Running {
            buffer,
            appender,
            shipper,
            stop,
            maintained: Instant::now(),
        });
    }

    fn maintain(&mut self) {
        if let Some(running) = &mut self.running
            && running.maintained.elapsed() >= Duration::from_secs(1)
        {
            running.appender.maintain();
            running.maintained = Instant::now();
        }
    }

    /// Appends some events and tells the client so.
    fn take_events(&mut self) {
        let count = self.world.dice.within(1..=6);
        for event in self.append(count) {
            self.accepted.push(event);
        }
    }

    /// Appends events; returns those that the client would be told of.
    fn append(&mut self, count: u64) -> Vec<Accepted> {
        let Some(running) = &mut self.running else {
            return Vec::new();
        };
        let world = &self.world;
        let mut events = Vec::new();
        let mut records = Vec::new();
        for _ in 0..count {
            let kind = if world.knobs.strikes(&world.dice, world.knobs.invalid) {
                world.trace.count("event: invalid");
                Kind::Bad
            } else if world.knobs.strikes(&world.dice, world.knobs.debatable) {
                world.trace.count("event: debatable");
                Kind::Debatable
            } else {
                Kind::Good
            };
            let id = world.next_event(self.index);
            records.push(record(world, &id, kind).encode());
            events.push(Accepted {
                id,
                kind,
                is_excused: false,
            });
        }
        let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        match running.appender.append(&records) {
            Ok(()) => {
                world.trace.count("events: accepted");
                events
            }
            Err(error) => {
                world
                    .trace
                    .line(format_args!("{} refuses events: {error}", self.id));
                world.trace.count("events: refused");
                // Of a store that failed it is not known.
                self.unheard.extend(events);
                Vec::new()
            }
        }
    }

    /// Ends the process without a word and leaves the files to nobody.
    async fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            running.shipper.abort();
            let outcome = running.shipper.await;
            self.ended(outcome);
        }
    }

    /// Looks at how the shipper has ended: by itself or cancelled, never in a panic.
    fn ended(&self, outcome: Result<(), JoinError>) {
        if outcome.is_err_and(|error| error.is_panic()) {
            self.world
                .trace
                .violation(format!("{} panics; see above", self.id));
        }
    }

    async fn power_cut(&mut self) {
        let disk = self.copy_disk();
        if self.world.dice.says(700) {
            blank_unsynced_mark(&disk);
        }
        self.world.trace.count("agent: power cut");
        self.world
            .trace
            .line(format_args!("{} loses power", self.id));
        self.kill().await;
        self.begin_on(disk).await;
    }

    /// The events are on the disk, and the client never hears of it.
    async fn power_cut_before_the_answer(&mut self) {
        let unheard = self.append(3);
        self.unheard.extend(unheard);
        self.world.trace.count("agent: power cut before the answer");
        self.power_cut().await;
    }

    /// Stops in good order.
    async fn stop(&mut self) {
        self.world.trace.count("agent: stopped");
        self.world.trace.line(format_args!("{} stops", self.id));
        if let Some(running) = self.running.take() {
            running.stop.cancel();
            let outcome = running.shipper.await;
            self.ended(outcome);
            running.appender.close();
        }
        let disk = self.copy_disk();
        self.begin_on(disk).await;
    }

    fn back_up(&mut self) {
        self.world.trace.count("agent: disk backed up");
        self.world
            .trace
            .line(format_args!("{} is backed up", self.id));
        let directory = self.copy_disk();
        self.backup = Some(Backup {
            directory,
            accepted: self.accepted.len(),
        });
    }

    async fn restore(&mut self) {
        let Some(backup) = self.backup.take() else {
            return;
        };
        // With one collector there is no other to come back to.
        let known_to = match self.world.knobs.collectors {
            1 => self.world.life(&World::address(0)),
            _ => None,
        };
        if let Some(life) = &known_to {
            life.host.awaits(&self.id);
        }
        self.kill().await;
        self.disk_changed = true;
        self.world.trace.count("agent: disk restored");
        self.world
            .trace
            .line(format_args!("{} goes on with its backup", self.id));
        for lost in &mut self.accepted[backup.accepted..] {
            lost.is_excused = true;
        }
        settle(&self.world, known_to).await;
        // Longer than it takes to start.
        run::storm(&self.world, self.world.dice.ms(2_000..=5_000));
        self.begin_on(backup.directory).await;
    }

    async fn wipe(&mut self) {
        self.kill().await;
        self.disk_changed = true;
        self.world.trace.count("agent: disk wiped");
        self.world
            .trace
            .line(format_args!("{} goes on with an empty disk", self.id));
        for lost in &mut self.accepted {
            lost.is_excused = true;
        }
        self.backup = None;
        let disk = self.next_disk();
        self.begin_on(disk).await;
    }

    async fn begin_on(&mut self, disk: PathBuf) {
        tokio::time::sleep(self.world.dice.ms(20..=2_000)).await;
        self.config.buffer.directory = disk;
        self.start();
    }

    fn next_disk(&mut self) -> PathBuf {
        self.disks += 1;
        self.home.join(format!("disk-{}", self.disks))
    }

    /// Copies the disk as it is now.
    fn copy_disk(&mut self) -> PathBuf {
        let to = self.next_disk();
        copy(&self.config.buffer.directory, &to).expect("the directory can be copied");
        to
    }
}

/// Waits as long as docs/exactly-once.md asks for before an old disk is used: until what its former life has
/// sent is settled, or staged in the one life of a collector that the agent comes back to.
async fn settle(world: &World, known_to: Option<Arc<Life>>) {
    let Some(life) = known_to else {
        return tokio::time::sleep(RESTORED_AFTER).await;
    };
    // Longer than the way of a message.
    tokio::time::sleep(world.dice.ms(2_000..=6_000)).await;
    tokio::time::sleep_until(life.alone_from).await;
    // What came while it was frozen is staged or dropped as soon as it thaws; a life that has ended never does.
    let thawed = life.host.pass(Point::Other);
    drop(tokio::time::timeout(RESTORED_AFTER, thawed).await);
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn blank_unsynced_mark(disk: &Path) {
    let path = disk.join("marks");
    let mut bytes = fs::read(&path).expect("every buffer has marks");
    bytes[UNSYNCED_MARK].fill(b' ');
    fs::write(path, bytes).expect("marks can be written");
}

/// Returns an event as the agent's front would store it.
fn record(world: &World, id: &str, kind: Kind) -> Record {
    // The mild plan does not store `code`.
    let event = |name: &str| {
        let properties = r#"{"code":"1234"}"#;
        format!(
            r#"{{"type":"track","event":"{name}","userId":"u","properties":{properties},"messageId":"{id}"}}"#
        )
    };
    let body = match kind {
        Kind::Good => event("Signed In"),
        // A strict plan does not know it.
        Kind::Debatable => event("Something Else"),
        Kind::Bad => format!("no event {id}"),
    };
    let now = world.clock.now();
    Record::new(now, "acme", "web", SourceKind::Server, "/v1/batch", body)
}
