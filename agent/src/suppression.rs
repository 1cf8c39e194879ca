//! Suppressed subjects: people whose events are refused before the disk and only counted.
//!
//! Place on the path: the source asks `Suppression::now` for each event, before anything of it is
//! kept. Promise: an event that names a suppressed subject of its company never reaches the buffer;
//! a list that cannot be read leaves the one before it in force. Ids are kept as keyed hashes and
//! never reach a log.
//!
//! ```text
//!   # comment
//!   COMPANY<TAB>ID       one subject per line; ID is a user id, anonymous id or contact id
//! ```

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use parking_lot::{Mutex, RwLock};
use siphasher::sip128::{Hasher128, SipHasher24};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::config::SuppressionConfig;
use crate::metrics::{SUPPRESSION_FAILURES, SUPPRESSION_SUBJECTS};
use crate::reload::Settings;
use crate::source::scan::{self, Place};

/// How often the file is looked at. A change is read at the second look that finds it the same, so
/// that a file that is being written is not taken for whole.
const POLL: Duration = Duration::from_secs(1);

/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 4096;

/// Why a list cannot be used. Names the line, never what stands in it.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The file cannot be read.
    #[error("suppression list `{}` cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A line is not `company<TAB>id`.
    #[error("suppression list `{}`, line {line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong with it.
        message: &'static str,
    },
    /// There are more subjects than allowed.
    #[error("suppression list `{}` has more than `{bound}` subjects; raise suppression.subjects_max", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// `suppression.subjects_max`.
        bound: usize,
    },
}

/// A list in force.
#[derive(Debug, Default)]
pub(crate) struct List {
    key: [u8; 16],
    companies: HashSet<String>,
    subjects: HashSet<u128>,
}

impl List {
    fn read(path: &Path, subjects_max: usize) -> Result<Self, ListError> {
        let failed = |source| ListError::Io {
            path: path.to_owned(),
            source,
        };
        let mut reader = BufReader::new(File::open(path).map_err(failed)?);
        let mut list = Self {
            key: rand::random(),
            ..Self::default()
        };
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let mut bounded = reader.by_ref().take(LINE_BYTES_MAX as u64 + 1);
            if bounded.read_until(b'\n', &mut line).map_err(failed)? == 0 {
                break;
            }
            list.add(&line).map_err(|message| ListError::Line {
                path: path.to_owned(),
                line: number,
                message,
            })?;
            if list.subjects.len() > subjects_max {
                return Err(ListError::TooMany {
                    path: path.to_owned(),
                    bound: subjects_max,
                });
            }
        }
        Ok(list)
    }

    fn add(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if line.len() > LINE_BYTES_MAX {
            return Err("is longer than 4096 bytes");
        }
        let line = std::str::from_utf8(line).map_err(|_| "is not UTF-8")?;
        let line = line.trim_end_matches(['\n', '\r']);
        if line.trim().is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (company, id) = line
            .split_once('\t')
            .ok_or("has no tab between company and id")?;
        if company.is_empty() || id.trim().is_empty() {
            return Err("has an empty company or id");
        }
        if !self.companies.contains(company) {
            self.companies.insert(company.to_owned());
        }
        self.subjects.insert(self.hash(company, id));
        Ok(())
    }

    fn hash(&self, company: &str, id: &str) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        std::hash::Hasher::write_u64(&mut hasher, company.len() as u64);
        std::hash::Hasher::write(&mut hasher, company.as_bytes());
        std::hash::Hasher::write(&mut hasher, id.as_bytes());
        hasher.finish128().as_u128()
    }

    /// Says whether any subject of `company` is suppressed.
    pub(crate) fn concerns(&self, company: &str) -> bool {
        self.companies.contains(company)
    }

    /// Says whether the event of `company` names a suppressed subject. Every copy of a duplicate key
    /// counts. Bytes that are no JSON name nobody.
    pub(crate) fn holds(&self, company: &str, event: &[u8]) -> bool {
        if !self.concerns(company) {
            return false;
        }
        let mut is_named = false;
        scan::visit(event, |place, key, value| {
            let is_subject = match place {
                Place::Event => {
                    matches!(key, "userId" | "anonymousId" | "previousId" | "distinct_id")
                }
                Place::Context => key == "contact_id",
                Place::Properties => matches!(
                    key,
                    // PostHog's: the tables make anonymous and previous ids of the last three.
                    "contact_id" | "distinct_id" | "$anon_distinct_id" | "$device_id" | "alias"
                ),
                Place::Device => false,
            };
            if is_subject && !is_named {
                let token = &event[value];
                // Some clients send numeric ids: their digits count.
                let digits = || std::str::from_utf8(token).ok().map(Into::into);
                let id = scan::text(token).or_else(digits);
                is_named = id.is_some_and(|id| self.subjects.contains(&self.hash(company, &id)));
            }
        });
        is_named
    }
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    /// Device, inode, size, modification and change time; `None` when there is no file.
    state: Option<[i128; 5]>,
}

