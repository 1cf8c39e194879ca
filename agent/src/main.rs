//! `headwater-agent`: arguments, configuration, signals; everything else is in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use headwater_agent::commands::Command;
use headwater_agent::{Config, StartError};
use headwater_service::cli::{self, CommonArgs, EXIT_CONFIG, EXIT_FAILED, EXIT_OK};
use headwater_service::clock::SystemClock;
use headwater_service::notify::{State, notify, watchdog_interval};
use headwater_service::{config, logging, shutdown};
use tokio::signal::unix::{SignalKind, signal};

/// Takes events from analytics SDKs, makes them durable and ships them to the collector
#[derive(Debug, Parser)]
#[command(version, long_about = ABOUT, after_help = SHORT_HELP, after_long_help = LONG_HELP)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

const ABOUT: &str = "\
Takes events from analytics SDKs over HTTP, makes them durable on this host's disk, ships them to the
collector over QUIC, and forgets them only after the collector has committed them to the tables.

An event that was answered with 200 is never lost: not when the agent is killed, not when the
collector is away for a week, not when the disk is full. Without a command the agent runs.";

const SHORT_HELP: &str = "\
Examples:
  headwater-agent --config agent.toml
  headwater-agent --config agent.toml --check-config
  headwater-agent status --config agent.toml

`--help` tells about files, signals, the environment and exit codes";

const LONG_HELP: &str = "\
Examples:
  headwater-agent --config agent.toml
      Run. Stop with SIGTERM.
  headwater-agent --config agent.toml --check-config
      Check the file without starting.
  HEADWATER__HTTP__LISTEN=0.0.0.0:7070 headwater-agent --config agent.toml
      Run with one setting changed.
  curl -u WRITE_KEY: http://127.0.0.1:7070/v1/track -d '{\"userId\":\"u1\",\"event\":\"Conversation Started\"}'
      Send an event.
  headwater-agent status --config agent.toml
      Ask whether events come in and leave the host.

Files:
  /etc/headwater/agent.toml
      The configuration in the systemd unit; deploy/config/agent.toml shows every key. Nothing is read
      without --config: then every setting has to come from the environment.
  BUFFER/generations/, BUFFER/marks, BUFFER/buffer.json
      What is accepted and not yet acknowledged (buffer.directory). Never edit or copy it while the
      agent runs.
  BUFFER/lock, BUFFER/reserve, BUFFER/window/
      Held while the agent runs; room to give back on a full disk; ids of recent events.
  BUFFER/quarantine/
      What could not be read and was set aside. Look at it with `export --quarantine`, then delete it.
  BUFFER/refused/
      Events that the collector did not take. Look at them with `export --refused`, then delete them.

  http.socket
      Unix socket for events, where the configuration names one; a stop removes it.

Environment:
  HEADWATER__SECTION__KEY   overrides section.key of the file, for example HEADWATER__LOG__LEVEL
  TMPDIR                    where inspect, fsck and export put their copy of a generation
  NOTIFY_SOCKET, WATCHDOG_USEC
                            set by systemd (Type=notify, WatchdogSec)

Signals:
  SIGTERM, SIGINT   stop within 5 s; what is not acknowledged stays in the buffer. A second one ends
                    the process at once, which loses nothing either.
  SIGHUP            read the configuration again. What needs a restart is named in the log; a file
                    that cannot be used changes nothing.

Exit codes:
  0   stopped as asked; the command found what it looked for
  1   failed while running; not ready (status); damaged (fsck);
      the output failed (inspect, export)
  2   the arguments or the configuration cannot be used; the command cannot tell
  130 ended by a second signal

See also: docs/agent.md (operation, failure by failure), docs/collector.md";

/// Keeps the allocator from holding on to memory that is free: few arenas although there are many
/// threads, and large blocks go back to the system at once. Halves what the process takes while a
/// backlog drains.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn bound_allocator() {
    const LARGE: libc::c_int = 256 * 1024;
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_MMAP_THRESHOLD, LARGE),
        (libc::M_TRIM_THRESHOLD, LARGE),
    ] {
        // SAFETY: sets a number inside the allocator, before there is a second thread.
        let taken = unsafe { libc::mallopt(parameter, value) };
        debug_assert_eq!(taken, 1, "the allocator knows the parameter");
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn bound_allocator() {}

fn main() -> ExitCode {
    bound_allocator();
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
    match args.command {
        None | Some(Command::Run) => run(config, args.common.config),
        Some(command) => command.execute(&config),
    }
}

fn run(config: Config, path: Option<PathBuf>) -> ExitCode {
    logging::init(&config.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return cli::fail(EXIT_FAILED, &error),
    };
    let code = runtime.block_on(serve(config, path));
    // A store that hangs must not hold the process: what was answered is durable.
    runtime.shutdown_background();
    code
}

async fn serve(config: Config, path: Option<PathBuf>) -> ExitCode {
    let stop = match shutdown::on_signal() {
        Ok(stop) => stop,
        Err(error) => return cli::fail(EXIT_FAILED, &error),
    };
    // From now on a SIGHUP is never what ends the process; one that comes during the start waits.
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return cli::fail(EXIT_FAILED, &error),
    };
    let running = match headwater_agent::start(config, SystemClock::shared(), stop.clone()).await {
        Ok(running) => running,
        Err(
            error @ (StartError::Config(_) | StartError::Tls(_) | StartError::AgentName { .. }),
        ) => {
            return cli::fail(EXIT_CONFIG, &error);
        }
        Err(error) => return cli::fail(EXIT_FAILED, &error),
    };
    notify(State::Ready);
    let stopping = stop.clone();
    tokio::spawn(async move {
        stopping.cancelled().await;
        notify(State::Stopping);
    });
    let reloader = running.reloader();
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            notify(State::Reloading);
            reloader.reload(config::load(path.as_deref()));
            notify(State::Ready);
        }
    });
    if let Some(interval) = watchdog_interval() {
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(interval);
            loop {
                ticks.tick().await;
                notify(State::Alive);
            }
        });
    }
    match running.finished().await {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(error) => cli::fail(EXIT_FAILED, &error),
    }
}
