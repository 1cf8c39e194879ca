//! `status`, `inspect`, `fsck` and `export` against the real process and what it leaves behind.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;

use headwater_protocol::timestamp;
use headwater_service::clock::{Clock, SystemClock};
use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{Site, disk_bytes, event, nobody, post, post_events, until, until_async};
use crate::process::{Process, config};

/// Runs a command of the agent with the settings of the site, and `admin` where it is asked for.
async fn agent(site: &Site, admin: Option<SocketAddr>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headwater-agent"));
    command
        .args(arguments)
        .arg("--config")
        .arg(site.path("agent.toml"));
    if let Some(admin) = admin {
        command.env("HEADWATER__ADMIN__LISTEN", admin.to_string());
    }
    command.output().await.unwrap()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text} {output:?}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn inspect(site: &Site, admin: Option<SocketAddr>) -> Value {
    let output = agent(site, admin, &["inspect", "--json"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    json(&output)
}

/// The bytes of every file below a directory.
fn contents(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            found.insert(path.display().to_string(), bytes);
        }
    }
    found
}

fn sum_of_sources(inspection: &Value) -> u64 {
    let generations = inspection["generations"].as_array().unwrap().iter();
    let sources = generations.flat_map(|it| it["contents"]["sources"].as_array().unwrap());
    sources.map(|it| it["events"].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn gauges_equal_what_inspect_finds_running_and_killed() {
    let site = Site::new();
    let mut process = Process::start(&site, nobody()).await;
    // Settings of 300 events per generation.
    post_events(process.address, "e", 1000, 600).await;
    let mut running = Value::Null;
    until_async("gauges and inspect agree", async || {
        running = inspect(&site, Some(process.admin)).await;
        let events = process.metric("agent_buffered_events").await;
        let disk = process.metric("agent_buffer_disk_bytes").await;
        let generations = process.metric("agent_buffer_generations").await;
        events > 0.0
            && running["events"].as_f64() == Some(events)
            && running["disk_bytes"].as_f64() == Some(disk)
            && running["generations"].as_array().unwrap().len() as f64 == generations
    })
    .await;
    assert_eq!(running["running"], true);
    assert_eq!(running["agent_id"], "agent-1");
    assert_eq!(running["events"], 1000);
    assert_eq!(running["generations"].as_array().unwrap().len(), 4);
    let told: Vec<bool> = running["generations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["contents"].is_object())
        .collect();
    assert_eq!(told, [true, false, false, true], "the rest stays closed");
    assert_eq!(running["events_described"], 400, "of 300 and 100 events");
    let shown = agent(&site, Some(process.admin), &["inspect"]).await;
    assert!(
        text(&shown).contains("sources are told of 400 of 1,000 events"),
        "{}",
        text(&shown)
    );
    let oldest = timestamp::parse(running["oldest_received_at"].as_str().unwrap()).unwrap();
    let waited_s = || (SystemClock.now() - oldest) / 1_000_000;
    // The gauge is never ahead of the truth, and comes to what is true now.
    let now = waited_s().max(1);
    until_async("the age gauge follows", async || {
        let age = process
            .metric("agent_oldest_unacknowledged_age_seconds")
            .await as i64;
        assert!(age <= waited_s(), "{age}");
        age >= now
    })
    .await;

    process.child.kill().await.unwrap();
    let before = contents(&site.buffer());
    let stopped = inspect(&site, None).await;
    for same in [
        "agent_id",
        "acked",
        "sent",
        "durable",
        "events",
        "oldest_received_at",
        "newest_received_at",
    ] {
        assert_eq!(running[same], stopped[same], "{same}");
    }
    assert_eq!(stopped["running"], false);
    // The store may have written on its own between the last look and the kill.
    assert_eq!(stopped["disk_bytes"], disk_bytes(&site.buffer()));
    assert_eq!(sum_of_sources(&stopped), 1000);
    assert_eq!(stopped["events_described"], 1000);
    let positions = |inspection: &Value| -> Vec<(Value, Value, Value)> {
        let generations = inspection["generations"].as_array().unwrap().iter();
        let numbers = generations.map(|it| (&it["first"], &it["last"], &it["events"]));
        numbers
            .map(|(a, b, c)| (a.clone(), b.clone(), c.clone()))
            .collect()
    };
    assert_eq!(positions(&running), positions(&stopped));
    let source = &stopped["generations"][0]["contents"]["sources"][0];
    assert_eq!(
        (&source["company"], &source["source"]),
        (&"acme".into(), &"web".into())
    );

    let checked = agent(&site, None, &["fsck", "--json"]).await;
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked));
    assert_eq!(json(&checked)["events"], 1000);
    let exported = agent(&site, None, &["export", "--from", "11", "--to", "990"]).await;
    assert_eq!(exported.status.code(), Some(0));
    let lines = String::from_utf8(exported.stdout).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect();
    assert_eq!(lines.len(), 980);
    for (line, position) in lines.iter().zip(11..) {
        assert_eq!(line["position"], position);
        let id = format!("e-{}", position - 1);
        assert_eq!(line["body"]["messageId"], id.as_str());
        assert_eq!(
            (&line["company"], &line["source"]),
            (&"acme".into(), &"web".into())
        );
    }
    assert!(
        before == contents(&site.buffer()),
        "the commands changed the buffer"
    );
    println!("1000 events in 4 generations: gauges, inspect, fsck and export agree");
}

#[tokio::test]
async fn export_keeps_what_is_no_json_and_keeps_a_line_a_line() {
    let site = Site::new();
    let mut process = Process::start(&site, nobody()).await;
    let address = process.address;
    let pretty = event("pretty", 1).replace(',', ",\r\n");
    assert_eq!(post(address, "/v1/track", &pretty).await.status, 200);
    assert_eq!(post(address, "/v1/track", "{cut off").await.status, 400);
    process.child.kill().await.unwrap();
    let exported = agent(&site, None, &["export"]).await;
    let lines = String::from_utf8(exported.stdout).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["body"]["messageId"], "pretty");
    assert_eq!(lines[1]["body"], Value::Null);
    assert_eq!(lines[1]["body_base64"], "e2N1dCBvZmY=");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_events_are_shown_checked_and_exported_with_their_reason() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Poison).await;
    let mut process = Process::start(&site, collector.address).await;
    let mut poison = Vec::new();
    for (id, padding) in [("poison-1", 10), ("poison-2", 80_000), ("poison-3", 10)] {
        let body = event(id, padding);
        assert_eq!(post(process.address, "/v1/track", &body).await.status, 200);
        poison.push(body);
    }
    post_events(process.address, "good", 10, 10).await;
    until("the good ones arrive", || {
        tables.lock().message_ids().len() == 10
    })
    .await;
    let running = inspect(&site, Some(process.admin)).await;
    let exported = agent(&site, None, &["export", "--refused"]).await;
    assert_eq!(exported.status.code(), Some(0), "{}", text(&exported));
    let second = agent(
        &site,
        None,
        &["export", "--refused", "--from", "2", "--to", "2"],
    )
    .await;
    process.child.kill().await.unwrap();

    let stopped = inspect(&site, None).await;
    assert_eq!(stopped["refused"]["events"], 3);
    assert_eq!(stopped["refused"]["reasons"]["poison"], 3);
    assert_eq!(stopped["refused"]["unreadable"], 0);
    assert!(stopped["refused"]["disk_bytes"].as_u64().unwrap() >= 80_000);
    assert_eq!(running["refused"], stopped["refused"]);
    let shown = text(&agent(&site, None, &["inspect"]).await);
    assert!(shown.contains("refused/: 3 events, "), "{shown}");
    assert!(shown.contains("\n  3 events: poison\n"), "{shown}");

    let lines = String::from_utf8(exported.stdout).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    for ((line, body), position) in lines.iter().zip(&poison).zip(1..) {
        assert_eq!(line["position"], position);
        assert_eq!(line["sequence"], position);
        assert!(line["epoch"].as_u64().unwrap() > 0);
        assert_eq!(line["reason"], "poison");
        assert_eq!(line["company"], "acme");
        assert_eq!(line["body"], serde_json::from_str::<Value>(body).unwrap());
    }
    let second: Value = serde_json::from_slice(&second.stdout).unwrap();
    assert_eq!(second, lines[1]);

    let checked = agent(&site, None, &["fsck"]).await;
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked));
    assert!(text(&checked).contains("refused/ holds 3 sound events"));
    // One flipped bit of a record, and one file without its first line.
    let mut files: Vec<_> = std::fs::read_dir(site.buffer().join("refused"))
        .unwrap()
        .collect();
    files.sort_by_key(|entry| entry.as_ref().unwrap().path());
    let path = |index: usize| files[index].as_ref().unwrap().path();
    let mut bytes = std::fs::read(path(0)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path(0), bytes).unwrap();
    std::fs::write(path(2), "no header").unwrap();
    let checked = agent(&site, None, &["fsck", "--json"]).await;
    assert_eq!(checked.status.code(), Some(1));
    let checked = json(&checked);
    assert_eq!(checked["refused"], 1);
    let damage: Vec<&str> = checked["damage"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["what"].as_str().unwrap())
        .collect();
    assert_eq!(damage.len(), 2, "{damage:?}");
    assert!(damage[0].contains("checksum"), "{damage:?}");
    assert!(damage[1].contains("cannot be read"), "{damage:?}");
    assert_eq!(inspect(&site, None).await["refused"]["unreadable"], 1);
    let exported = agent(&site, None, &["export", "--refused"]).await;
    assert_eq!(
        serde_json::from_slice::<Value>(&exported.stdout).unwrap(),
        lines[1]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_lists_what_the_next_start_counts_as_lost() {
    let site = Site::new();
    let mut process = Process::start(&site, nobody()).await;
    post_events(process.address, "e", 1000, 600).await;
    let shown = inspect(&site, Some(process.admin)).await;
    process.child.kill().await.unwrap();
    let generation = |number: usize| {
        let first = shown["generations"][number]["first"].as_u64().unwrap();
        let last = shown["generations"][number]["last"].as_u64().unwrap();
        let path = site.buffer().join(format!("generations/{first:020}"));
        (first, last, path)
    };
    // One generation goes to quarantine although it is sound; of another the log is cut off.
    let (set_aside_first, set_aside_last, path) = generation(1);
    let to = site
        .buffer()
        .join(format!("quarantine/{set_aside_first:020}-0"));
    std::fs::rename(path, to).unwrap();
    let (first, last, path) = generation(2);
    std::fs::write(path.join("db"), [0_u8; 4096]).unwrap();

    let checked = agent(&site, None, &["fsck"]).await;
    assert_eq!(checked.status.code(), Some(1), "{}", text(&checked));
    let told = text(&checked);
    assert!(told.contains("quarantine/ holds 1 from before"), "{told}");
    let checked = json(&agent(&site, None, &["fsck", "--json"]).await);
    let damaged: u64 = checked["damage"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| Some(it["positions"][1].as_u64()? - it["positions"][0].as_u64()? + 1))
        .sum();
    assert_eq!(
        damaged,
        set_aside_last - set_aside_first + 1 + last - first + 1,
        "{checked:#}"
    );
    let rescued = agent(&site, None, &["export", "--quarantine"]).await;
    let rescued = String::from_utf8(rescued.stdout).unwrap();
    assert_eq!(
        rescued.lines().count() as u64,
        set_aside_last - set_aside_first + 1
    );

    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let mut process = Process::start(&site, collector.address).await;
    let whole = 1000 - usize::try_from(damaged).unwrap();
    until("the rest arrives", || {
        tables.lock().message_ids().len() == whole
    })
    .await;
    let lost = process.metric("agent_events_lost_total").await;
    assert_eq!(lost, damaged as f64);
    let status = agent(&site, Some(process.admin), &["status", "--json"]).await;
    assert_eq!(json(&status)["lost"], damaged);
    process.signal(Signal::TERM);
    process.child.wait().await.unwrap();
    let checked = agent(&site, None, &["fsck"]).await;
    assert_eq!(
        checked.status.code(),
        Some(0),
        "written off: {}",
        text(&checked)
    );
}

#[tokio::test]
async fn commands_tell_a_running_agent_from_a_stopped_one_and_from_none() {
    let site = Site::new();
    let mut process = Process::start(&site, nobody()).await;
    for (command, expected) in [("fsck", "in use"), ("export", "stop it first")] {
        let output = agent(&site, None, &[command]).await;
        assert_eq!(output.status.code(), Some(2), "{command}");
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
    let running = agent(&site, Some(process.admin), &["inspect"]).await;
    assert!(
        text(&running).contains("agent-1 (running)"),
        "{}",
        text(&running)
    );
    process.child.kill().await.unwrap();
    let status = agent(&site, Some(process.admin), &["status"]).await;
    assert_eq!(status.status.code(), Some(2));
    assert!(
        text(&status).contains("no agent answers"),
        "{}",
        text(&status)
    );
    let stopped = agent(&site, None, &["inspect"]).await;
    assert!(
        text(&stopped).contains("agent-1 (stopped)"),
        "{}",
        text(&stopped)
    );
    std::fs::remove_dir_all(site.buffer()).unwrap();
    for command in [
        &["inspect"][..],
        &["fsck"],
        &["export"],
        &["export", "--refused"],
    ] {
        let output = agent(&site, None, command).await;
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(!site.buffer().exists(), "{command:?} made a buffer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_means_that_events_leave_the_host() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    // Opens sessions and never acknowledges.
    let silent = Collector::start(&site, &tables, Manner::Silent).await;
    let prompt = Collector::start(&site, &tables, Manner::Prompt).await;
    let quick = |collector| {
        let text = config(&site, collector);
        text.replacen(
            "admin.listen",
            "admin.unacknowledged_age_max_s = 1\nadmin.listen",
            1,
        )
    };
    for (collector, reason, session, ids) in [
        (nobody(), "no session with the collector", false, "e"),
        (
            silent.address,
            "the collector acknowledges nothing",
            true,
            "f",
        ),
    ] {
        let mut process = Process::start_with(&site, &quick(collector)).await;
        post_events(process.address, ids, 10, 10).await;
        until_async(reason, async || {
            let answer = process.admin("/readyz").await;
            answer.status == 503 && answer.body.contains(reason)
        })
        .await;
        // Each look is one state of its own: on a busy host a session may end in between.
        until_async("status tells the reason", async || {
            let output = agent(&site, Some(process.admin), &["status"]).await;
            output.status.code() == Some(1) && text(&output).contains(reason)
        })
        .await;
        until_async("the report tells the reason", async || {
            let report = json(&agent(&site, Some(process.admin), &["status", "--json"]).await);
            let is_told = report["not_ready"]
                .as_str()
                .is_some_and(|it| it.contains(reason));
            assert!(
                !is_told || report["session"].is_string() == session,
                "the report contradicts itself: {report:#}"
            );
            is_told
        })
        .await;
        process.child.kill().await.unwrap();
    }
    let process = Process::start_with(&site, &quick(prompt.address)).await;
    until("all have arrived", || {
        tables.lock().message_ids().len() == 20
    })
    .await;
    let mut report = Value::Null;
    until_async("all is acknowledged", async || {
        let output = agent(&site, Some(process.admin), &["status", "--json"]).await;
        report = json(&output);
        output.status.code() == Some(0) && report["events"] == 0 && report["session"].is_string()
    })
    .await;
    assert_eq!(report["session"], prompt.address.to_string());
    assert_eq!(
        (&report["acked"], &report["durable"]),
        (&20.into(), &20.into())
    );
    assert_eq!(report["agent_id"], "agent-1");
    let shown = agent(&site, Some(process.admin), &["status"]).await;
    assert!(
        text(&shown).contains("agent-1 (version"),
        "{}",
        text(&shown)
    );
    let known =
        text(&shown) + &process.admin("/status").await.body + &process.admin("/inspect").await.body;
    assert!(!known.contains("key-1"), "a secret is told");
}
