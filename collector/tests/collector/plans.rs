//! Tracking plans that change while collectors run, crash and compete: each event is still in one
//! table, and in one only.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};
use headwater_collector::commit::{CommitHook, CommitPoint, NoHook};
use headwater_collector::plan::live::Reloaded;
use headwater_collector::quarantine::Filter;
use headwater_collector::quarantine::replay::{Extent, replay};
use headwater_protocol::frame::USED_THROUGH_SINCE;
use headwater_protocol::{BatchReply, Record};

use crate::faults::{Gate, KillAt};
use crate::hostile::PATIENCE;
use crate::world::{Collector, EPOCH, World, acked, debatable, hello};

/// Keeps an event that lacks `method` out of `raw.events`.
const STRICT: &str = "quarantine";
/// Stores it and says what is wrong.
const LENIENT: &str = "note";
/// Stores it without the properties that are at fault.
const OMITTING: &str = "omit";

/// Writes a plan with one event; returns its directory.
fn plan(world: &World, name: &str, mode: &str) -> PathBuf {
    let directory = world.path(name);
    std::fs::create_dir_all(&directory).unwrap();
    let text = format!(
        r#"{{"event":"Signed In","version":2,"mode":"{mode}","schema":{{"required":["method"]}}}}"#
    );
    std::fs::write(directory.join("signed_in.json"), text).unwrap();
    directory
}

async fn collector(world: &World, mode: &str, hook: Arc<dyn CommitHook>) -> Collector {
    let mut config = world.config();
    config.plan.directory = plan(world, mode, mode);
    world.collector_with(config, hook).await
}

/// Every third event lacks `method`: what becomes of it is a matter of the plan.
fn is_debatable(sequence: u64) -> bool {
    sequence.is_multiple_of(3)
}

fn records(range: std::ops::RangeInclusive<u64>) -> Vec<Record> {
    range
        .map(|sequence| debatable(sequence, is_debatable(sequence)))
        .collect()
}

/// The collector dies between the two commits, and the next one has another plan. What the first has
/// put into the quarantine stays there; what it has not, the second decides.
async fn plan_changes_after_a_crash_between_the_commits(world: &World, before: &str, after: &str) {
    let kill = KillAt::new(CommitPoint::BetweenCommits);
    let first = collector(world, before, kill).await;
    let agent = world.agent("agent-1", &first).await;
    assert_eq!(agent.send_records(1, &records(1..=30)).await, None);
    first.killed().await;
    let second = collector(world, after, Arc::new(NoHook)).await;
    let agent = world.agent("agent-1", &second).await;
    assert_eq!(agent.welcome.committed_through, 0);
    // Other batch boundaries than before.
    assert!(acked(agent.send_records(1, &records(1..=14)).await) >= 14);
    assert_eq!(acked(agent.send_records(15, &records(15..=45)).await), 45);
    // The plan of the first decides up to 30, where it was strict; the second's decides the rest.
    let is_out = |sequence: &u64| {
        let decided = if *sequence <= 30 && before == STRICT {
            before
        } else {
            after
        };
        is_debatable(*sequence) && decided == STRICT
    };
    world
        .assert_events("agent-1", (1..=45).filter(|seq| !is_out(seq)))
        .await;
    world
        .assert_quarantine("agent-1", (1..=45).filter(is_out))
        .await;
    second.stop().await;
}

pub(crate) async fn what_a_stricter_plan_has_quarantined_before_a_crash_is_not_stored_as_well(
    world: World,
) {
    plan_changes_after_a_crash_between_the_commits(&world, STRICT, LENIENT).await;
}

pub(crate) async fn what_a_milder_plan_let_through_before_a_crash_is_not_lost(world: World) {
    plan_changes_after_a_crash_between_the_commits(&world, LENIENT, STRICT).await;
}

