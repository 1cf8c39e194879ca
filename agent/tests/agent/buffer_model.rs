//! The buffer against a reference model: a list of records and two numbers. It lies on a disk of its own,
//! so that the power can fail between any two steps.

use std::path::{Path, PathBuf};

use headwater_agent::buffer::{Appender, Batch, Buffer, Limits};
use headwater_agent::config::BufferConfig;
use headwater_service::clock::SystemClock;
use proptest::prelude::*;

use crate::disk::Disk;
use crate::harness::soak;
use crate::power_cut::files_below;

#[derive(Debug, Clone)]
enum Action {
    Append(Vec<usize>),
    /// Read this many events, acknowledge this share of them (of 4).
    ReadAndAcknowledge(u32, u64),
    Maintain,
    /// Close with the marks written.
    Reopen,
    /// Drop everything as a killed process would.
    Kill,
    /// Lose every page that was never synced, except of these files, which the kernel happened to
    /// write back.
    PowerCut(Vec<prop::sample::Index>),
}

fn action() -> impl Strategy<Value = Action> {
    let size = prop_oneof![6 => 1_usize..900, 1 => 4_980_usize..5_010, 1 => 5_000_usize..40_000];
    prop_oneof![
        6 => proptest::collection::vec(size, 1..30).prop_map(Action::Append),
        4 => (1_u32..60, 0_u64..=4).prop_map(|(count, share)| Action::ReadAndAcknowledge(count, share)),
        1 => Just(Action::Maintain),
        1 => Just(Action::Reopen),
        1 => Just(Action::Kill),
        1 => proptest::collection::vec(any::<prop::sample::Index>(), 0..4).prop_map(Action::PowerCut),
    ]
}

struct Subject {
    buffer: Buffer,
    appender: Appender,
}

fn open(directory: &Path) -> Subject {
    let config = BufferConfig {
        directory: directory.to_owned(),
        generation_events_max: 40,
        reserve_bytes: 0,
        disk_free_bytes_min: 0,
        ..BufferConfig::default()
    };
    let agent = "agent-1".parse().unwrap();
    let (buffer, appender) = Buffer::open(&config, &agent, SystemClock::shared()).unwrap();
    Subject { buffer, appender }
}

/// A record that names its position: MessagePack binary, so that it is one value.
fn record(position: usize, size: usize) -> Vec<u8> {
    let mut bytes = vec![0xc6];
    bytes.extend_from_slice(&u32::try_from(size + 8).unwrap().to_be_bytes());
    bytes.extend_from_slice(&(position as u64).to_be_bytes());
    bytes.resize(5 + 8 + size, position as u8);
    bytes
}

fn read_all(buffer: &Buffer, mut from: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(batch) = read(buffer, from, 1000) {
        from = batch.next();
        out.extend(batch.body);
    }
    out
}

