//! Series of `/metrics` that are made when somebody looks: the age of the oldest staged batch, which grows
//! while nothing happens, and those whose labels come and go: the agents that are furthest behind, and the
//! companies with the most events.
//!
//! Beside the path. A recorder keeps a number until somebody sets it, and a label for ever. Promise: at
//! most `limits.series_max` of each label, whatever the number of agents and companies.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use parking_lot::Mutex;

use crate::ledger::{Lag, Ledger};
use crate::metrics as names;

/// Companies that are told apart; those that come later count together.
const COMPANIES_MAX: usize = 10_000;

/// The name under which they do.
const OTHERS: &str = "other";

/// Committed events by company, since the start.
#[derive(Debug, Default)]
pub(crate) struct Companies(Mutex<HashMap<String, u64>>);

impl Companies {
    /// Counts `events` of `company`.
    pub(crate) fn count(&self, company: &str, events: u64) {
        let mut counts = self.0.lock();
        if let Some(count) = counts.get_mut(company) {
            *count += events;
            return;
        }
        let company = if counts.len() < COMPANIES_MAX {
            company
        } else {
            OTHERS
        };
        *counts.entry(company.to_owned()).or_default() += events;
    }

    /// Returns those with the most events.
    fn largest(&self, most: usize) -> Vec<(String, u64)> {
        let counts = self.0.lock();
        let mut all: Vec<(&String, u64)> = counts.iter().map(|(name, n)| (name, *n)).collect();
        all.sort_unstable_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(other.0)));
        all.truncate(most);
        all.into_iter().map(|(name, n)| (name.clone(), n)).collect()
    }
}

/// Returns the series as text for `/metrics`.
pub(crate) fn text(
    ledger: &Ledger,
    companies: &Companies,
    oldest_staged: Duration,
    most: usize,
) -> String {
    let lags = ledger.furthest_behind(most);
    let mut out = String::new();
    let (name, age_s) = (names::STAGED_OLDEST_SECONDS, oldest_staged.as_secs_f64());
    begin(&mut out, name);
    writeln!(out, "{name} {age_s}").expect("memory takes text");
    let mut write = |name: &str, label: &str, series: Vec<(&str, String)>| {
        begin(&mut out, name);
        for (value, number) in series {
            let value = escaped(value);
            writeln!(out, "{name}{{{label}=\"{value}\"}} {number}").expect("memory takes text");
        }
    };
    let of = |number: fn(&Lag) -> String| -> Vec<(&str, String)> {
        lags.iter()
            .map(|lag| (lag.agent.as_str(), number(lag)))
            .collect()
    };
    write(
        names::AGENT_LAG_EVENTS,
        "agent",
        of(|lag| lag.events.to_string()),
    );
    write(
        names::AGENT_LAG_SECONDS,
        "agent",
        of(|lag| lag.still.as_secs_f64().to_string()),
    );
    let largest = companies.largest(most);
    let largest = largest
        .iter()
        .map(|(name, n)| (name.as_str(), n.to_string()));
    write(names::COMPANY_EVENTS, "company", largest.collect());
    out
}

/// Says what a metric is.
fn begin(out: &mut String, name: &str) {
    let (_, kind, _, help) = names::ALL
        .iter()
        .find(|metric| metric.0 == name)
        .expect("every metric is described");
    let kind = kind.as_str();
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("memory takes text");
}

fn escaped(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn companies_are_bounded_and_the_largest_come_first() {
        let companies = Companies::default();
        for n in 0..COMPANIES_MAX as u64 + 50 {
            companies.count(&format!("c-{n}"), 1);
        }
        companies.count("c-7", 100);
        assert_eq!(companies.0.lock().len(), COMPANIES_MAX + 1);
        let largest = companies.largest(3);
        let expected = [("c-7", 101), (OTHERS, 50), ("c-0", 1)];
        assert_eq!(largest, expected.map(|(name, n)| (name.to_owned(), n)));
    }

    #[test]
    fn the_oldest_batch_is_as_old_as_it_is_when_somebody_looks() {
        let age = Duration::from_millis(7_500);
        let text = text(&Ledger::default(), &Companies::default(), age, 5);
        let kind = "# TYPE collector_staged_oldest_seconds gauge";
        assert!(text.contains(&format!("{kind}\ncollector_staged_oldest_seconds 7.5\n")));
    }

    #[test]
    fn a_label_cannot_break_out_of_its_series() {
        let companies = Companies::default();
        companies.count("a\"} 1\nb", 2);
        let text = text(&Ledger::default(), &companies, Duration::ZERO, 5);
        let last = text.lines().last().unwrap();
        assert_eq!(
            last,
            r#"collector_company_events_total{company="a\"} 1\nb"} 2"#
        );
    }
}