/// As before, with an event in the batch that no plan lets through, so that the quarantine's watermark
/// is ahead although the debatable events are in no table.
pub(crate) async fn a_quarantine_watermark_that_is_ahead_hides_no_event(world: World) {
    let with_a_bad_one = || {
        let mut records = records(1..=30);
        records[20] = crate::world::bad(21);
        records
    };
    let kill = KillAt::new(CommitPoint::BetweenCommits);
    let first = collector(&world, LENIENT, kill).await;
    let agent = world.agent("agent-1", &first).await;
    assert_eq!(agent.send_records(1, &with_a_bad_one()).await, None);
    first.killed().await;
    let second = collector(&world, STRICT, Arc::new(NoHook)).await;
    let agent = world.agent("agent-1", &second).await;
    // Whoever never sent these must not use their numbers: a disk that was restored meanwhile.
    assert_eq!(agent.welcome.committed_through, 0);
    assert_eq!(agent.welcome.used_through, Some(30));
    let mut older = hello("agent-1", EPOCH);
    older.protocol_version = USED_THROUGH_SINCE - 1;
    let older = world.connect("agent-1", older, second.address).await;
    assert_eq!(older.unwrap().welcome.used_through, None);
    let agent = world.agent("agent-1", &second).await;
    assert_eq!(acked(agent.send_records(1, &with_a_bad_one()).await), 30);
    let is_out = |sequence: &u64| is_debatable(*sequence) || *sequence == 21;
    world
        .assert_events("agent-1", (1..=30).filter(|seq| !is_out(seq)))
        .await;
    world
        .assert_quarantine("agent-1", (1..=30).filter(is_out))
        .await;
    second.stop().await;
}

/// What is only staged is nobody else's number either.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn staged_positions_are_in_use() {
    let world = World::new();
    let gate = Gate::at(CommitPoint::Planned);
    let collector = collector(&world, LENIENT, gate.clone()).await;
    let agent = world.agent("agent-1", &collector).await;
    let unanswered = tokio::spawn(async move { agent.send(1..=5).await });
    gate.reached().await;
    let again = world.agent("agent-1", &collector).await;
    // Before anything is asserted: a test that fails must not wait for the gate.
    gate.open();
    assert_eq!(again.welcome.committed_through, 0);
    assert_eq!(again.welcome.used_through, Some(5));
    assert_eq!(acked(again.send(1..=5).await), 5);
    assert_eq!(unanswered.await.unwrap(), None);
    collector.stop().await;
}

/// Two living collectors with different plans have the same batch of `agent`; the first is held at
/// `point` while the second commits. Whoever decides, decides for both tables.
async fn plans_compete(world: &World, agent: &str, point: CommitPoint, held: &str, other: &str) {
    let gate = Gate::at(point);
    let first = collector(world, held, gate.clone()).await;
    let second = collector(world, other, Arc::new(NoHook)).await;
    let to_first = world.agent(agent, &first).await;
    let to_second = world.agent(agent, &second).await;
    let slow = tokio::spawn(async move { to_first.send_records(1, &records(1..=30)).await });
    gate.reached().await;
    assert_eq!(acked(to_second.send_records(1, &records(1..=30)).await), 30);
    gate.open();
    assert_eq!(acked(slow.await.unwrap()), 30);
    assert_eq!(world.watermark(agent, EPOCH).await, 30);
    // The first has decided if it was held after its quarantine commit, and only if it made one.
    let decided = match point {
        CommitPoint::BetweenCommits if held == STRICT => held,
        _ => other,
    };
    let is_out = |sequence: &u64| is_debatable(*sequence) && decided == STRICT;
    world
        .assert_events(agent, (1..=30).filter(|seq| !is_out(seq)))
        .await;
    world
        .assert_quarantine(agent, (1..=30).filter(is_out))
        .await;
    first.stop().await;
    second.stop().await;
}

pub(crate) async fn two_plans_at_once_put_no_event_into_both_tables_or_none(world: World) {
    let pairs = [
        (STRICT, LENIENT),
        (LENIENT, STRICT),
        (STRICT, OMITTING),
        (OMITTING, LENIENT),
    ];
    for point in [CommitPoint::Planned, CommitPoint::BetweenCommits] {
        for (held, other) in pairs {
            // Whose watermark no other pair has moved; the fence is the one that they left.
            let agent = format!("{point:?}-{held}-{other}").to_lowercase();
            plans_compete(&world, &agent, point, held, other).await;
        }
    }
}