fn read(buffer: &Buffer, from: u64, events: u32) -> Option<Batch> {
    buffer
        .read(
            from,
            Limits {
                events,
                bytes: 50_000,
            },
        )
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: soak(20, 400) as u32, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn buffer_is_a_list_with_two_marks(actions in proptest::collection::vec(action(), 1..25)) {
        let parent = tempfile::tempdir().unwrap();
        let mut disk = Disk::make(parent.path(), "disk", 32);
        let mut subject = open(&directory(&disk));
        let epoch = subject.buffer.head().stretch.epoch;
        let mut records: Vec<Vec<u8>> = Vec::new();
        let mut acked = 0_u64;
        for (step, action) in actions.into_iter().enumerate() {
            let crashes = matches!(action, Action::Kill | Action::PowerCut(_));
            match action {
                Action::Append(sizes) => {
                    let new: Vec<Vec<u8>> = sizes
                        .iter()
                        .enumerate()
                        .map(|(index, &size)| record(records.len() + index, size))
                        .collect();
                    let group: Vec<&[u8]> = new.iter().map(Vec::as_slice).collect();
                    subject.appender.append(&group).unwrap();
                    records.extend(new);
                }
                Action::ReadAndAcknowledge(count, share) => {
                    let batch = read(&subject.buffer, acked + 1, count);
                    prop_assert_eq!(batch.is_some(), acked < records.len() as u64);
                    if let Some(batch) = batch {
                        let first = usize::try_from(acked).unwrap();
                        let expected = records[first..first + batch.count as usize].concat();
                        prop_assert!(batch.damaged.is_empty());
                        prop_assert!(batch.body == expected, "batch differs");
                        acked += u64::from(batch.count) * share / 4;
                        subject.buffer.acknowledge(acked);
                    }
                }
                Action::Maintain => subject.appender.maintain(),
                Action::Reopen => {
                    let Subject { appender, buffer } = subject;
                    appender.close();
                    drop(buffer);
                    subject = open(&directory(&disk));
                }
                Action::Kill => {
                    drop(subject);
                    subject = open(&directory(&disk));
                }
                Action::PowerCut(written_back) => {
                    let files = files_below(&directory(&disk));
                    for file in written_back {
                        // The store may have deleted it since.
                        if let Ok(file) = std::fs::File::open(file.get(&files)) {
                            file.sync_all().unwrap();
                        }
                    }
                    let after = disk.after_power_cut(&format!("disk-{step}"));
                    drop(subject);
                    disk = after;
                    subject = open(&directory(&disk));
                }
            }
            // A crash may forget acks since the last mark: those events are sent again.
            let kept = subject.buffer.head().acked;
            prop_assert!(kept == acked || (crashes && kept < acked));
            acked = kept;
            let head = subject.buffer.head();
            prop_assert_eq!((head.stretch.epoch, head.stretch.after), (epoch, 0));
            prop_assert_eq!(subject.buffer.buffered(), records.len() as u64 - acked);
            prop_assert_eq!(subject.appender.next(), records.len() as u64 + 1);
        }
        let rest = records[usize::try_from(acked).unwrap()..].concat();
        prop_assert!(read_all(&subject.buffer, acked + 1) == rest, "the rest differs");
        let blobs = files_below(&directory(&disk).join("generations"));
        let blobs = blobs.iter().filter(|path| path.to_string_lossy().contains("blobs/"));
        prop_assert_eq!(blobs.count(), 0, "values never leave the synced log");
    }
}

fn directory(disk: &Disk) -> PathBuf {
    disk.directory().join("buffer")
}

#[test]
fn another_agent_may_not_use_the_buffer() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let config = BufferConfig {
        directory: directory.path().to_owned(),
        ..BufferConfig::default()
    };
    let other = "agent-2".parse().unwrap();
    let error = Buffer::open(&config, &other, SystemClock::shared()).unwrap_err();
    assert!(error.to_string().contains("agent-1"), "{error}");
}

#[test]
fn a_new_epoch_that_the_disk_does_not_take_has_not_begun() {
    let directory = tempfile::tempdir().unwrap();
    let mut subject = open(directory.path());
    subject.appender.append(&[b"\xc0"]).unwrap();
    let before = subject.buffer.head();
    let in_the_way = directory.path().join("buffer.json.new");
    std::fs::create_dir(&in_the_way).unwrap();
    subject.buffer.renumber().unwrap_err();
    assert_eq!(subject.buffer.head(), before);
    std::fs::remove_dir(in_the_way).unwrap();
    subject.buffer.renumber().unwrap();
    assert!(subject.buffer.head().stretch.epoch > before.stretch.epoch);
}

