//! The steps of `cargo xtask test`, in the order that finds cheap mistakes first.
//!
//! A step that ran nothing has failed: each counts what it did in its log. The first failure ends
//! the run.

use std::cell::OnceCell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{Log, Show};
use crate::postgres::Postgres;
use crate::project::Project;
use crate::tidy;
use crate::toolbox::Toolbox;

struct Step {
    name: &'static str,
    about: &'static str,
    /// Steps that have to run before, when only some are asked for.
    needs: &'static [&'static str],
    /// Does the work and says what was done.
    run: fn(&Run, &mut Log) -> Result<String>,
}

static STEPS: [Step; 8] = [
    Step {
        name: "toolbox",
        about: "installs what the tests need and is missing",
        needs: &[],
        run: toolbox,
    },
    Step {
        name: "fmt",
        about: "cargo fmt --check",
        needs: &[],
        run: fmt,
    },
    Step {
        name: "tidy",
        about: "what compilers do not check",
        needs: &[],
        run: |run, _| tidy::run(&run.project).map(|()| String::from("the house is in order")),
    },
    Step {
        name: "clippy",
        about: "cargo clippy, warnings are errors",
        needs: &[],
        run: clippy,
    },
    Step {
        name: "doc",
        about: "cargo doc, warnings are errors",
        needs: &[],
        run: doc,
    },
    Step {
        name: "build",
        about: "builds all binaries and tests",
        needs: &[],
        run: build,
    },
    Step {
        name: "test",
        about: "unit, integration and documentation tests",
        needs: &["toolbox", "build"],
        run: test,
    },
    Step {
        name: "e2e",
        about: "the whole system: real SDKs, kill -9, the night, JDBC, ADBC, PyIceberg, chDB",
        needs: &["toolbox", "build"],
        run: end_to_end,
    },
];

/// What the steps of one run share.
struct Run {
    project: Project,
    pytest_arguments: Vec<String>,
    extent: Extent,
    toolbox: OnceCell<Toolbox>,
    postgres: OnceCell<Postgres>,
}

impl Run {
    fn toolbox(&self) -> Result<&Toolbox> {
        self.toolbox.get().context("the step `toolbox` has not run")
    }

    /// Returns the URL of the run's PostgreSQL, started when first asked for.
    fn postgres_url(&self) -> Result<String> {
        if self.postgres.get().is_none() {
            let server = Postgres::start()?;
            println!("  PostgreSQL for the tests: {}", server.url());
            // The cell was empty, so nothing is thrown away.
            drop(self.postgres.set(server));
        }
        let server = self.postgres.get().context("PostgreSQL is not running")?;
        Ok(server.url())
    }
}

/// How long the long tests are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// As in CI.
    Short,
    /// As in a soak.
    Full,
}

/// Prints the steps.
pub(crate) fn list() {
    for step in &STEPS {
        println!("{:8} {}", step.name, step.about);
    }
}

/// Runs the steps that `only` names with what they need, or all when it is empty.
pub(crate) fn run(only: &[String], pytest_arguments: Vec<String>, extent: Extent) -> Result<()> {
    let steps = select(only)?;
    let run = Run {
        project: Project::find()?,
        pytest_arguments,
        extent,
        toolbox: OnceCell::new(),
        postgres: OnceCell::new(),
    };
    let started = Instant::now();
    let mut times = Vec::new();
    for step in steps {
        println!("\n== {}: {}", step.name, step.about);
        let step_started = Instant::now();
        let mut log = Log::create(&run.project.logs(), step.name)?;
        let done =
            (step.run)(&run, &mut log).with_context(|| format!("step `{}` failed", step.name))?;
        let took = step_started.elapsed();
        println!("== {}: {done} ({})", step.name, seconds(took));
        times.push((step.name, done, took));
    }
    println!("\nAll steps passed in {}:", seconds(started.elapsed()));
    for (name, done, took) in times {
        println!("  {name:8} {:>8}  {done}", seconds(took));
    }
    Ok(())
}

fn select(only: &[String]) -> Result<Vec<&'static Step>> {
    for name in only {
        ensure!(
            STEPS.iter().any(|step| step.name == name),
            "there is no step `{name}`; the steps are: {}",
            names()
        );
    }
    let is_wanted = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    Ok(STEPS
        .iter()
        .filter(|step| {
            let is_needed = STEPS
                .iter()
                .any(|other| is_wanted(other.name) && other.needs.contains(&step.name));
            is_wanted(step.name) || is_needed
        })
        .collect())
}

