//! The directory never exceeds its bound, at any moment of an overload, and is small again within 5 s of
//! a drain (D-3).

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use headwater_agent::buffer::Buffer;
use headwater_agent::config::BufferConfig;
use headwater_service::clock::SystemClock;
use parking_lot::Mutex;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{BASIC, Site, batch, request, soak, until, until_async};
use crate::process::{Process, config_at};

/// What the product promises: back to at most two generations this long after a drain.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Returns the bytes of the directory on disk. What is only ever deleted is counted last, so that room
/// that goes from one file to another during the walk never counts twice.
fn directory_bytes(directory: &Path) -> u64 {
    let own = |path: &Path| std::fs::symlink_metadata(path).map_or(0, |file| file.blocks() * 512);
    let below = |path: &Path| -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths.reverse();
        paths
    };
    let is_generations = |path: &Path| path.ends_with("generations");
    let (generations, others): (Vec<_>, Vec<_>) = below(directory)
        .into_iter()
        .partition(|path| is_generations(path));
    let others: u64 = others
        .iter()
        .map(|path| own(path) + directory_bytes_of(path))
        .sum();
    let generations: u64 = generations
        .iter()
        .map(|path| {
            own(path)
                + below(path)
                    .iter()
                    .map(|path| own(path) + directory_bytes_of(path))
                    .sum::<u64>()
        })
        .sum();
    own(directory) + others + generations
}

fn directory_bytes_of(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let own = std::fs::symlink_metadata(entry.path()).map_or(0, |file| file.blocks() * 512);
            own + directory_bytes_of(&entry.path())
        })
        .sum()
}

/// Measures without a pause until it is dropped.
struct Sampler {
    stop: Arc<AtomicBool>,
    samples: Arc<AtomicU64>,
    largest: Arc<AtomicU64>,
}

