//! `headwater-warehouse`: runs one night and ends.
//!
//! Exit codes: 0 when the night is published or already was, 1 when it failed, 2 when arguments or
//! configuration cannot be used.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Mutex;

use chrono::{DateTime, Days, NaiveDate};
use clap::{Parser, Subcommand};
use headwater_service::clock::{SharedClock, SystemClock};
use headwater_service::{cli, config, logging};
use headwater_warehouse::{Config, NightReport, Outcome, Progress, nightly};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

#[derive(Debug, Parser)]
#[command(
    name = "headwater-warehouse",
    version,
    about = "Copies the operational database, takes in new events and publishes reports",
    after_help = "Examples:\n  headwater-warehouse --config warehouse.toml nightly --date 2026-11-19\n  headwater-warehouse --config warehouse.toml --check-config\n  HEADWATER__SOURCE__URI=postgres://reader:secret@db/app headwater-warehouse nightly"
)]
struct Arguments {
    #[command(flatten)]
    common: cli::CommonArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one night; running it again changes nothing
    Nightly {
        /// Date of the reports, YYYY-MM-DD; the three days before are computed again
        #[arg(
            long,
            value_name = "DATE",
            help = "Date of the reports, YYYY-MM-DD [default: yesterday, UTC]"
        )]
        date: Option<String>,
    },
}

/// An argument cannot be used.
#[derive(Debug, thiserror::Error)]
enum ArgumentError {
    #[error("`{0}` is not a date: write `--date YYYY-MM-DD`, such as `--date 2026-11-19`")]
    Date(String),
    #[error("nothing to do: add the command `nightly`, or `--help`")]
    NoCommand,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config: Config = match config::load(arguments.common.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return cli::fail(cli::EXIT_CONFIG, &error),
    };
    if let Err(error) = config.validate() {
        return cli::fail(cli::EXIT_CONFIG, &error);
    }
    if arguments.common.check_config {
        println!("configuration is valid");
        return ExitCode::from(cli::EXIT_OK);
    }
    let clock = SystemClock::shared();
    let date = match date(arguments.command, &clock) {
        Ok(date) => date,
        Err(error) => return cli::fail(cli::EXIT_CONFIG, &error),
    };
    let is_terminal = std::io::stderr().is_terminal();
    logging::init(&quieter(&config, is_terminal));
    let progress: Box<dyn Progress> = if is_terminal {
        Box::new(Bars::default())
    } else {
        Box::new(Lines)
    };
    match nightly(&config, date, clock, progress.as_ref()).await {
        Ok(report) => {
            print_report(&report);
            ExitCode::from(cli::EXIT_OK)
        }
        Err(error) => cli::fail(cli::EXIT_FAILED, &error),
    }
}

/// On a terminal the bars tell what happens: informative log lines would tear them.
fn quieter(config: &Config, is_terminal: bool) -> logging::LogConfig {
    let mut log = config.log.clone();
    if is_terminal && log.level == "info" {
        log.level = "warn".to_owned();
    }
    log
}

fn date(command: Option<Command>, clock: &SharedClock) -> Result<NaiveDate, ArgumentError> {
    let Some(Command::Nightly { date }) = command else {
        return Err(ArgumentError::NoCommand);
    };
    match date {
        Some(text) => {
            NaiveDate::parse_from_str(&text, "%Y-%m-%d").map_err(|_| ArgumentError::Date(text))
        }
        None => DateTime::from_timestamp_micros(clock.now())
            .and_then(|now| now.date_naive().checked_sub_days(Days::new(1)))
            .ok_or(ArgumentError::NoCommand),
    }
}

fn print_report(report: &NightReport) {
    match report.outcome {
        Outcome::AlreadyUpToDate => println!(
            "{}: already up to date (run {})",
            report.date, report.run_id
        ),
        Outcome::Published => {
            println!("{}: published (run {})", report.date, report.run_id);
            for (table, written) in &report.written {
                println!(
                    "  {table}: {} rows, snapshot {}",
                    written.rows, written.snapshot_id
                );
            }
        }
    }
}

/// One line per step that ended.
struct Lines;

impl Progress for Lines {
    fn started(&self, _step: &str, _total: Option<u64>) {}

    fn advanced(&self, _step: &str, _done: u64) {}

    fn finished(&self, step: &str, detail: &str) {
        eprintln!("{step}: {detail}");
    }
}

/// One bar per step.
#[derive(Default)]
struct Bars {
    screen: MultiProgress,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn with<T>(&self, step: &str, act: impl FnOnce(&ProgressBar) -> T) -> Option<T> {
        let bars = self.bars.lock().ok()?;
        bars.get(step).map(act)
    }
}

impl Progress for Bars {
    fn started(&self, step: &str, total: Option<u64>) {
        let template = match total {
            Some(_) => "{msg:24} [{bar:30}] {pos}/{len} {elapsed}",
            None => "{msg:24} {spinner} {elapsed}",
        };
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = total
            .map_or_else(ProgressBar::new_spinner, ProgressBar::new)
            .with_style(style);
        let bar = self.screen.add(bar);
        bar.set_message(step.to_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        if let Ok(mut bars) = self.bars.lock() {
            bars.insert(step.to_owned(), bar);
        }
    }

    fn advanced(&self, step: &str, done: u64) {
        let _known = self.with(step, |bar| bar.set_position(done));
    }

    fn finished(&self, step: &str, detail: &str) {
        let _known = self.with(step, |bar| {
            if let Ok(style) = ProgressStyle::with_template("{msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.finish_with_message(format!("{step:24} {detail}"));
        });
    }
}
