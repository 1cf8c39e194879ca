//! `headwater-agent fsck`: is the buffer of a stopped agent whole?

use std::fmt::Write as _;
use std::process::ExitCode;

use headwater_service::cli::{EXIT_FAILED, EXIT_OK};

use super::{Output, counted, json, print, unknown};
use crate::buffer::{Check, Stopped};
use crate::config::Config;

pub(super) const HELP: &str = "\
Opens a copy of every generation (in TMPDIR, one at a time), checks the checksum of every value, that
no position is missing, and what it finds against the marks. The directory is not changed, and there
is nothing to repair by hand: the next start of the agent sets aside what it cannot read, counts it
and ships the rest. `export --quarantine` gives what can still be read of it. The events of refused/
are checked against their checksums; nothing but a person deletes those.

Examples:
  headwater-agent fsck --config /etc/headwater/agent.toml
  headwater-agent fsck --config /etc/headwater/agent.toml --json | jq .damage

Files:
  BUFFER/                    the directory that is read (buffer.directory): generations/, marks,
                             buffer.json, refused/; quarantine/ is counted

Environment:
  HEADWATER__SECTION__KEY    overrides section.key of the file
  TMPDIR                     where the copy of a generation goes, about 100 MB

Exit codes: 0 whole, 1 damaged (the positions are listed), 2 cannot tell (the agent runs, or there is
no such buffer)";

pub(super) fn execute(config: &Config, output: Output) -> ExitCode {
    let checked = Stopped::open(&config.buffer.directory).and_then(|stopped| stopped.check());
    let check = match checked {
        Ok(check) => check,
        Err(error) => return unknown(&error),
    };
    let text = if output.json {
        json(&check)
    } else {
        text(&check).expect("writing to memory cannot fail")
    };
    if let Err(code) = print(&text) {
        return code;
    }
    ExitCode::from(if check.damage.is_empty() {
        EXIT_OK
    } else {
        EXIT_FAILED
    })
}

fn text(check: &Check) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    for damage in &check.damage {
        match damage.positions {
            None => writeln!(out, "DAMAGED {}", damage.what)?,
            Some((first, last)) => writeln!(
                out,
                "DAMAGED positions {first}..{last} ({}{}): {}",
                counted(last - first + 1, "event"),
                if damage.acknowledged {
                    ", acknowledged: nothing is lost"
                } else {
                    ""
                },
                damage.what
            )?,
        }
    }
    let verdict = if check.damage.is_empty() {
        "whole"
    } else {
        "damaged; the next start sets aside the generations that it cannot read and ships the rest"
    };
    writeln!(
        out,
        "{} in {}: {verdict}",
        counted(check.events, "sound event"),
        counted(check.generations as u64, "generation")
    )?;
    if check.quarantined > 0 {
        writeln!(
            out,
            "quarantine/ holds {} from before; see `export --quarantine`",
            check.quarantined
        )?;
    }
    if check.refused > 0 {
        writeln!(
            out,
            "refused/ holds {} that the collector did not take; see `export --refused`",
            counted(check.refused, "sound event")
        )?;
    }
    Ok(out)
}
