//! `headwater-agent status`: does the running agent take events, and do they leave the host?

use std::fmt::Write as _;
use std::process::ExitCode;

use headwater_service::cli::{EXIT_FAILED, EXIT_OK};

use super::ask::ask;
use super::{Output, Report, bytes, count, counted, duration, json, print, unknown};
use crate::config::Config;

pub(super) const HELP: &str = "\
The answer comes from the admin endpoint (admin.listen) and holds no payloads and no secrets.

Examples:
  headwater-agent status --config /etc/headwater/agent.toml
  headwater-agent status --config /etc/headwater/agent.toml --json | jq .events

Files:
  /etc/headwater/agent.toml  the configuration in the systemd unit; it names the admin endpoint

Environment:
  HEADWATER__SECTION__KEY    overrides section.key of the file, as for the agent itself

Exit codes: 0 ready, 1 not ready (the first line says why), 2 no agent answers, or the
configuration cannot be used";

pub(super) fn execute(config: &Config, output: Output) -> ExitCode {
    let report: Report = match ask(config, "/status") {
        Ok(report) => report,
        Err(error) => return unknown(&error),
    };
    let text = if output.json {
        json(&report)
    } else {
        text(&report)
    };
    if let Err(code) = print(&text) {
        return code;
    }
    ExitCode::from(match report.not_ready {
        None => EXIT_OK,
        Some(_) => EXIT_FAILED,
    })
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let state = match &report.not_ready {
        None => "ready".to_owned(),
        Some(reason) => format!("NOT READY: {reason}"),
    };
    let session = match (report.session, &report.session_failure) {
        (Some(collector), _) => format!("open with {collector}"),
        (None, Some(failure)) => format!("none: {failure}"),
        (None, None) => "none".to_owned(),
    };
    let refused = if report.refused.values().all(|count| *count == 0) {
        "none".to_owned()
    } else {
        let reasons = report.refused.iter().filter(|(_, number)| **number > 0);
        let reasons: Vec<String> = reasons
            .map(|(reason, number)| format!("{} {reason}", count(*number)))
            .collect();
        reasons.join(", ")
    };
    let lines = [
        ("running for", duration(report.uptime_s)),
        ("session", session),
        (
            "buffered",
            format!(
                "{}, the oldest {} old",
                counted(report.events, "event"),
                duration(report.oldest_age_s)
            ),
        ),
        (
            "positions",
            format!(
                "acknowledged {}, sent {}, durable {}",
                report.acked, report.sent, report.durable
            ),
        ),
        (
            "disk",
            format!(
                "{} of {} in {}",
                bytes(report.disk_bytes),
                bytes(report.disk_bytes_max),
                counted(report.generations as u64, "generation")
            ),
        ),
        ("refused", refused),
        (
            "lost",
            format!(
                "{}; {} set aside",
                counted(report.lost, "event"),
                counted(report.quarantined, "generation")
            ),
        ),
    ];
    let agent = &report.agent_id;
    writeln!(out, "agent {agent} (version {}): {state}", report.version)
        .and_then(|()| {
            lines
                .iter()
                .try_for_each(|(name, value)| writeln!(out, "  {name:<12} {value}"))
        })
        .expect("writing to memory cannot fail");
    out
}
