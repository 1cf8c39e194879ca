//! `headwater-agent inspect`: what is buffered, how old, whose, by generation.

use std::fmt::Write as _;
use std::process::ExitCode;

use headwater_service::cli::EXIT_OK;

use super::ask::ask;
use super::{Output, bytes, count, counted, json, print, unknown};
use crate::buffer::{GenerationView, Inspection, Refused, Stopped, StoppedError};
use crate::config::Config;

pub(super) const HELP: &str = "\
A running agent is asked through its admin endpoint: it tells positions, events and bytes of every
generation, and whose the events are of those it has open (the oldest and the newest); a line of its
own, and `events_described` in the JSON, say how many events that leaves out. The directory of a
stopped agent is read whole and never changed: each generation is copied to TMPDIR and the copy is
read. Meanwhile no agent can start on it.

What lies in quarantine/ (could not be read) and in refused/ (the collector did not take it, by its
reason) is shown in both cases.

Examples:
  headwater-agent inspect --config /etc/headwater/agent.toml
  headwater-agent inspect --config /etc/headwater/agent.toml --json | jq .refused.reasons

Files:
  BUFFER/                    the directory that is read (buffer.directory): generations/, marks,
                             buffer.json, quarantine/, refused/

Environment:
  HEADWATER__SECTION__KEY    overrides section.key of the file
  TMPDIR                     where the copy of a generation goes, about 100 MB

Exit codes: 0 shown, 1 the output failed, 2 cannot tell (no such buffer, or an agent holds it and does
not answer)";

pub(super) fn execute(config: &Config, output: Output) -> ExitCode {
    let inspection = match Stopped::open(&config.buffer.directory) {
        Ok(stopped) => stopped.inspect(),
        Err(StoppedError::InUse(_)) => match ask(config, "/inspect") {
            Ok(inspection) => Ok(inspection),
            Err(error) => return unknown(&error),
        },
        Err(error) => Err(error),
    };
    let inspection = match inspection {
        Ok(inspection) => inspection,
        Err(error) => return unknown(&error),
    };
    let text = if output.json {
        json(&inspection)
    } else {
        text(&inspection).expect("writing to memory cannot fail")
    };
    match print(&text) {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(code) => code,
    }
}

fn text(inspection: &Inspection) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let owner = inspection.agent_id.as_ref().map(ToString::to_string);
    writeln!(
        out,
        "buffer of agent {} ({})",
        owner
            .as_deref()
            .unwrap_or("unknown: buffer.json cannot be read"),
        if inspection.running {
            "running"
        } else {
            "stopped"
        }
    )?;
    writeln!(
        out,
        "  {} not acknowledged, {} on disk in {}",
        counted(inspection.events, "event"),
        bytes(inspection.disk_bytes),
        counted(inspection.generations.len() as u64, "generation")
    )?;
    writeln!(
        out,
        "  positions: acknowledged {}, sent {}, durable {}",
        inspection.acked, inspection.sent, inspection.durable
    )?;
    let age = |time: &Option<String>| time.clone().unwrap_or_else(|| "-".to_owned());
    writeln!(
        out,
        "  received from {} to {}",
        age(&inspection.oldest_received_at),
        age(&inspection.newest_received_at)
    )?;
    if inspection.events_described < inspection.events {
        writeln!(
            out,
            "  sources are told of {} of {}: a running agent keeps the other generations closed",
            count(inspection.events_described),
            counted(inspection.events, "event")
        )?;
    }
    for generation in &inspection.generations {
        write_generation(&mut out, generation)?;
    }
    for set_aside in &inspection.quarantined {
        let size = bytes(set_aside.disk_bytes);
        writeln!(out, "quarantine/{}: {size}", set_aside.name)?;
    }
    write_refused(&mut out, &inspection.refused)?;
    Ok(out)
}

fn write_refused(out: &mut String, refused: &Refused) -> std::fmt::Result {
    if refused.events == 0 {
        return Ok(());
    }
    let (events, size) = (counted(refused.events, "event"), bytes(refused.disk_bytes));
    writeln!(out, "refused/: {events}, {size}")?;
    for (reason, number) in &refused.reasons {
        writeln!(out, "  {}: {reason}", counted(*number, "event"))?;
    }
    write_unreadable(out, refused.unreadable)
}

fn write_unreadable(out: &mut String, events: u64) -> std::fmt::Result {
    match events {
        0 => Ok(()),
        events => writeln!(out, "  UNREADABLE: {}", counted(events, "event")),
    }
}

fn write_generation(out: &mut String, generation: &GenerationView) -> std::fmt::Result {
    let GenerationView { first, last, .. } = generation;
    let events = counted(generation.events, "event");
    let size = bytes(generation.disk_bytes);
    if last < first {
        return writeln!(out, "generation {first}: empty, {size}");
    }
    writeln!(out, "generation {first}..{last}: {events}, {size}")?;
    if let Some(error) = &generation.error {
        writeln!(out, "  cannot be read: {error}")?;
    }
    let Some(contents) = &generation.contents else {
        return writeln!(out, "  closed while the agent runs: sources are not told");
    };
    if let (Some(oldest), Some(newest)) =
        (&contents.oldest_received_at, &contents.newest_received_at)
    {
        writeln!(out, "  received from {oldest} to {newest}")?;
    }
    write_unreadable(out, contents.unreadable)?;
    for source in &contents.sources {
        writeln!(
            out,
            "  {}/{}: {}, {}",
            source.company,
            source.source,
            counted(source.events, "event"),
            bytes(source.bytes)
        )?;
    }
    Ok(())
}
