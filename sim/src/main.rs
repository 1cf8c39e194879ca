//! `headwater-sim`: tries seeds, and replays one.
#![expect(clippy::print_stdout, reason = "what a program for the terminal does")]

use std::ops::Range;
use std::process::ExitCode;

use clap::Parser;
use headwater_sim::{Outcome, Tally, run, run_all};

/// Tries to break exactly-once under simulated faults.
#[derive(Debug, Parser)]
#[command(
    after_help = "Examples:\n  headwater-sim --seeds 0..1000\n  headwater-sim --seed 17 --trace"
)]
struct Arguments {
    /// Run one seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run all seeds from the first to before the last.
    #[arg(long, value_parser = range, default_value = "0..1000")]
    seeds: Range<u64>,
    /// End with the first seed that fails.
    #[arg(long)]
    first: bool,
    /// Print every line of the trace of a single seed.
    #[arg(long, requires = "seed")]
    trace: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("write FROM..TO")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(from)?..number(to)?)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let tally = match arguments.seed {
        Some(seed) => single(&run(seed, arguments.trace)),
        None => many(arguments.seeds, arguments.first),
    };
    match tally {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn single(outcome: &Outcome) -> bool {
    print!("{}", outcome.lines());
    outcome.violations.is_empty()
}

fn report(outcome: &Outcome) {
    for violation in &outcome.violations {
        println!("{outcome}: {violation}");
    }
}

fn many(seeds: Range<u64>, first: bool) -> bool {
    let program = std::env::current_exe().expect("this program knows where it lies");
    let tally: Tally = run_all(&program, seeds, |outcome| {
        report(outcome);
        first && !outcome.violations.is_empty()
    });
    for (kind, count) in &tally.counts {
        println!("{count:>8}  {kind}");
    }
    let missing = tally.missing();
    println!(
        "{} seeds, {} failed; {} kinds of things never happened: {missing:?}",
        tally.seeds,
        tally.failed.len(),
        missing.len()
    );
    tally.failed.is_empty() && missing.is_empty()
}
