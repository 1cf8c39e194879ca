//! Every change that the agent makes to its files is written down; then the power fails at random
//! moments of that record. What was synced is on the disk; of what was not, the kernel may have written
//! back any part: single pages of files that were there, new ends of files in the order of the journal.
//!
//! [`crate::power_cut`] asks a real file system, which keeps to one of these ways; this asks for all of
//! them. Entries of directories count as durable at once here; there they do not.
//!
//! With the store as it once was (segments of 512 KiB, its own flusher every 500 ms, a sync every 360 KiB of
//! values) the long form lost 1,600 to 2,992 answered events in each of three runs, after 414 to 691 cuts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{BASIC, Site, nobody, request, seed, soak, until};
use crate::posters::{batch_of, checked_ids};
use crate::power_cut::open_and_read;
use crate::process::{Process, config_at, preload};

const GENERATION_EVENTS: u64 = 6_000;
const PAGE: usize = 4096;
const POSTERS: usize = 4;

/// One change, as `record_disk.c` writes it.
struct Change<'a> {
    kind: u8,
    path: &'a str,
    offset: usize,
    data: &'a [u8],
    /// Where it ends in the record.
    end: usize,
}

/// Reads the whole changes of a record; a process that was killed leaves a part of one.
fn changes(record: &[u8]) -> Vec<Change<'_>> {
    let mut changes = Vec::new();
    let mut rest = record;
    while let Some((head, behind)) = rest.split_at_checked(17) {
        let number = |from: usize, to: usize| {
            let mut bytes = [0; 8];
            bytes[..to - from].copy_from_slice(&head[from..to]);
            usize::try_from(u64::from_le_bytes(bytes)).unwrap()
        };
        let Some((path, behind)) = behind.split_at_checked(number(1, 5)) else {
            break;
        };
        let Some((data, behind)) = behind.split_at_checked(number(13, 17)) else {
            break;
        };
        rest = behind;
        changes.push(Change {
            kind: head[0],
            path: std::str::from_utf8(path).unwrap(),
            offset: number(5, 13),
            data,
            end: record.len() - rest.len(),
        });
    }
    changes
}

/// A file: what is surely on the disk, and what was done since.
#[derive(Default)]
struct File<'a> {
    synced: Vec<u8>,
    since: Vec<(usize, Option<&'a [u8]>)>,
}

impl<'a> File<'a> {
    fn sync(&mut self) {
        for (offset, data) in std::mem::take(&mut self.since) {
            put(&mut self.synced, offset, data);
        }
    }

    fn unsynced_bytes(&self) -> usize {
        self.since
            .iter()
            .filter_map(|(_, data)| data.map(<[u8]>::len))
            .sum()
    }

    /// Returns what a power cut may leave of it.
    fn after_power_cut(&self, random: &mut StdRng) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        let written_back = [0.0, 0.5, 1.0][random.random_range(0..3)];
        // Sizes change in order, and what lies in new blocks comes before them.
        let journaled = match random.random_range(0..3) {
            0 => 0,
            1 => self.since.len(),
            _ => random.random_range(0..=self.since.len()),
        };
        for (index, (offset, data)) in self.since.iter().enumerate() {
            let Some(data) = data else {
                if index < journaled {
                    put(&mut bytes, *offset, None);
                }
                continue;
            };
            let mut at = *offset;
            while at < offset + data.len() {
                let end = ((at / PAGE + 1) * PAGE).min(offset + data.len());
                let is_new = end > self.synced.len();
                if is_new && index < journaled || !is_new && random.random_bool(written_back) {
                    put(&mut bytes, at, Some(&data[at - offset..end - offset]));
                }
                at = end;
            }
        }
        bytes
    }
}

/// Says whether this is the log of a store.
fn is_store(path: &str) -> bool {
    path.ends_with("/db")
}

