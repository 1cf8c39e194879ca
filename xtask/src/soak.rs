//! `cargo xtask soak`: the long tests in full: the simulation's, the agent's, and the end-to-end tests of
//! the SDKs and of kills. The same tests run in `cargo xtask test`, with smaller counts;
//! `HEADWATER_SOAK=1` is the only difference they see. Last come the benches that have bounds.
//!
//! The agent's own tests are optimised, because footprint and the speed of faults are part of what is
//! tested; SDKs and kills then meet the programs that the end-to-end tests use.

use anyhow::{Result, ensure};

use crate::command::{Log, Show};
use crate::mutations;
use crate::project::Project;
use crate::suite::{self, TestCounts};

/// End-to-end tests that have a long form: what names them for `--only`, and for pytest.
const END_TO_END: [(&str, &str); 2] = [
    ("clients", "clients"),
    ("kills", "kill_matrix or collectors"),
];

/// What names the simulation, for `--only`.
const SIM: &str = "sim";

/// What names the faults made on purpose, for `--only`.
const MUTATIONS: &str = "mutations";

/// What names the benches, for `--only`.
const BENCHES: &str = "benches";

/// Benches that fail when a bound of the collector's speed or memory does not hold: package, bench,
/// arguments.
const WITH_BOUNDS: [(&str, &str, &[&str]); 5] = [
    ("headwater-collector", "decode_commit", &[]),
    ("headwater-collector", "ingest", &[]),
    ("headwater-collector", "growth", &[]),
    ("headwater-collector", "growth", &["--latency-ms", "30"]),
    ("headwater-tables", "partitions", &[]),
];

/// Runs the tests whose path contains `only`, or all, one after the other, and shows the figures
/// that they print.
pub(crate) fn run(only: Option<&str>) -> Result<()> {
    if only.is_none_or(|only| only == SIM) {
        optimised_tests("headwater-sim", "sim", None)?;
    }
    if only.is_none_or(|only| only == MUTATIONS) {
        mutations::run()?;
    }
    let is_end_to_end = |only| END_TO_END.iter().any(|(name, _)| *name == only);
    if only.is_none_or(|only| ![SIM, MUTATIONS, BENCHES].contains(&only) && !is_end_to_end(only)) {
        optimised_tests("headwater-agent", "agent", only)?;
    }
    for (name, tests) in END_TO_END {
        if only.is_none_or(|only| only == name) {
            let pytest_arguments = ["-k", tests].map(String::from).to_vec();
            suite::run(&["e2e".to_owned()], pytest_arguments, suite::Extent::Full)?;
        }
    }
    if only.is_none_or(|only| only == BENCHES) {
        benches()?;
    }
    Ok(())
}

/// Runs the benches one after the other. One that misses its bounds does not hide the figures of the others.
fn benches() -> Result<()> {
    let project = Project::find()?;
    let mut log = Log::create(&project.logs(), "soak-benches")?;
    let mut errors = Vec::new();
    for (package, bench, arguments) in WITH_BOUNDS {
        let mut command = project.cargo();
        command
            .args(["bench", "--package", package, "--bench", bench, "--"])
            .args(arguments);
        if let Err(error) = log.run(command, Show::Everything) {
            errors.push(format!("{error:#}"));
        }
    }
    ensure!(errors.is_empty(), "{}", errors.join("\n"));
    println!("{} benches keep their bounds", WITH_BOUNDS.len());
    Ok(())
}

/// Runs the tests of one package whose path contains `only`, one after the other.
fn optimised_tests(package: &str, test: &str, only: Option<&str>) -> Result<()> {
    let project = Project::find()?;
    let mut log = Log::create(&project.logs(), &format!("soak-{test}"))?;
    let mut command = project.cargo();
    command
        .args(["test", "--release", "--package", package])
        .args(["--test", test, "--no-fail-fast", "--"])
        .args(["--nocapture", "--test-threads=1"])
        .args(only)
        .env("HEADWATER_SOAK", "1");
    log.run(command, Show::Everything)?;
    let counts = TestCounts::of_cargo(&log.text()?);
    ensure!(counts.passed > 0, "no test has that in its name");
    ensure!(counts.ignored == 0, "{} tests were ignored", counts.ignored);
    println!("{} tests passed", counts.passed);
    Ok(())
}
