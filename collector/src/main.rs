//! `headwater-collector`: arguments, configuration, logs, then the collector until a signal.
//!
//! Not on an event's path. Promise: a configuration that cannot be used is one line on standard error
//! and exit code 2, before anything is opened.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use headwater_collector::plan::Plan;
use headwater_collector::quarantine::command::QuarantineCommand;
use headwater_collector::{Config, start};
use headwater_service::cli::{self, CommonArgs};
use headwater_service::clock::SystemClock;
use headwater_service::{logging, shutdown};
use tokio::signal::unix::{SignalKind, signal};

/// Receives batches from agents over QUIC and commits them to Iceberg exactly once
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  headwater-collector --config deploy/config/collector.toml
  headwater-collector --config collector.toml --check-config
  headwater-collector quarantine list --config collector.toml
  HEADWATER__COMMIT__INTERVAL_MS=1000 headwater-collector --config collector.toml

SIGHUP reads the tracking plan again and looks at the certificate files, which are looked at every
tls.reload_interval_ms as well; files that cannot be used change nothing.

Exit codes: 0 stopped by a signal, 1 failed while running, 2 arguments or configuration cannot be used."
)]
struct Arguments {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do; without a command, the collector runs.
#[derive(Debug, Subcommand)]
enum Command {
    /// Look at what could not be accepted, and add what has become valid
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config: Config = match headwater_service::config::load(arguments.common.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return cli::fail(cli::EXIT_CONFIG, &error),
    };
    if let Err(error) = config.validate() {
        return cli::fail(cli::EXIT_CONFIG, &error);
    }
    if let Err(error) = Plan::load(config.plan.directory().as_deref()) {
        return cli::fail(cli::EXIT_CONFIG, &error);
    }
    if arguments.common.check_config {
        println!("configuration is valid");
        return ExitCode::from(cli::EXIT_OK);
    }
    logging::init(&config.log);
    if let Some(Command::Quarantine(command)) = arguments.command {
        return quarantine(command, &config);
    }
    match run(config) {
        Ok(()) => ExitCode::from(cli::EXIT_OK),
        Err(error) => cli::fail(cli::EXIT_FAILED, &*error),
    }
}

#[tokio::main]
async fn quarantine(command: QuarantineCommand, config: &Config) -> ExitCode {
    match command.execute(config).await {
        Ok(answer) => {
            print!("{answer}");
            ExitCode::from(cli::EXIT_OK)
        }
        Err(error) => cli::fail(cli::EXIT_FAILED, &error),
    }
}

#[tokio::main]
async fn run(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let stop = shutdown::on_signal()?;
    // From now on a SIGHUP is never what ends the process; one that comes during the start waits.
    let mut hangup = signal(SignalKind::hangup())?;
    let running = start(config, SystemClock::shared(), stop).await?;
    let certificates = Arc::clone(&running.reload);
    let (plan, catalog) = running.plan();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            certificates.notify_one();
            plan.reload(&catalog).await;
        }
    });
    running.finished().await?;
    Ok(())
}
