//! The power fails at random moments while events come in, acks come back and generations rotate: the
//! pages that were never synced are gone, everything that was answered is there.
//!
//! One buffer lives through all cuts: each life of the real program goes on with the disk that the cut
//! before has left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use headwater_agent::buffer::{Buffer, Limits};
use headwater_agent::config::BufferConfig;
use headwater_protocol::Record;
use headwater_protocol::batch::{Slot, slots};
use headwater_protocol::{BatchHeader, Codec};
use headwater_service::clock::SystemClock;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::collector::{Collector, Manner, Tables};
use crate::disk::Disk;
use crate::harness::{Site, nobody, seed, soak, until};
use crate::posters::{Posters, checked_ids};
use crate::process::{Process, config_at};

const GENERATION_EVENTS: u64 = 200;
const DISK_MIB: u64 = 128;

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_loses_no_acknowledged_event() {
    let site = Site::new();
    let mut random = StdRng::seed_from_u64(seed("power cut"));
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let mut disk = Disk::make(&site.path(""), "disk-0", DISK_MIB);
    let mut acknowledged = BTreeSet::new();
    let mut generations = BTreeSet::new();
    let (mut found, mut synced, mut epoch) = (0, 0, None);
    let cuts = soak(12, 100);
    for cut in 1..=cuts {
        // In every third life the buffer only grows, if there is room for that.
        let to = if cut % 3 == 0 && disk.free_bytes() > DISK_MIB << 19 {
            nobody()
        } else {
            collector.address
        };
        let process = Process::start_with(&site, &toml(&site, to, &disk)).await;
        let posters = Posters::start(process.address, &format!("{cut}"), 6);
        for _ in 0..random.random_range(0..4) {
            // The kernel writes back what it likes, when it likes.
            let acked = posters.acked() + random.random_range(1..150);
            until("more is acknowledged", || posters.acked() >= acked).await;
            let files = files_below(&buffer(&disk));
            if let Some(Ok(file)) = files.choose(&mut random).map(std::fs::File::open) {
                file.sync_data().unwrap();
                synced += 1;
            }
        }
        let acked = posters.acked() + random.random_range(1..300);
        until("enough is acknowledged", || posters.acked() >= acked).await;
        process.signal(Signal::STOP);
        until("every thread stands still", || stands_still(&process)).await;
        generations.extend(generation_names(&buffer(&disk)));
        let after = disk.after_power_cut(&format!("disk-{cut}"));
        let panics = process.kill().await;
        assert_eq!(panics, Vec::<String>::new());
        acknowledged.extend(posters.gone().await);
        disk = after;

        let left = open_and_read(&buffer(&disk), GENERATION_EVENTS);
        assert_eq!(
            *epoch.get_or_insert(left.epoch),
            left.epoch,
            "nothing was lost"
        );
        assert_eq!(left.set_aside, Vec::<PathBuf>::new());
        let buffered = checked_ids(&left.records);
        found += buffered.len();
        let tables = tables.lock();
        let is_missing = |id: &&String| !buffered.contains_key(*id) && !tables.ids.contains(*id);
        let missing: Vec<&String> = acknowledged.iter().filter(is_missing).collect();
        assert!(
            missing.is_empty(),
            "answered events are gone after cut {cut}: {missing:?}"
        );
    }
    let toml = toml(&site, collector.address, &disk);
    let process = Process::start_with(&site, &toml).await;
    let all_arrived = || acknowledged.is_subset(&tables.lock().ids);
    until("all have arrived", all_arrived).await;
    assert_eq!(process.kill().await, Vec::<String>::new());
    let delivered = checked_ids(tables.lock().records()).len();
    println!(
        "power cut: {cuts} cuts, {} events answered, {found} read back after a cut, {delivered} \
         delivered, {} generations, {synced} files written back early; 0 lost, 0 panics",
        acknowledged.len(),
        generations.len(),
    );
    assert!(
        acknowledged.len() > 50 * cuts && found > 10 * cuts,
        "events"
    );
    assert!(
        generations.len() > cuts / 2 && synced > cuts / 4,
        "rotation"
    );
}

fn buffer(disk: &Disk) -> PathBuf {
    disk.directory().join("buffer")
}

fn toml(site: &Site, collector: std::net::SocketAddr, disk: &Disk) -> String {
    let keys = format!(
        "reserve_bytes = 1048576\n disk_bytes_max = 100000000\n \
         generation_events_max = {GENERATION_EVENTS}"
    );
    config_at(site, collector, &buffer(disk), &keys)
}

/// What a power cut has left, read as the shipper reads it.
pub(crate) struct Left {
    epoch: u64,
    pub(crate) records: Vec<Record>,
    /// Whatever an opening that failed or panicked has moved aside.
    pub(crate) set_aside: Vec<PathBuf>,
}

/// Opens the buffer in `directory` as an agent does after a power cut, and reads all of it.
pub(crate) fn open_and_read(directory: &Path, generation_events_max: u64) -> Left {
    let config = BufferConfig {
        directory: directory.to_owned(),
        disk_bytes_max: 500_000_000,
        reserve_bytes: 0,
        disk_free_bytes_min: 0,
        generation_events_max,
        ..BufferConfig::default()
    };
    let agent = "agent-1".parse().unwrap();
    let (buffer, _appender) = Buffer::open(&config, &agent, SystemClock::shared()).unwrap();
    let head = buffer.head();
    let limits = Limits {
        events: 500,
        bytes: 4 << 20,
    };
    let mut next = head.acked + 1;
    let mut records = Vec::new();
    while let Some(batch) = buffer.read(next, limits).unwrap() {
        assert_eq!(batch.first, next);
        let header = BatchHeader {
            epoch: head.stretch.epoch,
            first_sequence: head.stretch.sequence(batch.first),
            count: batch.count,
            codec: Codec::Zstd,
            body_bytes: batch.body.len() as u64,
        };
        records.extend(slots(&header, &batch.body).unwrap().map(|slot| {
            let Slot::Record(record) = slot else {
                panic!("a record is damaged");
            };
            *record
        }));
        next = batch.next();
    }
    assert_eq!(records.len() as u64, buffer.buffered());
    // A generation that was being made has acknowledged nothing yet: its half-written files may go.
    let newest = generation_names(directory)
        .into_iter()
        .max()
        .unwrap_or_default();
    let set_aside = files_below(&config.directory).into_iter().filter(|path| {
        let text = path.to_string_lossy();
        text.contains("quarantine/") || text.contains("damaged-") && !text.contains(&newest)
    });
    Left {
        epoch: head.stretch.epoch,
        records,
        set_aside: set_aside.collect(),
    }
}

fn generation_names(buffer: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(buffer.join("generations"));
    let entries = entries.into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Returns the files below a directory that may change meanwhile.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

/// Says whether all threads are stopped: each finishes its system call first.
fn stands_still(process: &Process) -> bool {
    let tasks = format!("/proc/{}/task", process.child.id().unwrap());
    std::fs::read_dir(tasks).unwrap().all(|task| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    })
}