fn names() -> String {
    let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
    names.join(", ")
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn toolbox(run: &Run, log: &mut Log) -> Result<String> {
    let toolbox = Toolbox::prepare(&run.project, log)?;
    let drivers: Vec<&str> = toolbox.jdbc.iter().map(|(version, _)| *version).collect();
    let done = format!("everything is there, JDBC drivers {}", drivers.join(", "));
    ensure!(
        run.toolbox.set(toolbox).is_ok(),
        "the toolbox was prepared twice"
    );
    Ok(done)
}

fn fmt(run: &Run, log: &mut Log) -> Result<String> {
    let mut command = run.project.cargo();
    command.args(["fmt", "--all", "--check", "--", "--color", "never"]);
    log.run(command, Show::Progress)?;
    Ok(String::from("formatted"))
}

fn clippy(run: &Run, log: &mut Log) -> Result<String> {
    let mut command = run.project.cargo();
    command
        .args(["clippy", "--workspace", "--all-targets", "--all-features"])
        .args(["--", "-D", "warnings"]);
    log.run(command, Show::Progress)?;
    Ok(String::from("no warnings"))
}

fn doc(run: &Run, log: &mut Log) -> Result<String> {
    let mut command = run.project.cargo();
    command
        .args(["doc", "--workspace", "--no-deps", "--all-features"])
        .env("RUSTDOCFLAGS", "-D warnings");
    log.run(command, Show::Progress)?;
    Ok(String::from("no warnings"))
}

fn build(run: &Run, log: &mut Log) -> Result<String> {
    let mut command = run.project.cargo();
    command.args([
        "build",
        "--workspace",
        "--bins",
        "--tests",
        "--all-features",
    ]);
    log.run(command, Show::Progress)?;
    Ok(String::from("built"))
}

fn test(run: &Run, log: &mut Log) -> Result<String> {
    let mut command = run.project.cargo();
    command
        .args(["test", "--workspace", "--all-features", "--no-fail-fast"])
        .env("HEADWATER_PYTHON", &run.toolbox()?.python)
        .env("HEADWATER_TEST_POSTGRES", run.postgres_url()?)
        .env("HEADWATER_TEST_ICEBERG_REST", &run.toolbox()?.iceberg_rest)
        // Half an hour off the hour, with summer time: whoever asks for the local time is found out.
        .env("TZ", "America/St_Johns");
    log.run(command, Show::Everything)?;
    let counts = TestCounts::of_cargo(&log.text()?);
    ensure!(counts.passed > 0, "no test ran");
    ensure!(counts.ignored == 0, "{} tests were ignored", counts.ignored);
    Ok(format!("{} tests passed", counts.passed))
}

fn end_to_end(run: &Run, log: &mut Log) -> Result<String> {
    let toolbox = run.toolbox()?;
    let sources = run.project.root.join("xtask").join("e2e");
    let drivers: Vec<String> = toolbox
        .jdbc
        .iter()
        .map(|(version, jar)| format!("{version}={}", jar.display()))
        .collect();
    let mut command = std::process::Command::new(&toolbox.python);
    command
        .args(["-u", "-m", "pytest", "--verbose", "--capture=no"])
        .args(["-p", "no:cacheprovider"])
        .args(&run.pytest_arguments)
        .arg(sources.join("python"))
        .current_dir(sources.join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HEADWATER_E2E_BINARIES", run.project.binaries())
        .env("HEADWATER_E2E_POSTGRES", run.postgres_url()?)
        .env("HEADWATER_E2E_JDBC", drivers.join(","))
        .env("HEADWATER_E2E_LOGS", run.project.logs().join("e2e"))
        .env("HEADWATER_E2E_NODE", &toolbox.node)
        .env("NODE_PATH", &toolbox.node_modules);
    if run.extent == Extent::Full {
        command.env("HEADWATER_SOAK", "1");
    }
    log.run(command, Show::Everything)?;
    let passed = TestCounts::of_pytest(&log.text()?);
    let Some(counts) = passed else {
        bail!("pytest printed no closing line");
    };
    ensure!(counts.passed > 0, "no test ran");
    ensure!(counts.ignored == 0, "{} tests were skipped", counts.ignored);
    Ok(format!("{} tests passed", counts.passed))
}

/// What a test runner says that it ran.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct TestCounts {
    pub(crate) passed: u64,
    pub(crate) ignored: u64,
}

impl TestCounts {
    /// Sums the lines `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
    pub(crate) fn of_cargo(log: &str) -> Self {
        let mut counts = Self::default();
        for line in log.lines().filter(|line| line.starts_with("test result:")) {
            counts.passed += number_before(line, " passed").unwrap_or(0);
            counts.ignored += number_before(line, " ignored").unwrap_or(0);
        }
        counts
    }

    /// Reads the last line of the form `=== 3 passed, 1 skipped in 2.5s ===`.
    fn of_pytest(log: &str) -> Option<Self> {
        let line = log
            .lines()
            .rfind(|line| line.starts_with("==") && line.contains(" in "))?;
        Some(Self {
            passed: number_before(line, " passed").unwrap_or(0),
            ignored: number_before(line, " skipped").unwrap_or(0)
                + number_before(line, " xfailed").unwrap_or(0),
        })
    }
}

fn number_before(line: &str, word: &str) -> Option<u64> {
    let before = &line[..line.find(word)?];
    before.rsplit([' ', '=']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_test_binaries_are_added() {
        let log = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured\nnoise\n\
                   test result: ok. 4 passed; 0 failed; 1 ignored; 0 measured\n";
        assert_eq!(
            TestCounts::of_cargo(log),
            TestCounts {
                passed: 7,
                ignored: 1
            }
        );
        assert_eq!(TestCounts::of_cargo("nothing"), TestCounts::default());
    }

    #[test]
    fn counts_of_pytest_are_read_from_its_last_line() {
        let log =
            "== test session starts ==\n===== 12 passed, 2 skipped in 61.02s (0:01:01) =====\n";
        let counts = TestCounts::of_pytest(log).unwrap();
        assert_eq!((counts.passed, counts.ignored), (12, 2));
        assert_eq!(TestCounts::of_pytest("no such line"), None);
    }

    #[test]
    fn a_step_brings_what_it_needs() {
        let names: Vec<&str> = select(&["e2e".to_owned()])
            .unwrap()
            .iter()
            .map(|step| step.name)
            .collect();
        assert_eq!(names, ["toolbox", "build", "e2e"]);
        assert_eq!(select(&[]).unwrap().len(), STEPS.len());
        assert!(select(&["nonsense".to_owned()]).is_err());
    }
}