impl Sampler {
    fn start(directory: &Path) -> Self {
        let sampler = Self {
            stop: Arc::default(),
            samples: Arc::default(),
            largest: Arc::default(),
        };
        let (stop, samples) = (sampler.stop.clone(), sampler.samples.clone());
        let (largest, directory) = (sampler.largest.clone(), directory.to_owned());
        std::thread::spawn(move || {
            while !stop.load(Relaxed) {
                largest.fetch_max(directory_bytes(&directory), Relaxed);
                samples.fetch_add(1, Relaxed);
            }
        });
        sampler
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_stays_in_its_bound_and_gives_room_back() {
    // A bound that leaves room for little, and one with several generations and a reserve.
    for (bound, keys) in [
        (
            24_u64 << 20,
            "reserve_bytes = 0\n generation_events_max = 500",
        ),
        (
            64 << 20,
            "reserve_bytes = 4194304\n generation_events_max = 3000",
        ),
    ] {
        overload(bound, keys).await;
    }
}

async fn overload(bound: u64, keys: &str) {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let address = collector.address;
    collector.stop().await;
    let keys = format!("disk_bytes_max = {bound}\n {keys}\n[dedup]\nids_max = 20000");
    let toml = config_at(&site, address, &site.buffer(), &keys);
    let agent = Process::start_with(&site, &toml).await;
    let sampler = Sampler::start(&site.buffer());
    let accepted: Arc<AtomicU64> = Arc::default();
    let refused: Arc<AtomicU64> = Arc::default();
    let end: Arc<AtomicBool> = Arc::default();
    let posters: Vec<_> = (0..4_usize)
        .map(|poster| {
            let (accepted, refused) = (accepted.clone(), refused.clone());
            let (end, address) = (end.clone(), agent.address);
            tokio::spawn(async move {
                for number in 0.. {
                    if end.load(Relaxed) {
                        break;
                    }
                    // From many small events to one body of megabytes.
                    let (count, padding) =
                        [(200, 300), (20, 9_000), (40, 0), (4, 700_000)][(number + poster) % 4];
                    let ids: Vec<String> = (0..count)
                        .map(|index| format!("{poster}-{number}-{index}"))
                        .collect();
                    let body = batch(ids.iter().map(String::as_str), padding);
                    let answer = request(address, "POST", "/v1/batch", &[BASIC], body.as_bytes());
                    match answer.await.unwrap().status {
                        200 => accepted.fetch_add(body.len() as u64, Relaxed),
                        503 | 429 => refused.fetch_add(body.len() as u64, Relaxed),
                        status => panic!("{status}"),
                    };
                }
            })
        })
        .collect();
    // Full, drained for a while, full again.
    let mut most_generations = 0;
    for _ in 0..soak(1, 12) {
        let (took, turned_away) = (accepted.load(Relaxed), refused.load(Relaxed));
        until("ten times what fits is offered", || {
            let fits = (accepted.load(Relaxed) - took).max(bound / 8);
            refused.load(Relaxed) - turned_away > 10 * fits
        })
        .await;
        most_generations = most_generations.max(generations(&site));
        let took = accepted.load(Relaxed);
        let collector = Collector::start_at(&site, address, &tables, Manner::Prompt).await;
        until("what is acknowledged gives room", || {
            accepted.load(Relaxed) > took + bound / 8
        })
        .await;
        collector.stop().await;
    }
    end.store(true, Relaxed);
    for poster in posters {
        poster.await.unwrap();
    }
    let _collector = Collector::start_at(&site, address, &tables, Manner::Prompt).await;
    until_async("the buffer is drained", async || {
        agent.metric("agent_events_acknowledged_total").await
            >= agent
                .metric("agent_events_received_total{verdict=\"accepted\"}")
                .await
    })
    .await;
    let drained = Instant::now();
    until("at most two generations are left", || {
        generations(&site) <= 2
    })
    .await;
    assert!(drained.elapsed() <= BACK_WITHIN, "{:?}", drained.elapsed());
    let largest = sampler.largest.load(Relaxed);
    println!(
        "disk bound {bound}: largest {largest} bytes in {} samples, {} bytes accepted, {} refused, \
         {most_generations} generations, then {} in {:?}",
        sampler.samples.load(Relaxed),
        accepted.load(Relaxed),
        refused.load(Relaxed),
        generations(&site),
        drained.elapsed(),
    );
    assert!(largest <= bound, "D-3: `{largest}` of `{bound}` bytes");
    assert!(
        largest > bound / 2 && most_generations > 2,
        "the bound was reached"
    );
    assert_eq!(agent.kill().await, Vec::<String>::new());
}

fn generations(site: &Site) -> usize {
    std::fs::read_dir(site.buffer().join("generations"))
        .unwrap()
        .count()
}

#[test]
fn one_commit_grows_the_directory_by_less_than_it_has_to_fit() {
    const GROUP_BYTES: usize = 20 << 20;
    for size in [60, 600, 2_400, 4_900, 5_100, 60_000, 1_000_000] {
        let directory = tempfile::tempdir().unwrap();
        let config = BufferConfig {
            directory: directory.path().to_owned(),
            reserve_bytes: 0,
            disk_free_bytes_min: 0,
            ..BufferConfig::default()
        };
        let agent = "agent-1".parse().unwrap();
        let (_buffer, mut appender) = Buffer::open(&config, &agent, SystemClock::shared()).unwrap();
        let record = vec![0xc0; size];
        let sampler = Sampler::start(directory.path());
        let mut before = directory_bytes(directory.path());
        // A fresh store, and one that already holds something.
        for group_bytes in [GROUP_BYTES, GROUP_BYTES, 100_000] {
            let group = vec![record.as_slice(); (group_bytes / size).max(1)];
            let bytes = (group.len() * size) as u64;
            appender.append(&group).unwrap();
            let after = sampler
                .largest
                .load(Relaxed)
                .max(directory_bytes(directory.path()));
            let growth = after - before;
            println!("disk bound: {bytes} bytes in records of {size} take {growth} more");
            assert!(growth <= 3 * bytes + (2 << 20), "records of {size} bytes");
            before = directory_bytes(directory.path());
        }
    }
}
