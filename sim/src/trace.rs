//! What happened in a run, line by line, and how often each kind of thing did.
//!
//! The hash over all lines is the identity of a run: the same seed gives the same one. Lines hold no
//! names of files.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// FNV-1a, 64 bits.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The trace of one run; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Trace(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    start: Instant,
    hash: u64,
    shown: bool,
    counts: BTreeMap<&'static str, u64>,
    violations: Vec<String>,
}

impl Trace {
    /// Begins a trace now; its lines go to standard output when it is `shown`.
    pub(crate) fn begin(shown: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            start: Instant::now(),
            hash: OFFSET,
            shown,
            counts: BTreeMap::new(),
            violations: Vec::new(),
        })))
    }

    /// Adds a line.
    pub(crate) fn line(&self, text: fmt::Arguments<'_>) {
        let mut state = self.0.lock();
        let line = format!("{:>9} {text}", state.start.elapsed().as_millis());
        for byte in line.bytes().chain([b'\n']) {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        if state.shown {
            #[expect(clippy::print_stdout, reason = "what `--trace` asks for")]
            {
                println!("{line}");
            }
        }
    }

    /// Counts one of `kind`.
    pub(crate) fn count(&self, kind: &'static str) {
        *self.0.lock().counts.entry(kind).or_default() += 1;
    }

    /// Notes that a promise was broken.
    pub(crate) fn violation(&self, text: String) {
        self.line(format_args!("VIOLATION {text}"));
        self.0.lock().violations.push(text);
    }

    pub(crate) fn hash(&self) -> u64 {
        self.0.lock().hash
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().counts.clone()
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.0.lock().violations.clone()
    }
}