impl Stamp {
    fn of(path: &Path) -> Self {
        let nanos =
            |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let state = std::fs::metadata(path).ok().map(|it| {
            [
                it.dev().into(),
                it.ino().into(),
                it.size().into(),
                nanos(it.mtime(), it.mtime_nsec()),
                nanos(it.ctime(), it.ctime_nsec()),
            ]
        });
        Self {
            path: path.to_owned(),
            state,
        }
    }
}

/// What the last looks at the file found.
#[derive(Debug, Default)]
struct Watch {
    /// Read, or found to be broken.
    handled: Option<Stamp>,
    seen: Option<Stamp>,
}

impl Watch {
    /// Decides whether the file as it is `now` is to be read.
    fn is_due(&mut self, now: Option<Stamp>) -> bool {
        let is_settled = self.seen == now;
        self.seen = now;
        is_settled && self.handled != self.seen
    }
}

/// The suppressed subjects, as the file says them now.
#[derive(Debug, Default)]
pub struct Suppression {
    list: RwLock<Arc<List>>,
    watch: Mutex<Watch>,
}

impl Suppression {
    /// Reads the list at start. Blocks on the disk.
    ///
    /// # Errors
    /// See [`ListError`]: an agent that does not know whom to refuse must not take events.
    pub(crate) fn open(config: &SuppressionConfig) -> Result<Self, ListError> {
        let suppression = Self::default();
        let stamp = config.path().map(Stamp::of);
        suppression.load(config)?;
        suppression.watch.lock().handled = stamp;
        Ok(suppression)
    }