/// The fence in the quarantine is above that of the new table, which nobody will ever raise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_table_beside_an_old_quarantine_is_committed_to() {
    let world = World::new();
    for mode in [STRICT, LENIENT] {
        let collector = collector(&world, mode, Arc::new(NoHook)).await;
        let agent = world.agent("agent-1", &collector).await;
        let next = agent.welcome.committed_through + 1;
        assert_eq!(
            acked(agent.send_records(next, &records(next..=next + 2)).await),
            next + 2
        );
        collector.stop().await;
    }
    let rename =
        "UPDATE iceberg_tables SET table_name = 'events_before' WHERE table_name = 'events'";
    world.in_database(rename).await;
    let collector = collector(&world, LENIENT, Arc::new(NoHook)).await;
    let agent = world.agent("agent-2", &collector).await;
    let records = records(1..=3);
    let sent = agent.send_records(1, &records);
    let answer = tokio::time::timeout(PATIENCE, sent).await;
    assert_eq!(acked(answer.expect("it can be committed")), 3);
    collector.stop().await;
    world.assert_events("agent-2", 1..4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_reloaded_between_two_batches() {
    let world = World::new();
    let mut config = world.config();
    // Both batches wait for the same commit.
    config.commit.interval_ms = 600_000;
    config.plan.directory = plan(&world, "plan", LENIENT);
    let running = world.collector_with(config, Arc::new(NoHook)).await;
    let agent = world.agent("agent-1", &running).await;
    // The first commit does not wait for an interval.
    assert_eq!(acked(agent.send_records(1, &records(1..=3)).await), 3);
    let (live, catalog) = running.running.plan();
    let changes = async {
        agent.until_staged(7).await;
        plan(&world, "plan", STRICT);
        assert_eq!(live.reload(&catalog).await, Reloaded::Applied);
        assert_eq!(live.reload(&catalog).await, Reloaded::Unchanged);
        let second = agent.post_records(7, &records(7..=9)).await;
        agent.until_staged(10).await;
        running.stop.cancel();
        second.await
    };
    let (first, second) = (records(4..=6), changes);
    let (first, second): (Option<BatchReply>, Option<BatchReply>) =
        tokio::join!(agent.send_records(4, &first), second);
    assert!(acked(first) >= 6);
    assert_eq!(acked(second), 9);
    running.running.finished().await.unwrap();
    world
        .assert_events("agent-1", (1..=9).filter(|sequence| *sequence != 9))
        .await;
    world.assert_quarantine("agent-1", std::iter::once(9)).await;
    // Each plan decided under its own fence.
    for table in [world.events().await, world.quarantine().await] {
        let fence = &table.metadata().properties()["headwater.plan.fence"];
        let fingerprint = live.now().fingerprint().to_owned();
        assert_eq!(*fence, format!("2 {fingerprint}"));
    }
}

/// Writes a plan that finds fault with the `method` of every event; returns its directory.
fn plan_against_method(world: &World, mode: &str) -> PathBuf {
    let directory = plan(world, mode, mode);
    let schema = r#"{"properties":{"method":{"enum":["saml"]}}}"#;
    let text = format!(
        r#"{{"event":"Signed In","version":2,"mode":"{mode}","schema":{schema},"promote":{{"method":"string"}}}}"#
    );
    std::fs::write(directory.join("signed_in.json"), text).unwrap();
    directory
}

async fn collector_against_method(
    world: &World,
    mode: &str,
    hook: Arc<dyn CommitHook>,
) -> Collector {
    let mut config = world.config();
    config.plan.directory = plan_against_method(world, mode);
    world.collector_with(config, hook).await
}

fn with_method(range: std::ops::RangeInclusive<u64>) -> Vec<Record> {
    range.map(|sequence| debatable(sequence, false)).collect()
}

/// Sequence, JSON of the properties, promoted value and violations of each event.
async fn methods(world: &World) -> Vec<(i64, String, Option<String>, String)> {
    let mut found = Vec::new();
    for rows in world.event_rows().await {
        let column = |name: &str| rows.column_by_name(name).unwrap();
        let sequences = column("_sequence").as_primitive::<Int64Type>();
        let json = column("properties").as_string::<i32>();
        let promoted = column("method").as_string::<i32>();
        let noted = column("property_violations").as_list::<i32>();
        for row in 0..rows.num_rows() {
            let noted = noted.value(row);
            let noted: Vec<_> = noted.as_string::<i32>().iter().flatten().collect();
            found.push((
                sequences.value(row),
                json.value(row).to_owned(),
                promoted
                    .is_valid(row)
                    .then(|| promoted.value(row).to_owned()),
                noted.join(" "),
            ));
        }
    }
    found.sort_by_key(|row| row.0);
    found
}

/// What `methods` finds of events whose `method` was omitted.
fn omitted(range: std::ops::RangeInclusive<i64>) -> Vec<(i64, String, Option<String>, String)> {
    let noted = "$.properties.method: enum";
    range
        .map(|sequence| (sequence, "{}".to_owned(), None, noted.to_owned()))
        .collect()
}

/// A collector that would have stored the value dies first; the one that commits omits it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_plan_that_commits_omits_is_not_stored() {
    let world = World::new();
    let kill = KillAt::new(CommitPoint::BetweenCommits);
    let first = collector_against_method(&world, LENIENT, kill).await;
    let agent = world.agent("agent-1", &first).await;
    assert_eq!(agent.send_records(1, &with_method(1..=5)).await, None);
    first.killed().await;
    let second = collector_against_method(&world, OMITTING, Arc::new(NoHook)).await;
    let agent = world.agent("agent-1", &second).await;
    assert_eq!(acked(agent.send_records(1, &with_method(1..=8)).await), 8);
    assert_eq!(methods(&world).await, omitted(1..=8));
    world.assert_quarantine("agent-1", std::iter::empty()).await;
    second.stop().await;
}

