//! The seeds that every change must pass: 1,000 in CI, 100,000 in the soak.
//!
//! A seed that failed prints the command that replays it, and is pinned in the patch of `sim/mutations/`
//! that takes its mend back: here it must pass, and with the patch (`cargo xtask soak --only mutations`)
//! it must fail.

use std::path::Path;
use std::time::Instant;

use headwater_sim::{Outcome, run_all, run_apart};

/// Begins the line of a patch that pins a seed.
const PINNED: &str = "Pinned: seed ";

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_headwater-sim"))
}

fn run(seed: u64) -> Outcome {
    run_apart(program(), seed)
}

/// Returns the pinned seeds, each with the fault that it found. A change of what a run draws makes a seed
/// another run; the soak of the mutations then says which one finds the fault now.
fn pinned() -> Vec<(u64, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("mutations");
    let mut pinned = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory of patches") {
        let path = entry.expect("a patch").path();
        let patch = std::fs::read_to_string(path).expect("a patch is text");
        let fault = patch.lines().next().unwrap_or_default();
        for seed in patch.lines().filter_map(|line| line.strip_prefix(PINNED)) {
            let seed: u64 = seed.parse().expect("a seed is a number");
            pinned.push((seed, fault.to_owned()));
        }
    }
    pinned
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
    let pinned = pinned();
    assert!(!pinned.is_empty(), "no patch pins a seed");
    for (seed, fault) in pinned {
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