/// Writes `data` at `offset`, or ends the file there.
fn put(bytes: &mut Vec<u8>, offset: usize, data: Option<&[u8]>) {
    let Some(data) = data else {
        return bytes.resize(offset, 0);
    };
    bytes.resize(bytes.len().max(offset + data.len()), 0);
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

/// The directory as the record has it so far.
#[derive(Default)]
struct Directory<'a> {
    files: BTreeMap<String, File<'a>>,
    directories: Vec<String>,
    /// Most bytes that a store wrote between two syncs.
    store_bytes_max: usize,
}

impl<'a> Directory<'a> {
    fn apply(&mut self, change: &Change<'a>) {
        let path = change.path.to_owned();
        if path.ends_with(" (deleted)") {
            // A file that is gone and still open.
            return;
        }
        match change.kind {
            b'C' => drop(self.files.insert(path, File::default())),
            b'W' => {
                let file = self.files.get_mut(&path).expect(change.path);
                file.since.push((change.offset, Some(change.data)));
            }
            b'T' => {
                let file = self.files.get_mut(&path).expect(change.path);
                file.since.push((change.offset, None));
            }
            b'S' => {
                if let Some(file) = self.files.get_mut(&path) {
                    if is_store(&path) {
                        self.store_bytes_max = self.store_bytes_max.max(file.unsynced_bytes());
                    }
                    file.sync();
                }
            }
            b'R' => {
                let to = std::str::from_utf8(change.data).unwrap();
                let file = self.files.remove(&path).expect("files are renamed");
                self.files.insert(to.to_owned(), file);
            }
            b'U' => drop(self.files.remove(&path)),
            b'M' => self.directories.push(path),
            b'D' => self.directories.retain(|other| *other != path),
            kind => panic!("change {kind}"),
        }
    }

    fn is_at_rest(&self) -> bool {
        let mut stores = self.files.iter().filter(|(path, _)| is_store(path));
        stores.all(|(_, file)| file.since.is_empty())
    }

    /// Returns the size of the segments of the stores, as their settings have it.
    fn segment_bytes(&self) -> usize {
        let mut settings = self
            .files
            .iter()
            .filter(|(path, _)| path.ends_with("/conf"));
        let text = String::from_utf8_lossy(&settings.next().unwrap().1.synced);
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("segment_size: "));
        line.unwrap().parse().unwrap()
    }

    fn write_after_power_cut(&self, to: &Path, random: &mut StdRng) {
        std::fs::create_dir_all(to).unwrap();
        for directory in &self.directories {
            std::fs::create_dir_all(to.join(directory)).unwrap();
        }
        for (path, file) in &self.files {
            std::fs::write(to.join(path), file.after_power_cut(random)).unwrap();
        }
    }
}

