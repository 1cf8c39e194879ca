//! `headwater-agent`: arguments, configuration, signals; everything else is in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use headwater_agent::{Config, StartError};
use headwater_service::cli::{self, CommonArgs, EXIT_CONFIG, EXIT_FAILED, EXIT_OK};
use headwater_service::clock::SystemClock;
use headwater_service::{config, logging, shutdown};
use tokio::signal::unix::{SignalKind, signal};

/// Takes events from analytics SDKs, makes them durable and ships them to the collector
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  headwater-agent --config agent.toml
  headwater-agent --config agent.toml --check-config
  HEADWATER__HTTP__LISTEN=0.0.0.0:7070 headwater-agent --config agent.toml

Send an event:
  curl -u WRITE_KEY: http://127.0.0.1:7070/v1/track \\
    -d '{\"userId\":\"u1\",\"event\":\"Conversation Started\"}'

Exit codes: 0 stopped as asked, 1 failed while running, 2 configuration cannot be used"
)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config: Config = match config::load(args.common.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return cli::fail(EXIT_CONFIG, &error),
    };
    if let Err(error) = config.validate() {
        return cli::fail(EXIT_CONFIG, &error);
    }
    if args.common.check_config {
        println!("configuration is valid");
        return ExitCode::from(EXIT_OK);
    }
    logging::init(&config.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return cli::fail(EXIT_FAILED, &error),
    };
    let code = runtime.block_on(run(config, args.common.config));
    // A store that hangs must not hold the process: what was answered is durable.
    runtime.shutdown_background();
    code
}

async fn run(config: Config, path: Option<PathBuf>) -> ExitCode {
    let stop = match shutdown::on_signal() {
        Ok(stop) => stop,
        Err(error) => return cli::fail(EXIT_FAILED, &error),
    };
    // From now on a SIGHUP is never what ends the process; one that comes during the start waits.
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return cli::fail(EXIT_FAILED, &error),
    };
    let running = match headwater_agent::start(config, SystemClock::shared(), stop).await {
        Ok(running) => running,
        Err(
            error @ (StartError::Config(_) | StartError::Tls(_) | StartError::AgentName { .. }),
        ) => {
            return cli::fail(EXIT_CONFIG, &error);
        }
        Err(error) => return cli::fail(EXIT_FAILED, &error),
    };
    let reloader = running.reloader();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reloader.reload(config::load(path.as_deref()));
        }
    });
    match running.finished().await {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(error) => cli::fail(EXIT_FAILED, &error),
    }
}