#[test]
fn lost_marks_and_identity_start_a_new_epoch_and_keep_the_events() {
    for file in ["marks", "buffer.json"] {
        let directory = tempfile::tempdir().unwrap();
        let mut subject = open(directory.path());
        let epoch = subject.buffer.head().stretch.epoch;
        subject.appender.append(&[b"\xc0", b"\xc1"]).unwrap();
        drop(subject);
        std::fs::write(directory.path().join(file), b"{").unwrap();
        let subject = open(directory.path());
        let head = subject.buffer.head();
        assert!(head.stretch.epoch > epoch, "{file}");
        assert_eq!(subject.buffer.buffered(), 2, "{file}");
        assert_eq!(
            read_all(&subject.buffer, head.acked + 1),
            b"\xc0\xc1",
            "{file}"
        );
    }
}

#[test]
fn silently_lost_tail_is_noticed_and_its_numbers_are_not_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut subject = open(directory.path());
    let epoch = subject.buffer.head().stretch.epoch;
    subject.appender.append(&[b"\xc0", b"\xc0"]).unwrap();
    let generation = directory
        .path()
        .join("generations")
        .join(format!("{:020}", 1));
    let early = directory.path().join("early");
    crate::harness::copy_directory(&generation, &early);
    subject
        .appender
        .append(&[b"\xc1", b"\xc1", b"\xc1"])
        .unwrap();
    subject.appender.close();
    drop(subject.buffer);
    std::fs::remove_dir_all(&generation).unwrap();
    std::fs::rename(&early, &generation).unwrap();

    let mut subject = open(directory.path());
    assert_eq!(subject.buffer.buffered(), 2);
    assert_eq!(read_all(&subject.buffer, 1), b"\xc0\xc0");
    subject.appender.append(&[b"\xc2"]).unwrap();
    assert_eq!(
        subject.buffer.head().stretch.epoch,
        epoch,
        "what is left keeps its numbers"
    );
    subject.buffer.acknowledge(2);
    let head = subject.buffer.head();
    assert!(head.stretch.epoch > epoch);
    assert_eq!(head.stretch.sequence(head.acked + 1), 1);
    assert_eq!(read_all(&subject.buffer, head.acked + 1), b"\xc2");
}

#[test]
fn readable_part_of_a_damaged_generation_can_be_read_again_until_its_ack() {
    let directory = tempfile::tempdir().unwrap();
    let mut subject = open(directory.path());
    // Three generations of 40, in groups of 10; the second loses its last 20.
    let (generation, early) = (
        directory
            .path()
            .join("generations")
            .join(format!("{:020}", 41)),
        directory.path().join("early"),
    );
    for group in 0..12 {
        let records: Vec<Vec<u8>> = (0..10)
            .map(|index| record(group * 10 + index, 50))
            .collect();
        let group_of_slices: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        subject.appender.append(&group_of_slices).unwrap();
        if group == 5 {
            crate::harness::copy_directory(&generation, &early);
        }
    }
    subject.appender.close();
    drop(subject.buffer);
    std::fs::remove_dir_all(&generation).unwrap();
    std::fs::rename(&early, &generation).unwrap();

    let subject = open(directory.path());
    let buffer = &subject.buffer;
    let expected: Vec<u8> = (0..60).flat_map(|position| record(position, 50)).collect();
    let first = read(buffer, 1, 1000).unwrap();
    assert_eq!((first.count, first.damaged.len()), (60, 0));
    assert!(
        buffer
            .read(
                61,
                Limits {
                    events: 10,
                    bytes: 9
                }
            )
            .is_err()
    );
    assert_eq!(buffer.buffered(), 100, "twenty are lost");
    // The session fails before its acks: everything readable is still there.
    assert!(read_all(buffer, 1) == expected, "the readable part differs");
    buffer.acknowledge(60);
    let head = buffer.head();
    assert_eq!((head.acked, head.stretch.sequence(81)), (80, 1));
    assert_eq!(read(buffer, 81, 1000).unwrap().count, 40);
    let quarantined = std::fs::read_dir(directory.path().join("quarantine")).unwrap();
    assert_eq!(quarantined.count(), 1, "kept for a look");
}