/// A stricter plan kept the events out. The plan of today lets them in, without what it omits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_plan_omits_does_not_come_back_by_a_replay() {
    let world = World::new();
    let running = collector_against_method(&world, STRICT, Arc::new(NoHook)).await;
    let agent = world.agent("agent-1", &running).await;
    assert_eq!(acked(agent.send_records(1, &with_method(1..=3)).await), 3);
    world.assert_quarantine("agent-1", 1..=3).await;
    running.stop().await;
    let running = collector_against_method(&world, OMITTING, Arc::new(NoHook)).await;
    let agent = world.agent("agent-1", &running).await;
    assert_eq!(acked(agent.send_records(4, &with_method(4..=6)).await), 6);
    let (live, catalog) = running.running.plan();
    let filter = Filter::default();
    let done = replay(&catalog, &live.now(), &filter, Extent::default(), &|_| true).await;
    assert_eq!(done.unwrap().added, 3);
    assert_eq!(methods(&world).await, omitted(1..=6));
    running.stop().await;
}

/// The column comes with the reload; a collector that has not reloaded goes on beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_property_becomes_a_column_without_a_restart() {
    let world = World::new();
    let mut config = world.config();
    config.plan.directory = plan(&world, "plan", LENIENT);
    let promoting = world.collector_with(config, Arc::new(NoHook)).await;
    let other = world.collector().await;
    let event = |sequence: u64, seconds: &str| {
        let mut record = debatable(sequence, false);
        let body = String::from_utf8(record.body.to_vec()).unwrap();
        let body = body.replace(
            "\"method\"",
            &format!("\"load_seconds\":{seconds},\"method\""),
        );
        record.body = body.into_bytes().into();
        record
    };
    let to_promoting = world.agent("agent-1", &promoting).await;
    let reply = to_promoting.send_records(1, &[event(1, "1.5")]).await;
    assert_eq!(acked(reply), 1);
    let text = r#"{"event":"Signed In","version":3,"promote":{"load_seconds":"double"}}"#;
    std::fs::write(world.path("plan").join("signed_in.json"), text).unwrap();
    let (live, catalog) = promoting.running.plan();
    assert_eq!(live.reload(&catalog).await, Reloaded::Applied);
    let records = [event(2, "2"), event(3, "\"slow\""), event(4, "null")];
    assert_eq!(acked(to_promoting.send_records(2, &records).await), 4);
    let to_other = world.agent("agent-1", &other).await;
    assert_eq!(acked(to_other.send_records(5, &[event(5, "5")]).await), 5);
    assert_eq!(
        seconds(&world).await,
        [
            (1, 2, None, false, "1.5"),
            (2, 3, Some(2.0), false, "2"),
            (3, 3, None, true, "\"slow\""),
            (4, 3, None, false, "null"),
            (5, 1, None, false, "5"),
        ]
        .map(|(sequence, version, value, is_noted, json)| {
            let json = format!("{{\"load_seconds\":{json},\"method\":\"sso\"}}");
            (sequence, version, value, is_noted, json)
        })
    );
    promoting.stop().await;
    other.stop().await;
}

