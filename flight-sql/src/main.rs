//! The program `headwater-flight-sql`: reads the configuration and serves until told to stop.
//!
//! Place on the event's path: the read end. Promise: a configuration that cannot be used is one line
//! on standard error and exit code 2, before anything listens.

use std::process::ExitCode;

use clap::Parser;
use headwater_flight_sql::{Config, start};
use headwater_service::clock::SystemClock;
use headwater_service::{cli, config, logging, shutdown};

/// Answers SQL over the tables, read-only, by Arrow Flight SQL (JDBC, ADBC).
#[derive(Debug, Parser)]
#[command(
    name = "headwater-flight-sql",
    version,
    after_help = "Examples:\n  \
        headwater-flight-sql --config flight-sql.toml\n  \
        headwater-flight-sql --config flight-sql.toml --check-config\n  \
        HEADWATER__LIMITS__QUERIES_MAX=8 headwater-flight-sql --config flight-sql.toml\n\n\
        JDBC: jdbc:arrow-flight-sql://localhost:7090"
)]
struct Args {
    #[command(flatten)]
    common: cli::CommonArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config = match config::load::<Config>(args.common.config.as_deref())
        .and_then(|config| config.validate().map(|()| config))
    {
        Ok(config) => config,
        Err(error) => return cli::fail(cli::EXIT_CONFIG, &error),
    };
    if args.common.check_config {
        #[expect(clippy::print_stdout, reason = "the answer to --check-config")]
        {
            println!("configuration is valid");
        }
        return ExitCode::from(cli::EXIT_OK);
    }
    logging::init(&config.log);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return cli::fail(cli::EXIT_FAILED, &error),
    };
    runtime.block_on(run(config))
}

async fn run(config: Config) -> ExitCode {
    let stop = match shutdown::on_signal() {
        Ok(stop) => stop,
        Err(error) => return cli::fail(cli::EXIT_FAILED, &error),
    };
    let running = match start(config, SystemClock::shared(), stop).await {
        Ok(running) => running,
        Err(error) => return cli::fail(cli::EXIT_FAILED, &error),
    };
    match running.finished().await {
        Ok(()) => ExitCode::from(cli::EXIT_OK),
        Err(error) => cli::fail(cli::EXIT_FAILED, &error),
    }
}
