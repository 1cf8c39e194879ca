//! What the manual and the example file say, held against the program.

use headwater_agent::Config;
use tokio::process::Command;

use crate::harness::{Site, nobody, post_events, until_async};
use crate::process::{Process, config};

const MANUAL: &str = include_str!("../../../docs/agent.md");

fn example() -> (Config, String) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config/agent.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let path = std::path::Path::new(path);
    let config = headwater_service::config::load_with(Some(path), std::iter::empty()).unwrap();
    (config, text)
}

#[test]
fn example_configuration_is_valid_and_holds_the_defaults() {
    let (example, text) = example();
    example.validate().unwrap();
    let defaults = Config::new(example.tls.clone(), example.write_keys.clone());
    assert_eq!(format!("{example:?}"), format!("{defaults:?}"));
    // Every key of every section is shown.
    for (section, keys) in debug_keys(&format!("{defaults:#?}")) {
        for key in keys {
            assert!(
                text.contains(&format!("\n{key} = ")),
                "`{section}.{key}` is not shown"
            );
        }
    }
}

/// Returns the field names of a pretty debug text by struct.
fn debug_keys(text: &str) -> Vec<(String, Vec<String>)> {
    let mut out: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        let depth = line.len() - line.trim_start().len();
        let Some((name, value)) = line.trim().split_once(": ") else {
            continue;
        };
        match depth {
            4 if value.ends_with('{') => out.push((name.to_owned(), Vec::new())),
            8 => out.last_mut().unwrap().1.push(name.to_owned()),
            _ => {}
        }
    }
    out
}

#[test]
fn documentation_lists_every_metric() {
    for (name, _, _) in headwater_agent::metrics::ALL {
        assert!(
            MANUAL.contains(&format!("| `{name}` |")),
            "`{name}` is missing in docs/agent.md"
        );
    }
}

/// Returns the cells of the table under "## Bounds", a row each.
fn bounds() -> Vec<Vec<&'static str>> {
    let (_, section) = MANUAL.split_once("\n## Bounds\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let cells = |row: &'static str| row.trim_matches('|').split('|').map(str::trim).collect();
    rows.skip(1).map(cells).collect()
}

/// Returns the settings of a configuration file as `section.key`.
fn settings(text: &str) -> Vec<String> {
    let mut section = "";
    let mut settings = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            settings.push(format!("{section}.{key}"));
        }
    }
    settings
}

/// Returns what stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[tokio::test]
async fn every_bound_of_the_manual_has_a_setting_and_a_metric_of_a_running_agent() {
    let (_, text) = example();
    let settings = settings(&text);
    let site = Site::new();
    let process = Process::start(&site, nobody()).await;
    post_events(process.address, "e", 1, 0).await;
    // The buffer's gauges are set once a second, the shipper's when it starts.
    let mut exported = String::new();
    until_async("gauges are shown", async || {
        exported = process.admin("/metrics").await.body;
        ["agent_buffer_disk_bytes ", "agent_collector_connected{"]
            .iter()
            .all(|it| exported.contains(it))
    })
    .await;
    let rows = bounds();
    let mut listed = Vec::new();
    for row in &rows {
        let [what, setting, default, metric, consequence] = row[..] else {
            panic!("{row:?}");
        };
        for cell in [setting, default, metric, consequence] {
            assert!(!cell.is_empty(), "{what}: {row:?}");
        }
        let before = listed.len();
        for setting in quoted(setting) {
            let is_known = settings.iter().any(|it| it == setting);
            assert!(is_known, "{what}: `{setting}` is no setting");
            listed.push(setting);
        }
        assert!(listed.len() > before, "{what} has no setting");
        assert!(quoted(metric).count() > 0, "{what} has no metric");
        for metric in quoted(metric) {
            // A distribution shows its sum and count.
            let is_shown = |line: &str| {
                let rest = line.strip_prefix(metric);
                rest.is_some_and(|rest| rest.starts_with([' ', '{', '_']))
            };
            let is_exported = exported.lines().any(is_shown);
            assert!(is_exported, "{what}: `{metric}` is not exported");
        }
    }
    // And none is left out.
    for setting in &settings {
        let is_bound = setting.ends_with("_max") || setting.ends_with("_min");
        assert!(
            !is_bound || listed.contains(&setting.as_str()),
            "`{setting}` is not in the table of bounds"
        );
    }
    println!("{} bounds, {} settings", rows.len(), listed.len());
}

async fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headwater-agent"));
    let output = command.args(arguments).output().await.unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[tokio::test]
async fn every_help_is_a_manual_page_whose_examples_can_be_run() {
    let site = Site::new();
    std::fs::write(site.path("agent.toml"), config(&site, nobody())).unwrap();
    let toml = site.path("agent.toml").display().to_string();
    let mut run_examples = 0;
    for command in ["", "run", "status", "inspect", "fsck", "export"] {
        let arguments = [command, "--help"];
        let (code, help) = run(&arguments[usize::from(command.is_empty())..]).await;
        assert_eq!(code, Some(0));
        for section in [
            "Usage: headwater-agent",
            "Options:\n",
            "Examples:\n",
            "Files:\n",
            "Environment:\n",
            "Exit codes:",
        ] {
            assert!(help.contains(section), "{command}: no {section} in\n{help}");
        }
        for line in help.lines() {
            assert!(line.chars().count() <= 104, "{command}: too wide: {line}");
        }
        let (_, examples) = help.split_once("Examples:\n").unwrap();
        let (examples, _) = examples.split_once("Files:\n").unwrap();
        for example in examples.lines().map(str::trim) {
            let Some(example) = example.strip_prefix("headwater-agent ") else {
                continue;
            };
            let end = example.find(['|', '>']).unwrap_or(example.len());
            let arguments: Vec<&str> = example[..end]
                .split_whitespace()
                .map(|it| {
                    if it.ends_with("agent.toml") {
                        &toml
                    } else {
                        it
                    }
                })
                .filter(|it| *it != "--check-config")
                .chain(["--check-config"])
                .collect();
            let (code, told) = run(&arguments).await;
            assert_eq!(code, Some(0), "{example}: {told}");
            assert_eq!(told, "configuration is valid\n", "{example}");
            run_examples += 1;
        }
    }
    assert!(run_examples >= 13, "{run_examples}");
}
