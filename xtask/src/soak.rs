//! `cargo xtask soak`: the agent's long tests in full. The same tests run in `cargo xtask test`, with
//! smaller counts; `HEADWATER_SOAK=1` is the only difference they see.
//!
//! The agent's own tests are optimised, because footprint and the speed of faults are part of what is
//! tested; the SDKs then meet the programs that the end-to-end tests use.

use anyhow::{Result, ensure};

use crate::command::{Log, Show};
use crate::project::Project;
use crate::suite::{self, TestCounts};

/// What names the end-to-end test of the SDKs, for pytest and for `--only`.
const CLIENTS: &str = "clients";

/// Runs the tests whose path contains `only`, or all, one after the other, and shows the figures
/// that they print.
pub(crate) fn run(only: Option<&str>) -> Result<()> {
    if only != Some(CLIENTS) {
        agent(only)?;
    }
    if only.is_none_or(|only| only == CLIENTS) {
        let pytest_arguments = ["-k", CLIENTS].map(String::from).to_vec();
        suite::run(&["e2e".to_owned()], pytest_arguments, suite::Extent::Full)?;
    }
    Ok(())
}

fn agent(only: Option<&str>) -> Result<()> {
    let project = Project::find()?;
    let mut log = Log::create(&project.logs(), "soak")?;
    let mut command = project.cargo();
    command
        .args(["test", "--release", "--package", "headwater-agent"])
        .args(["--test", "agent", "--no-fail-fast", "--"])
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
