//! `cargo xtask soak`: the agent's long tests in full. The same tests run in `cargo xtask test`, with
//! smaller counts; `HEADWATER_SOAK=1` is the only difference they see.
//!
//! Optimised, because footprint and the speed of faults are part of what is tested.

use anyhow::{Result, ensure};

use crate::command::{Log, Show};
use crate::project::Project;
use crate::suite::TestCounts;

/// Runs the tests whose path contains `only`, or all, one after the other, and shows the figures
/// that they print.
pub(crate) fn run(only: Option<&str>) -> Result<()> {
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
