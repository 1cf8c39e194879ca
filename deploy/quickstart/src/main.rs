//! The command line of `headwater`: the quickstart, development certificates, the sample database.

use std::path::PathBuf;
use std::process::ExitCode;

use chrono::NaiveDate;
use clap::{Args, Parser, Subcommand};
use headwater_quickstart::desk::Desk;
use headwater_quickstart::node::AGENT;
use headwater_quickstart::operational;
use headwater_quickstart::pki::Pki;
use headwater_quickstart::quickstart::{self, QuickstartError};
use headwater_quickstart::settings::Settings;
use headwater_quickstart::world::{SEED, time::Window};
use headwater_service::cli::{CommonArgs, EXIT_CONFIG, EXIT_FAILED, fail};
use headwater_service::clock::{Clock, SystemClock};
use headwater_service::{config, logging, shutdown};
use tokio_util::sync::CancellationToken;

const EXAMPLES: &str = "Examples:
  headwater                                     play the sample, show a report, serve until Ctrl-C
  headwater --data-dir /tmp/sample --exit       the same elsewhere, and end after the report
  headwater --http-port 0 --sql-port 0          take free ports and print them
  headwater night                               bring today's events into the reports
  headwater certificates --dir pki --agent a    development certificates for separate processes
  headwater operational-db --uri postgres://u:p@localhost/db

Write key: demo-write-key. SQL user: demo, password: demo. Everything listens on 127.0.0.1 only.";

/// Headwater in one process: plays three days at a busy support desk and serves the tables.
#[derive(Debug, Parser)]
#[command(name = "headwater", version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    /// Directory of everything that is kept [default: headwater-data]
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// End after the report instead of serving
    #[arg(long)]
    exit: bool,
    #[command(flatten)]
    ports: PortArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Ports on 127.0.0.1; 0 takes a free one.
#[derive(Debug, Args)]
#[command(next_help_heading = "Ports (0 takes a free one)")]
struct PortArgs {
    /// Ingest API [default: 7070]
    #[arg(long, value_name = "PORT")]
    http_port: Option<u16>,
    /// Collector, UDP [default: 7080]
    #[arg(long, value_name = "PORT")]
    quic_port: Option<u16>,
    /// Flight SQL [default: 7090]
    #[arg(long, value_name = "PORT")]
    sql_port: Option<u16>,
    /// Admin endpoints of agent, collector and SQL server [default: 7071,7081,7091]
    #[arg(long, value_name = "PORT,PORT,PORT", value_parser = three_ports)]
    admin_ports: Option<[u16; 3]>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the reports of one day on the data directory, also while `headwater` serves it
    Night {
        /// The day, local to each company [default: today where the demo write key's company is]
        #[arg(long, value_name = "DATE")]
        date: Option<NaiveDate>,
    },
    /// Make development certificates: a CA, both servers, agents; what is there stays
    Certificates {
        /// Directory of the files; keys get mode 0600
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Name (id) of an agent; may be given several times
        #[arg(long = "agent", value_name = "NAME", default_value = AGENT)]
        agents: Vec<String>,
    },
    /// Write the sample operational database into an empty SQLite file or PostgreSQL database
    OperationalDb {
        /// `sqlite:///FILE` or `postgres://USER:PASSWORD@HOST/DATABASE`
        #[arg(long)]
        uri: String,
        /// Seed of the sample
        #[arg(long, default_value_t = SEED)]
        seed: u64,
        /// Last of the three days [default: yesterday, UTC]
        #[arg(long, value_name = "DATE")]
        last_day: Option<NaiveDate>,
    },
}

fn three_ports(text: &str) -> Result<[u16; 3], String> {
    let ports: Result<Vec<u16>, _> = text.split(',').map(|port| port.trim().parse()).collect();
    ports
        .ok()
        .and_then(|ports| ports.try_into().ok())
        .ok_or_else(|| "give three port numbers, such as `7071,7081,7091`".to_owned())
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        Some(Command::Certificates { dir, agents }) => certificates(dir, agents),
        Some(Command::OperationalDb {
            uri,
            seed,
            last_day,
        }) => operational_db(uri, *seed, *last_day),
        Some(Command::Night { date }) => with_settings(&cli, async |settings, stop| {
            quickstart::run_night(settings, *date, SystemClock::shared(), stop).await
        }),
        None => with_settings(&cli, async |settings, stop| {
            quickstart::run(settings, cli.exit, SystemClock::shared(), stop).await
        }),
    }
}

fn certificates(dir: &std::path::Path, agents: &[String]) -> ExitCode {
    match Pki::prepare(dir, agents) {
        Ok(pki) => {
            println!("CA          {}", pki.ca().display());
            println!("collector   {}", pki.collector().certificate.display());
            println!("flight-sql  {}", pki.flight_sql().certificate.display());
            for agent in agents {
                println!("{agent:<11} {}", pki.agent(agent).certificate.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(EXIT_FAILED, &error),
    }
}

fn operational_db(uri: &str, seed: u64, last_day: Option<NaiveDate>) -> ExitCode {
    let window = last_day.map_or_else(|| Window::before(SystemClock.now()), |last| Window { last });
    let written = runtime().and_then(|runtime| {
        let desk = Desk::open(seed, window);
        runtime
            .block_on(operational::write(uri, &desk))
            .map_err(|error| fail(EXIT_FAILED, &error))
    });
    match written {
        Ok(rows) => {
            println!("{rows} rows written");
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}

/// Runs `work` with the settings, logs and a stop token that Ctrl-C cancels.
fn with_settings(
    cli: &Cli,
    work: impl AsyncFnOnce(&Settings, CancellationToken) -> Result<(), QuickstartError>,
) -> ExitCode {
    let settings = match settings(cli) {
        Ok(settings) => settings,
        Err(error) => return fail(EXIT_CONFIG, &error),
    };
    if cli.common.check_config {
        println!("configuration is valid");
        return ExitCode::SUCCESS;
    }
    logging::init(&settings.log);
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(code) => return code,
    };
    runtime.block_on(async {
        let stop = match shutdown::on_signal() {
            Ok(stop) => stop,
            Err(error) => return fail(EXIT_FAILED, &error),
        };
        match work(&settings, stop).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(EXIT_FAILED, &error),
        }
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, ExitCode> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| fail(EXIT_FAILED, &error))
}

/// Returns file and environment, overruled by the arguments.
fn settings(cli: &Cli) -> Result<Settings, config::ConfigError> {
    let mut settings: Settings = config::load(cli.common.config.as_deref())?;
    if let Some(directory) = &cli.data_dir {
        settings.data_dir.clone_from(directory);
    }
    let ports = &mut settings.ports;
    for (port, given) in [
        (&mut ports.http, cli.ports.http_port),
        (&mut ports.quic, cli.ports.quic_port),
        (&mut ports.sql, cli.ports.sql_port),
    ] {
        *port = given.unwrap_or(*port);
    }
    if let Some(three) = cli.ports.admin_ports {
        [ports.http_admin, ports.quic_admin, ports.sql_admin] = three;
    }
    settings.validate()?;
    Ok(settings)
}
