//! The window against a model, and its files against kills and damage.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use headwater_protocol::{EventType, SourceKind};
use proptest::prelude::*;

use super::*;

const EPOCH: Epoch = 1_770_000_000_000;

fn open(directory: &Path, ids_max: usize) -> Window {
    Window::open(directory, ids_max, EPOCH, Position::MAX)
        .unwrap()
        .0
}

fn id(number: u64) -> Fingerprint {
    // Spread like a hash: the set relies on it.
    Fingerprint(u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

/// Writes one group; returns how many of the numbers were new.
fn store(window: &mut Window, numbers: impl IntoIterator<Item = u64>, through: Position) -> usize {
    let new = numbers.into_iter().filter(|n| window.admit(id(*n))).count();
    window.commit(through);
    new
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory.join("window")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn an_event_enters_only_when_its_group_is_durable() {
    let directory = tempfile::tempdir().unwrap();
    let mut window = open(directory.path(), 100);
    assert!(window.admit(id(1)));
    assert!(!window.admit(id(1)), "a copy in the same group");
    window.abort();
    assert!(!window.holds(id(1)), "not durable");
    assert!(window.admit(id(1)), "a failed group leaves nothing");
    window.commit(1);
    assert!(window.holds(id(1)));
    assert!(!window.admit(id(1)));
}

#[test]
fn ids_survive_a_kill_without_any_sync() {
    let directory = tempfile::tempdir().unwrap();
    let mut window = open(directory.path(), 100);
    store(&mut window, 0..10, 10);
    store(&mut window, 10..20, 20);
    // A kill: nothing is closed, synced or dropped.
    std::mem::forget(window);
    let window = open(directory.path(), 100);
    assert!((0..20).all(|n| window.holds(id(n))));
    assert!(!window.holds(id(20)));
}

#[test]
fn memory_and_files_keep_their_bound() {
    const IDS_MAX: usize = 1000;
    let directory = tempfile::tempdir().unwrap();
    let mut window = open(directory.path(), IDS_MAX);
    for group in 0..400_u64 {
        let first = group * 37;
        store(&mut window, first..first + 37, first + 37);
        assert!(window.newer.len() + window.older.len() <= IDS_MAX);
        let on_disk: u64 = files(directory.path())
            .iter()
            .map(|path| fs::metadata(path).unwrap().len())
            .sum();
        assert!(files(directory.path()).len() <= 2);
        assert!(on_disk <= 28 * IDS_MAX as u64 + 100, "{on_disk}");
        // The last half is always known, but for a group that was cut in two.
        let known = first.saturating_sub(IDS_MAX as u64 / 2 - 2 * 37)..first + 37;
        assert!(known.clone().all(|n| window.holds(id(n))), "{known:?}");
    }
    // A single group above the bound keeps it too.
    store(&mut window, 100_000..105_000, 200_000);
    assert!(window.newer.len() + window.older.len() <= IDS_MAX);
    let reopened = open(directory.path(), IDS_MAX);
    assert!(reopened.newer.len() + reopened.older.len() <= IDS_MAX);
}

#[test]
fn another_epoch_begins_empty() {
    let directory = tempfile::tempdir().unwrap();
    let mut window = open(directory.path(), 100);
    store(&mut window, 0..10, 10);
    // The buffer renumbers while it runs.
    window.maintain(EPOCH + 1);
    assert!(!window.holds(id(3)));
    store(&mut window, 20..30, 20);
    drop(window);
    let new = |epoch| Window::open(directory.path(), 100, epoch, 1000).unwrap().0;
    assert!(new(EPOCH + 1).holds(id(25)));
    // A new buffer in the same place.
    assert!(!new(EPOCH + 2).holds(id(25)));
    assert!(!new(EPOCH + 1).holds(id(25)), "the files are gone");
}

#[test]
fn ids_of_events_that_the_disk_lost_are_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let mut window = open(directory.path(), 100);
    store(&mut window, 0..10, 10);
    store(&mut window, 10..20, 20);
    drop(window);
    let mut window = Window::open(directory.path(), 100, EPOCH, 15).unwrap().0;
    assert!(window.holds(id(9)));
    assert!(!window.holds(id(10)));
    store(&mut window, 30..31, 16);
    drop(window);
    let window = open(directory.path(), 100);
    assert!(window.holds(id(30)), "written after the cut");
    assert!(!window.holds(id(10)));
}

#[test]
fn a_full_disk_forgets_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut window = open(directory.path(), 100);
    store(&mut window, 0..10, 10);
    // No directory, and the file is full: the next one cannot be begun.
    fs::remove_dir_all(directory.path().join("window")).unwrap();
    fs::write(directory.path().join("window"), b"").unwrap();
    store(&mut window, 10..60, 60);
    assert!(window.holds(id(15)), "memory goes on");
    window.maintain(EPOCH);
    // There is room again.
    fs::remove_file(directory.path().join("window")).unwrap();
    window.maintain(EPOCH);
    store(&mut window, 60..70, 70);
    drop(window);
    let window = open(directory.path(), 100);
    assert!(window.holds(id(65)));
}

#[test]
fn zero_turns_it_off_and_leaves_no_files() {
    let directory = tempfile::tempdir().unwrap();
    store(&mut open(directory.path(), 100), 0..10, 10);
    assert!(Window::open(directory.path(), 0, EPOCH, 10).is_none());
    assert!(!directory.path().join("window").exists());
}

#[test]
fn fingerprints_differ_in_every_part_and_under_every_key() {
    let record = |company: &str, source: &str, kind, body: &[u8]| Record {
        event_type: kind,
        ..Record::new(1, company, source, SourceKind::Browser, "/v1/batch", body)
    };
    let key = Fingerprinter { key: [7; 16] };
    let track = Some(EventType::Track);
    let first = record("acme", "web", track, b"{1}");
    let distinct = [
        first.clone(),
        record("acm", "eweb", track, b"{1}"),
        record("acme", "app", track, b"{1}"),
        record("acme", "web", Some(EventType::Page), b"{1}"),
        record("acme", "web", None, b"{1}"),
        record("acme", "web", track, b"{2}"),
        record("acme", "web", track, b"{1} "),
    ]
    .map(|record| key.fingerprint(&record));
    assert_eq!(HashSet::from(distinct).len(), distinct.len());
    // What a retry changes around the event does not count.
    let retry = Record {
        received_at: 2,
        attempt: Some(1),
        sent_at: Some("2026-01-01T00:00:00Z".to_owned()),
        skew_ms: Some(3),
        content_type: Some("text/plain".to_owned()),
        encoding: Some("gzip".to_owned()),
        ..first.clone()
    };
    assert_eq!(key.fingerprint(&first), key.fingerprint(&retry));
    let other = Fingerprinter { key: [8; 16] };
    assert_ne!(key.fingerprint(&first), other.fingerprint(&first));
}

/// One step of the model.
#[derive(Debug, Clone)]
enum Step {
    /// A group of these ids; `false`: it fails.
    Group(Vec<u64>, bool),
    /// A kill, with this many bytes torn off the newest file.
    Kill { torn: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let ids = prop::collection::vec(0_u64..60, 1..12);
    prop_oneof![
        6 => (ids, prop::bool::weighted(0.8)).prop_map(|(ids, durable)| Step::Group(ids, durable)),
        1 => (0_usize..60).prop_map(|torn| Step::Kill { torn }),
    ]
}

proptest! {
    /// Whatever happens, an event that is called a duplicate is durable, and one that is durable and
    /// recent is called a duplicate unless its id was torn off.
    #[test]
    fn a_duplicate_is_always_durable(steps in prop::collection::vec(step(), 1..80)) {
        const IDS_MAX: usize = 60;
        let directory = tempfile::tempdir().unwrap();
        let mut window = open(directory.path(), IDS_MAX);
        let mut durable = HashSet::new();
        // Newest last: what the window must still know.
        let mut recent: Vec<u64> = Vec::new();
        let mut last_group: Vec<u64> = Vec::new();
        let mut position = 0;
        for step in steps {
            match step {
                Step::Group(ids, is_durable) => {
                    let mut fresh = Vec::new();
                    for n in ids {
                        if window.admit(id(n)) {
                            prop_assert!(!recent.contains(&n), "{} is known", n);
                            fresh.push(n);
                        } else {
                            prop_assert!(durable.contains(&n) || fresh.contains(&n));
                        }
                    }
                    if is_durable {
                        position += fresh.len() as u64;
                        window.commit(position);
                        durable.extend(fresh.iter().copied());
                        if !fresh.is_empty() {
                            last_group.clone_from(&fresh);
                        }
                        recent.extend(fresh);
                        // Half of them, but for a group that was cut in two.
                        let forgotten = recent.len().saturating_sub(IDS_MAX / 2 - 12);
                        recent.drain(..forgotten);
                    } else {
                        window.abort();
                    }
                }
                Step::Kill { torn } => {
                    std::mem::forget(window);
                    if let Some(path) = files(directory.path()).last().filter(|_| torn > 0) {
                        let bytes = fs::read(path).unwrap();
                        fs::write(path, &bytes[..bytes.len().saturating_sub(torn)]).unwrap();
                        last_group.clear();
                    }
                    window = Window::open(directory.path(), IDS_MAX, EPOCH, position).unwrap().0;
                    prop_assert!(last_group.iter().all(|n| window.holds(id(*n))));
                    // A file keeps whole groups, so it may know less than memory did.
                    recent.retain(|n| window.holds(id(*n)));
                }
            }
        }
    }

    /// Damaged files only shorten the window: it opens, knows nothing that was never stored, and goes
    /// on.
    #[test]
    fn damage_only_shortens(flips in prop::collection::vec((0_usize..4000, any::<u8>()), 1..20), cut in 0_usize..4000) {
        let directory = tempfile::tempdir().unwrap();
        let mut window = open(directory.path(), 200);
        for group in 0..15_u64 {
            store(&mut window, group * 9..group * 9 + 9, group * 9 + 9);
        }
        drop(window);
        for path in files(directory.path()) {
            let mut bytes = fs::read(&path).unwrap();
            let length = bytes.len();
            for (at, with) in &flips {
                bytes[at % length] ^= with;
            }
            bytes.truncate(cut);
            fs::write(&path, bytes).unwrap();
        }
        let mut window = open(directory.path(), 200);
        prop_assert!((135..10_000).all(|n| !window.holds(id(n))));
        prop_assert!(window.newer.len() + window.older.len() <= 135);
        store(&mut window, 500..510, 1000);
        drop(window);
        let window = open(directory.path(), 200);
        prop_assert!((500..510).all(|n| window.holds(id(n))));
    }
}
