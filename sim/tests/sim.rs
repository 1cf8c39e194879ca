//! The seeds that every change must pass: 1,000 in CI, 100,000 in the soak.
//!
//! A seed that failed prints the command that replays it, and is pinned here with one line about the
//! fault that it found.

use std::path::Path;
use std::time::Instant;

use headwater_sim::{Outcome, run_all, run_apart};

/// Seeds that have found something. A change of what a run draws makes a pinned seed another run; then
/// it is pinned again if another one still finds the fault with its mend taken back.
const PINNED: [(u64, &str); 1] = [(
    0,
    "a commit that the log of heads no longer lists was taken for refused",
)];

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_headwater-sim"))
}

fn run(seed: u64) -> Outcome {
    run_apart(program(), seed)
}

fn seeds() -> u64 {
    match std::env::var_os("HEADWATER_SOAK") {
        Some(_) => 100_000,
        None => 1_000,
    }
}

#[test]
fn no_seed_breaks_a_promise() {
    let started = Instant::now();
    let tally = run_all(program(), 0..seeds(), |outcome| {
        for violation in &outcome.violations {
            println!("{outcome}: {violation}");
        }
        false
    });
    for (kind, count) in &tally.counts {
        println!("{count:>9}  {kind}");
    }
    println!("{} seeds in {:.1?}", tally.seeds, started.elapsed());
    let failed: Vec<String> = tally.failed.iter().map(ToString::to_string).collect();
    assert!(
        failed.is_empty(),
        "{} seeds failed: {failed:#?}",
        failed.len()
    );
    assert_eq!(tally.missing(), Vec::<&str>::new(), "never happened");
}

#[test]
fn pinned_seeds_stay_mended() {
    for (seed, fault) in PINNED {
        let outcome = run(seed);
        assert!(
            outcome.violations.is_empty(),
            "{fault}: {outcome} {:?}",
            outcome.violations
        );
    }
}

#[test]
fn one_seed_is_one_trace() {
    for seed in 0..12 {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first.hash, second.hash, "{first}");
        assert_eq!(first.counts, second.counts, "{first}");
    }
    assert_ne!(run(1).hash, run(2).hash);
}