/// Posts batches until the agent is gone; returns the ids answered with 200, each with the length that
/// the record had by then.
async fn post(
    process: std::net::SocketAddr,
    name: String,
    record: std::path::PathBuf,
) -> Vec<(usize, Vec<String>)> {
    let mut answered = Vec::new();
    for number in 0.. {
        let hash = crc32fast::hash(format!("{name}-{number}").as_bytes());
        // Every third batch is as large as a library sends it.
        let count = if hash.is_multiple_of(3) {
            400
        } else {
            1 + hash % 12
        };
        let ids: Vec<String> = (0..count)
            .map(|index| format!("{name}-{number}-{index}"))
            .collect();
        let body = batch_of(&ids);
        match request(process, "POST", "/v1/batch", &[BASIC], body.as_bytes()).await {
            Ok(answer) if answer.status == 200 => {
                let length = std::fs::metadata(&record).unwrap().len();
                answered.push((usize::try_from(length).unwrap(), ids));
            }
            Ok(answer) if answer.status == 503 => tokio::task::yield_now().await,
            Ok(answer) => panic!("{answer:?}"),
            Err(_) => break,
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn power_may_fail_at_any_moment_and_keep_any_part() {
    let mut random = StdRng::seed_from_u64(seed("recorded cut"));
    let (runs, cuts) = (soak(2, 30), soak(25, 100));
    let (mut total, mut with_unsynced, mut most) = (0, 0, 0);
    for run in 0..runs {
        let site = Site::new();
        let tables: Arc<Mutex<Tables>> = Arc::default();
        let collector = Collector::start(&site, &tables, Manner::Prompt).await;
        // In every second run the buffer only grows.
        let to = if run % 2 == 0 {
            nobody()
        } else {
            collector.address
        };
        let [buffer, record] = ["buffer", "record"].map(|name| site.path(name));
        let library = preload(&site, "record_disk.c").await;
        let environment = [
            ("LD_PRELOAD", library.as_path()),
            ("RECORD_DIRECTORY", &buffer),
            ("RECORD_LOG", &record),
        ];
        let keys = format!(
            "reserve_bytes = 0\n disk_bytes_max = 500000000\n \
             generation_events_max = {GENERATION_EVENTS}"
        );
        let config = config_at(&site, to, &buffer, &keys);
        let process = Process::start_in(&site, &config, &environment).await;
        let posters: Vec<_> = (0..POSTERS)
            .map(|poster| {
                tokio::spawn(post(
                    process.address,
                    format!("{run}-{poster}"),
                    record.clone(),
                ))
            })
            .collect();
        let enough = random.random_range(40..120) << 20;
        until("enough is written", || {
            std::fs::metadata(&record).is_ok_and(|record| record.len() > enough)
        })
        .await;
        assert_eq!(process.kill().await, Vec::<String>::new());
        let mut answered = Vec::new();
        for poster in posters {
            answered.extend(poster.await.unwrap());
        }

        let record = std::fs::read(&record).unwrap();
        let changes = changes(&record);
        // Every second one while a store writes.
        let writes: Vec<usize> = (0..changes.len())
            .filter(|at| changes[*at].kind == b'W' && is_store(changes[*at].path))
            .collect();
        let mut moments: Vec<usize> = (0..cuts)
            .map(|cut| match cut % 2 {
                0 => random.random_range(0..changes.len()),
                _ => writes[random.random_range(0..writes.len())],
            })
            .collect();
        moments.sort_unstable();
        let (mut directory, mut applied) = (Directory::default(), 0);
        for (cut, moment) in moments.into_iter().enumerate() {
            for change in &changes[applied..=moment] {
                directory.apply(change);
            }
            applied = applied.max(moment + 1);
            total += 1;
            with_unsynced += usize::from(!directory.is_at_rest());
            let at = site.path(&format!("cut-{cut}"));
            directory.write_after_power_cut(&at, &mut random);
            let left = open_and_read(&at, GENERATION_EVENTS);
            let buffered = checked_ids(&left.records);
            let tables = tables.lock();
            let mut acknowledged = answered
                .iter()
                .filter(|(end, _)| *end <= changes[moment].end);
            let missing: Vec<&String> = acknowledged
                .by_ref()
                .flat_map(|(_, ids)| ids)
                .filter(|id| !buffered.contains_key(*id) && !tables.ids.contains(*id))
                .collect();
            assert!(
                missing.is_empty(),
                "run {run}, cut {cut} after change {moment} of {}: {} answered events are gone, {:?} first",
                changes.len(),
                missing.len(),
                missing[0],
            );
            assert_eq!(left.set_aside, Vec::<std::path::PathBuf>::new());
            drop(std::fs::remove_dir_all(&at));
        }
        // The head of a segment never waits for a sync together with the head of the one before: if only
        // the later one were kept, the store would ignore everything it holds.
        let (bytes, segment_bytes) = (directory.store_bytes_max, directory.segment_bytes());
        assert!(bytes < segment_bytes, "{bytes} bytes between two syncs");
        most = most.max(bytes);
    }
    println!(
        "recorded cuts: {total}, {with_unsynced} of them while a store wrote, up to {most} bytes between \
         two syncs; 0 lost"
    );
    assert!(
        with_unsynced > total / 3 && most > 200_000,
        "the disk was at rest"
    );
}
