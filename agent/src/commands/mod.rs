//! What an operator asks an agent, running or stopped: `status`, `inspect`, `fsck`, `export`.
//!
//! The commands read; none of them changes a buffer. Answers go to standard output, one line on what
//! went wrong to standard error, and the exit code says the outcome.

mod ask;
mod export;
mod fsck;
mod inspect;
mod status;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use headwater_service::cli::{self, EXIT_FAILED, EXIT_OK};

use crate::buffer::Position;
use crate::config::Config;

/// The document that `status` asks for.
pub use crate::status::Report;

/// The command cannot tell: the agent runs, does not run, or does not answer.
const EXIT_UNKNOWN: u8 = 2;

const RUN_HELP: &str = "\
The same as no command at all. `headwater-agent --help` tells about every file and signal.

Examples:
  headwater-agent run --config /etc/headwater/agent.toml
  headwater-agent run --config /etc/headwater/agent.toml --check-config

Files:
  /etc/headwater/agent.toml  the configuration in the systemd unit
  BUFFER/                    what is accepted and not acknowledged (buffer.directory); locked while it
                             runs

Environment:
  HEADWATER__SECTION__KEY    overrides section.key of the file

Exit codes: 0 stopped as asked, 1 failed while running, 2 the arguments or the configuration cannot be
used, 130 ended by a second signal";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take events, make them durable, ship them (the default)
    #[command(after_help = RUN_HELP)]
    Run,
    /// Ask the running agent whether events come in and leave the host
    #[command(after_help = status::HELP)]
    Status(Output),
    /// Show what is buffered, how old it is and whose it is, by generation
    #[command(after_help = inspect::HELP)]
    Inspect(Output),
    /// Check that the buffer of a stopped agent is whole
    #[command(after_help = fsck::HELP)]
    Fsck(Output),
    /// Write the events that a stopped agent has not delivered as NDJSON
    #[command(after_help = export::HELP)]
    Export(ExportArgs),
}

/// How to print.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

/// What to export.
#[derive(Debug, Clone, Copy, Args)]
pub struct ExportArgs {
    /// First position to export
    #[arg(long, value_name = "POSITION", default_value_t = 1)]
    from: Position,
    /// Last position to export [default: the newest]
    #[arg(long, value_name = "POSITION", default_value_t = Position::MAX, hide_default_value = true)]
    to: Position,
    /// Export what can be read of quarantine/ instead, delivered or not
    #[arg(long)]
    quarantine: bool,
    /// Export refused/ instead, with the collector's reasons; the agent may run
    #[arg(long, conflicts_with = "quarantine")]
    refused: bool,
}

impl Command {
    /// Runs the command against the agent of `config`. [`Command::Run`] is not run here.
    pub fn execute(self, config: &Config) -> ExitCode {
        match self {
            Self::Run => ExitCode::from(EXIT_OK),
            Self::Status(output) => status::execute(config, output),
            Self::Inspect(output) => inspect::execute(config, output),
            Self::Fsck(output) => fsck::execute(config, output),
            Self::Export(args) => export::execute(config, args),
        }
    }
}

/// Prints `error` and returns the code for "cannot tell".
fn unknown(error: &dyn std::error::Error) -> ExitCode {
    cli::fail(EXIT_UNKNOWN, error)
}

/// Prints a document; a reader that has gone away is no error.
fn print(text: &str) -> Result<(), ExitCode> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(cli::fail(EXIT_FAILED, &error))
        }
        _ => Ok(()),
    }
}

/// Returns `value` as JSON with a line break.
fn json(value: &impl serde::Serialize) -> String {
    let text = serde_json::to_string_pretty(value).expect("strings and numbers always serialise");
    text + "\n"
}

/// Writes 1234567 as `1,234,567`.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Writes `1 generation`, `2 generations`.
fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(number))
}

/// Writes bytes in the largest unit that leaves a number above 1.
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn bytes(number: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(bits, _)| number >> bits > 0) {
        Some((bits, unit)) => format!("{:.1} {unit}", number as f64 / (1_u64 << bits) as f64),
        None => format!("{number} B"),
    }
}

/// Writes seconds as days, hours, minutes and seconds, the two largest of them.
fn duration(seconds: u64) -> String {
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ];
    let shown = parts.iter().skip_while(|(value, _)| *value == 0).take(2);
    let text: Vec<String> = shown
        .map(|(value, unit)| format!("{value} {unit}"))
        .collect();
    if text.is_empty() {
        "0 s".to_owned()
    } else {
        text.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let counts = [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ];
        for (number, text) in counts {
            assert_eq!(count(number), text);
        }
        let sizes = [(17, "17 B"), (1536, "1.5 KiB"), (8 << 30, "8.0 GiB")];
        for (number, text) in sizes {
            assert_eq!(bytes(number), text);
        }
        let durations = [
            (0, "0 s"),
            (59, "59 s"),
            (3661, "1 h 1 min"),
            (90_000, "1 d 1 h"),
        ];
        for (seconds, text) in durations {
            assert_eq!(duration(seconds), text);
        }
    }
}