/// Written to Iceberg as a time with zone, and read back to the microsecond.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_time_is_stored_with_its_zone_resolved() {
    let world = World::new();
    let mut config = world.config();
    config.plan.directory = plan(&world, "plan", LENIENT);
    let text = r#"{"event":"Signed In","version":3,"promote":{"ends_at":"timestamp"}}"#;
    std::fs::write(world.path("plan").join("signed_in.json"), text).unwrap();
    let running = world.collector_with(config, Arc::new(NoHook)).await;
    let cases = [
        (
            "\"2026-11-20T10:00:00+01:00\"",
            Some(1_795_165_200_000_000),
            false,
        ),
        (
            "\"1815-12-10T01:02:03.5Z\"",
            Some(-4_861_724_276_500_000),
            false,
        ),
        (
            "\"2016-12-31T23:59:60Z\"",
            Some(1_483_228_800_000_000),
            false,
        ),
        ("\"2026-11-20T24:00:00Z\"", None, true),
        ("1795165200", None, true),
        ("null", None, false),
    ];
    let records: Vec<Record> = (1..)
        .zip(cases)
        .map(|(sequence, (value, ..))| {
            let mut record = debatable(sequence, false);
            let body = String::from_utf8(record.body.to_vec()).unwrap();
            let body = body.replace("\"method\"", &format!("\"ends_at\":{value},\"method\""));
            record.body = body.into_bytes().into();
            record
        })
        .collect();
    let agent = world.agent("agent-1", &running).await;
    assert_eq!(acked(agent.send_records(1, &records).await), 6);
    let table = world.events().await;
    let field = table.metadata().current_schema().field_by_name("ends_at");
    assert_eq!(field.unwrap().field_type.to_string(), "timestamptz");
    let mut found = Vec::new();
    for rows in world.event_rows().await {
        let column = |name: &str| rows.column_by_name(name).unwrap();
        let sequences = column("_sequence").as_primitive::<Int64Type>();
        let times = column("ends_at").as_primitive::<TimestampMicrosecondType>();
        let noted = column("property_violations");
        for row in 0..rows.num_rows() {
            let time = times.is_valid(row).then(|| times.value(row));
            found.push((sequences.value(row), time, noted.is_valid(row)));
        }
    }
    found.sort_unstable();
    let expected = (1..)
        .zip(cases)
        .map(|(sequence, (_, time, is_noted))| (sequence, time, is_noted));
    assert_eq!(found, expected.collect::<Vec<_>>());
    running.stop().await;
}

/// Sequence, version of the plan, promoted value, whether it is noted, and the JSON of each event.
async fn seconds(world: &World) -> Vec<(i64, i32, Option<f64>, bool, String)> {
    let mut found = Vec::new();
    for rows in world.event_rows().await {
        let column = |name: &str| rows.column_by_name(name).unwrap();
        let sequences = column("_sequence").as_primitive::<Int64Type>();
        let versions = column("schema_version").as_primitive::<Int32Type>();
        let values = column("load_seconds").as_primitive::<Float64Type>();
        let noted = column("property_violations").as_list::<i32>();
        let json = column("properties").as_string::<i32>();
        for row in 0..rows.num_rows() {
            let is_noted = noted.is_valid(row) && {
                let noted = noted.value(row);
                noted.as_string::<i32>().value(0) == "$.properties.load_seconds: promote"
            };
            found.push((
                sequences.value(row),
                versions.value(row),
                values.is_valid(row).then(|| values.value(row)),
                is_noted,
                json.value(row).to_owned(),
            ));
        }
    }
    found.sort_by_key(|row| row.0);
    found
}