    /// Returns the list in force.
    pub(crate) fn now(&self) -> Arc<List> {
        self.list.read().clone()
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    fn load(&self, config: &SuppressionConfig) -> Result<(), ListError> {
        let list = match config.path() {
            Some(path) => {
                let list = List::read(path, config.subjects_max)?;
                let subjects = list.subjects.len();
                info!(subjects, "suppression list is in force");
                list
            }
            None => List::default(),
        };
        gauge!(SUPPRESSION_SUBJECTS).set(list.subjects.len() as f64);
        *self.list.write() = Arc::new(list);
        Ok(())
    }

    /// Looks at the file once and reads it when it has changed and settled. Blocks on the disk.
    fn look(&self, config: &SuppressionConfig) {
        let stamp = config.path().map(Stamp::of);
        if !self.watch.lock().is_due(stamp.clone()) {
            return;
        }
        self.watch.lock().handled = stamp;
        if let Err(error) = self.load(config) {
            counter!(SUPPRESSION_FAILURES).increment(1);
            error!(%error, "the suppression list before it stays in force");
        }
    }

    /// Follows the file until `stop`.
    pub(crate) async fn follow(self: Arc<Self>, settings: Settings, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let (suppression, config) = (self.clone(), settings.now().suppression.clone());
            // The list stays as it is when the runtime is going down.
            drop(tokio::task::spawn_blocking(move || suppression.look(&config)).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &tempfile::TempDir, text: &[u8]) -> SuppressionConfig {
        let file = directory.path().join("suppressed");
        std::fs::write(&file, text).unwrap();
        SuppressionConfig {
            file,
            subjects_max: 10,
        }
    }

    fn list(text: &[u8]) -> Result<Arc<List>, ListError> {
        let directory = tempfile::tempdir().unwrap();
        Ok(Suppression::open(&config(&directory, text))?.now())
    }

    #[test]
    fn every_place_that_names_a_subject_counts() {
        let list = list(b"# leavers\n\nacme\tu-1\r\nacme\tann a@b\nglobex\t77").unwrap();
        for event in [
            r#"{"userId":"u-1"}"#,
            r#"{"anonymousId":"u-1","userId":"u-2"}"#,
            r#"{"previousId":"ann a@b"}"#,
            r#"{"distinct_id":"u-1"}"#,
            r#"{"properties":{"distinct_id":"u-1"}}"#,
            r#"{"properties":{"contact_id":"u-1"}}"#,
            r#"{"context":{"contact_id":"u-1"}}"#,
            r#"{"event":"$identify","distinct_id":"u-2","properties":{"$anon_distinct_id":"u-1"}}"#,
            r#"{"event":"E","distinct_id":"u-2","properties":{"$device_id":"u-1"}}"#,
            r#"{"event":"$create_alias","distinct_id":"u-2","properties":{"alias":"u-1"}}"#,
            // Whatever a parser would make of it.
            r#"{"userId":"u-1","userId":"u-2"}"#,
            r#"{"\u0075serId":"\u0075-1"}"#,
            r#"{"userId":"u-1","type":7}"#,
            r#"{"userId":"u-1""#,
        ] {
            assert!(list.holds("acme", event.as_bytes()), "{event}");
            assert!(!list.holds("globex", event.as_bytes()), "{event}");
            assert!(!list.holds("other", event.as_bytes()), "{event}");
        }
        assert!(list.holds("globex", br#"{"userId":77}"#));
        for event in [
            r#"{"userId":"u-10","anonymousId":"U-1","messageId":"u-1"}"#,
            r#"{"properties":{"text":"u-1","x":{"contact_id":"u-1"}}}"#,
            r#"{"userId":null}"#,
            "",
        ] {
            assert!(!list.holds("acme", event.as_bytes()), "{event}");
        }
    }

    #[test]
    fn a_broken_list_names_its_line_and_no_id() {
        for (text, expected) in [
            (&b"acme\tsecret\nacme secret\n"[..], "line 2: has no tab"),
            (b"\tsecret", "line 1: has an empty company"),
            (b"acme\t ", "line 1: has an empty company or id"),
            (b"#\nacme\tsecret\xff", "line 2: is not UTF-8"),
            (&[b'x'; 5000], "line 1: is longer"),
            (
                b"a\t1\na\t2\na\t3\na\t4\na\t5\na\t6\na\t7\na\t8\na\t9\na\t10\na\t11\n",
                "more than `10` subjects",
            ),
        ] {
            let message = list(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
        let missing = SuppressionConfig {
            file: "/nowhere/suppressed".into(),
            subjects_max: 10,
        };
        assert!(Suppression::open(&missing).is_err());
    }

    #[test]
    fn a_change_is_read_once_it_has_settled_and_a_broken_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(&directory, b"acme\tu-1\n");
        let suppression = Suppression::open(&config).unwrap();
        let holds = |id: &str| {
            let event = format!(r#"{{"userId":"{id}"}}"#);
            suppression.now().holds("acme", event.as_bytes())
        };
        let file = config.file.clone();
        suppression.look(&config);
        std::fs::write(&file, b"acme\tu-2\nacme\tu-3\n").unwrap();
        suppression.look(&config);
        assert!(holds("u-1") && !holds("u-2"), "it may still be written");
        suppression.look(&config);
        assert!(!holds("u-1") && holds("u-2") && holds("u-3"));
        for broken in [Some(&b"acme u-4\n"[..]), None] {
            match broken {
                Some(text) => std::fs::write(&file, text).unwrap(),
                None => std::fs::remove_file(&file).unwrap(),
            }
            for _ in 0..3 {
                suppression.look(&config);
            }
            assert!(holds("u-2"), "the list before it stays");
        }
        std::fs::write(&file, b"acme\tu-5\n").unwrap();
        suppression.look(&config);
        suppression.look(&config);
        assert!(holds("u-5") && !holds("u-2"));
        config.file.clear();
        suppression.look(&config);
        suppression.look(&config);
        assert!(!holds("u-5"), "the setting was taken out");
    }
}
