//! The quarantine is listed and replayed: what has become valid is stored once, whatever happens.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::AsArray;
use clap::Parser as _;
use headwater_collector::commit::NoHook;
use headwater_collector::plan::Plan;
use headwater_collector::quarantine::command::{QuarantineCommand, list};
use headwater_collector::quarantine::replay::{Extent, ReplayPoint, Replayed, replay};
use headwater_collector::quarantine::{Filter, QuarantineError};
use headwater_collector::start;
use headwater_protocol::{Record, SourceKind, timestamp};
use headwater_service::clock::SystemClock;
use headwater_tables::{Catalog, TableName, TableSpec, schema};
use iceberg::spec::{ListType, NestedField, PrimitiveType, Schema, Type};
use tokio_util::sync::CancellationToken;

use crate::world::{NOW, World, acked, bad, debatable};

const DAY_MICROS: i64 = 86_400_000_000;

/// Every third event lacks `method`, 4 and 11 lack an identity. The last was received first.
fn records() -> Vec<Record> {
    let record = |sequence: u64| {
        let record = match sequence {
            4 | 11 => bad(sequence),
            _ => Record {
                source_kind: SourceKind::Browser,
                skew_ms: Some(90_000),
                ..debatable(sequence, is_debatable(sequence))
            },
        };
        Record {
            received_at: NOW - 1_000_000 * sequence as i64,
            ..record
        }
    };
    (1..=30).map(record).collect()
}

fn is_debatable(sequence: u64) -> bool {
    sequence.is_multiple_of(3)
}

fn is_bad(sequence: u64) -> bool {
    sequence == 4 || sequence == 11
}

fn write_plan(directory: &Path, mode: &str) {
    std::fs::create_dir_all(directory).unwrap();
    let schema = r#"{"properties":{"method":{"type":"string"}},"required":["method"]}"#;
    let text = format!(r#"{{"event":"Signed In","version":1,"mode":"{mode}","schema":{schema}}}"#);
    std::fs::write(directory.join("signed_in.json"), text).unwrap();
}

/// Fills the world's quarantine with what a strict plan keeps out; returns that plan, and one that lets
/// it in.
async fn quarantined(world: &World) -> (Arc<Plan>, Arc<Plan>) {
    let mut config = world.config();
    config.plan.directory = world.path("plan");
    config.quarantine.retention_days = 3;
    write_plan(&world.path("plan"), "quarantine");
    let strict = Plan::load(Some(&world.path("plan"))).unwrap();
    let collector = world.collector_with(config, Arc::new(NoHook)).await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send_records(1, &records()).await), 30);
    collector.stop().await;
    write_plan(&world.path("plan"), "note");
    let lenient = Plan::load(Some(&world.path("plan"))).unwrap();
    (strict, lenient)
}

async fn catalog(world: &World) -> Catalog {
    Catalog::open(&world.config().catalog).await.unwrap()
}

async fn replay_all(world: &World, plan: &Plan) -> Replayed {
    let catalog = catalog(world).await;
    let done = replay(
        &catalog,
        plan,
        &Filter::default(),
        Extent::default(),
        &|_| true,
    )
    .await;
    done.unwrap()
}

async fn assert_replayed(world: &World) {
    world
        .assert_events("agent-1", (1..=30).filter(|seq| !is_bad(*seq)))
        .await;
    // The evidence stays.
    world
        .assert_quarantine(
            "agent-1",
            (1..=30).filter(|seq| is_bad(*seq) || is_debatable(*seq)),
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_become_valid_is_added_once_however_often_it_is_replayed() {
    let world = World::new();
    let (strict, lenient) = quarantined(&world).await;
    let done = replay_all(&world, &strict).await;
    assert_eq!((done.added, done.present), (0, 0));
    assert_eq!(done.refused["tracking plan"], 10);
    assert_eq!(done.refused["identity_missing"], 2);
    let catalog = catalog(&world).await;
    let filter = Filter::default();
    let dry_run = Extent {
        dry_run: true,
        ..Extent::default()
    };
    let dry = replay(&catalog, &lenient, &filter, dry_run, &|_| true)
        .await
        .unwrap();
    assert_eq!(dry.added, 10);
    world
        .assert_events(
            "agent-1",
            (1..=30).filter(|seq| !is_bad(*seq) && !is_debatable(*seq)),
        )
        .await;
    let open = |listed: &[(_, bool)]| listed.iter().filter(|(_, is_open)| *is_open).count();
    assert_eq!(open(&list(&catalog, &filter, 100).await.unwrap()), 12);
    let done = replay_all(&world, &lenient).await;
    assert_eq!((done.added, done.present), (10, 0));
    assert_replayed(&world).await;
    let done = replay_all(&world, &lenient).await;
    assert_eq!((done.added, done.present), (0, 10));
    assert_replayed(&world).await;
    let listed = list(&catalog, &filter, 100).await.unwrap();
    assert_eq!((listed.len(), open(&listed)), (12, 2));
    assert_eq!(list(&catalog, &filter, 5).await.unwrap().len(), 5);
    let one = Filter {
        ids: vec![format!("agent-1/{}/3", crate::world::EPOCH)],
        ..Filter::default()
    };
    let listed = list(&catalog, &one, 5).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].0.event_name.as_deref(), Some("Signed In"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_shows_reason_and_bytes_and_says_what_is_open() {
    let world = World::new();
    quarantined(&world).await;
    let mut config = world.config();
    config.plan.directory = world.path("plan");
    let execute = async |line: &str| {
        let words = line.split(' ');
        let command = Words::try_parse_from(words).unwrap().command;
        command.execute(&config).await
    };
    let id = format!("agent-1/{}/3", crate::world::EPOCH);
    let shown = execute(&format!("quarantine show {id}")).await.unwrap();
    assert!(shown.contains("status  open"), "{shown}");
    let error = "error  $.properties.method: required: a value expected, missing found\n";
    assert!(shown.contains(error), "{shown}");
    assert!(shown.contains("\"messageId\": \"m-3\""), "{shown}");
    let listed = execute("quarantine list --type schema_violation --json").await;
    let listed = listed.unwrap();
    assert_eq!(listed.lines().count(), 10);
    assert!(
        listed
            .lines()
            .all(|line| line.contains("\"status\":\"open\""))
    );
    let first: serde_json::Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
    let error = serde_json::json!({
        "path": "$.properties.method",
        "keyword": "required",
        "message": "a value expected, missing found",
        "expected": "a value",
        "actual_type": "missing",
    });
    assert_eq!(first["errors"], serde_json::json!([error]));
    let time = |column: &str| timestamp::parse(first[column].as_str().unwrap()).unwrap();
    let days = (time("retention_until") - time("failed_at")) / DAY_MICROS;
    assert_eq!(days, 3);
    let until = format!("keep until  {}", first["retention_until"].as_str().unwrap());
    let listed_first = first["quarantine_id"].as_str().unwrap();
    let shown = execute(&format!("quarantine show {listed_first}"))
        .await
        .unwrap();
    assert!(shown.contains(&until), "{shown}");
    let listed = execute("quarantine list --type identity_missing").await;
    let listed = listed.unwrap();
    assert_eq!(listed.lines().count(), 2);
    let error = "$.userId: and `anonymousId` are both missing";
    assert!(listed.lines().all(|line| line.ends_with(error)), "{listed}");
    let dry = execute(&format!("quarantine replay --id {id} --dry-run")).await;
    assert!(dry.unwrap().starts_with("1 events would be added"));
    let done = execute("quarantine replay --since 2020-01-01T00:00:00Z").await;
    let done = done.unwrap();
    assert!(done.starts_with("10 events added"), "{done}");
    assert!(done.contains("2  identity_missing"), "{done}");
    let shown = execute(&format!("quarantine show {id}")).await.unwrap();
    assert!(shown.contains("status  replayed"), "{shown}");
    let listed = execute("quarantine list --company other").await.unwrap();
    assert_eq!(listed, "nothing in quarantine\n");
    for id in ["agent-1/1/1", "agent-1/x/1", "nonsense"] {
        let error = execute(&format!("quarantine show {id}")).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("has no row"), "{error}");
    }
}

/// The words of a command line.
#[derive(Debug, clap::Parser)]
struct Words {
    #[command(subcommand)]
    command: QuarantineCommand,
}

/// A replayed row is what the collector would have written, but for the name of its batch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_row_is_the_row_that_the_event_would_have_had() {
    let replayed = World::new();
    let (_, lenient) = quarantined(&replayed).await;
    replay_all(&replayed, &lenient).await;
    let direct = World::new();
    let mut config = direct.config();
    config.plan.directory = replayed.path("plan");
    let collector = direct.collector_with(config, Arc::new(NoHook)).await;
    let agent = direct.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send_records(1, &records()).await), 30);
    collector.stop().await;
    let (left, right) = (rows(&replayed).await, rows(&direct).await);
    assert_eq!(left.len(), 28);
    assert_eq!(left, right);
}

/// Every column of every row but `ingest_batch_id`, as text, in order.
async fn rows(world: &World) -> Vec<String> {
    let mut rows = Vec::new();
    for batch in world.event_rows().await {
        let batch_ids = batch.column_by_name("ingest_batch_id").unwrap().clone();
        let batch_ids = batch_ids.as_string::<i32>();
        for row in 0..batch.num_rows() {
            let one = batch.slice(row, 1);
            let text = arrow::util::pretty::pretty_format_batches(&[one]).unwrap();
            let text = text.to_string().replace(batch_ids.value(row), "");
            rows.push(text.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    // Borders of the printed tables follow the length of what was taken out.
    let mut rows: Vec<String> = rows.iter().map(|row| row.replace(['-', '+'], "")).collect();
    rows.sort();
    rows
}

/// A replay is killed at `point`, and the next one finishes it.
async fn replay_is_killed_at(world: &World, point: ReplayPoint) {
    let (_, lenient) = quarantined(world).await;
    let catalog = catalog(world).await;
    let hook = |at| at != point;
    let ended = replay(
        &catalog,
        &lenient,
        &Filter::default(),
        Extent::default(),
        &hook,
    )
    .await;
    assert!(matches!(ended, Err(QuarantineError::Killed(at)) if at == point));
    let done = replay_all(world, &lenient).await;
    assert_eq!(done.added + done.present, 10);
    assert_eq!(done.added == 0, point == ReplayPoint::Committed);
    assert_replayed(world).await;
}

pub(crate) async fn a_replay_killed_before_it_writes_is_finished_by_the_next(world: World) {
    replay_is_killed_at(&world, ReplayPoint::Judged).await;
}

pub(crate) async fn a_replay_killed_before_it_commits_is_finished_by_the_next(world: World) {
    replay_is_killed_at(&world, ReplayPoint::Written).await;
}

pub(crate) async fn a_replay_killed_after_its_commit_is_found_done_by_the_next(world: World) {
    replay_is_killed_at(&world, ReplayPoint::Committed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limited_replay_takes_what_was_received_first_and_says_what_is_left() {
    let world = World::new();
    let (_, lenient) = quarantined(&world).await;
    let catalog = catalog(&world).await;
    let limited = async |limit, since| {
        let filter = Filter {
            since,
            ..Filter::default()
        };
        let extent = Extent {
            limit: Some(limit),
            ..Extent::default()
        };
        let done = replay(&catalog, &lenient, &filter, extent, &|_| true).await;
        done.unwrap()
    };
    let first = limited(4, None).await;
    assert_eq!((first.added, first.present, first.left), (4, 0, 8));
    let good = |seq: &u64| !is_bad(*seq) && !is_debatable(*seq);
    world
        .assert_events("agent-1", (1..=30).filter(|seq| good(seq) || *seq >= 21))
        .await;
    // From there on: the last of before, six that are valid now, and two that never will be.
    let second = limited(9, first.through).await;
    assert_eq!((second.added, second.present, second.left), (6, 1, 0));
    assert_eq!(second.refused["identity_missing"], 2);
    assert_replayed(&world).await;
    let nothing = limited(9, Some(NOW)).await;
    assert_eq!((nothing.added, nothing.left, nothing.through), (0, 0, None));

    let mut config = world.config();
    config.plan.directory = world.path("plan");
    let words = |limit| ["quarantine", "replay", "--limit", limit];
    let command = Words::try_parse_from(words("4")).unwrap().command;
    let said = command.execute(&config).await.unwrap();
    let left = "8 more are left, received later: raise --limit, or go on with --since 2026-";
    assert!(said.contains(left), "{said}");
    let command = Words::try_parse_from(words("12")).unwrap().command;
    let said = command.execute(&config).await.unwrap();
    assert!(!said.contains("left"), "{said}");
    for limit in ["0", "1000001", "-1"] {
        assert!(Words::try_parse_from(words(limit)).is_err(), "{limit}");
    }
}

/// Both have the same base when they commit: one is refused, looks again, and finds it done.
pub(crate) async fn two_replays_at_once_add_every_event_once(world: World) {
    let (_, lenient) = quarantined(&world).await;
    let (one, two) = (catalog(&world).await, catalog(&world).await);
    let waiting = AtomicUsize::new(0);
    let meet = |point| {
        if point == ReplayPoint::Written && waiting.fetch_add(1, Ordering::SeqCst) < 2 {
            tokio::task::block_in_place(|| {
                while waiting.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
        }
        true
    };
    let filter = Filter::default();
    std::thread::scope(|scope| {
        let handle = tokio::runtime::Handle::current();
        let run = |catalog: Catalog| {
            let (handle, lenient, filter, meet) = (handle.clone(), &lenient, &filter, &meet);
            scope.spawn(move || {
                handle
                    .block_on(replay(&catalog, lenient, filter, Extent::default(), meet))
                    .unwrap()
            })
        };
        let (one, two) = (run(one), run(two));
        let (one, two) = (one.join().unwrap(), two.join().unwrap());
        assert_eq!(one.added + two.added, 10);
        assert_eq!(one.present + two.present, 10);
    });
    assert_replayed(&world).await;
}

/// Returns what `raw.quarantine` was when its errors were texts.
fn with_errors_as_texts() -> TableSpec {
    let mut spec = schema::raw_quarantine();
    let text = || Type::Primitive(PrimitiveType::String);
    let fields = spec.schema.as_struct().fields().iter().map(|field| {
        if field.name != "errors" {
            return Arc::clone(field);
        }
        let element = NestedField::list_element(1000, text(), true);
        let texts = Type::List(ListType::new(Arc::new(element)));
        Arc::new(NestedField::required(field.id, "errors", texts))
    });
    let fields: Vec<_> = fields.collect();
    spec.schema = Schema::builder().with_fields(fields).build().unwrap();
    spec
}

/// Neither collector nor commands touch it; it is renamed, as they say, and stays readable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quarantine_of_another_version_is_named_in_one_line_that_says_what_to_do() {
    let world = World::new();
    let before = catalog(&world).await;
    before.ensure(&with_errors_as_texts()).await.unwrap();
    let config = world.config();
    let (clock, stop) = (SystemClock::shared(), CancellationToken::new());
    let refused = start(config.clone(), clock, stop).await.unwrap_err();
    let words = Words::try_parse_from(["quarantine", "list"]).unwrap();
    let also_refused = words.command.execute(&config).await.unwrap_err();
    let expected = "table `raw.quarantine` cannot be used: column `errors` is `list<string>` and \
        `list<struct<path: string, keyword: string, message: string, expected: string, \
        actual_type: string>>` is wanted; a version with other columns made this table: \
        rename or drop it, and a new one is made";
    assert_eq!(refused.to_string(), expected);
    assert_eq!(also_refused.to_string(), expected);
    let rename = "UPDATE iceberg_tables SET table_name = 'quarantine_before' \
        WHERE table_name = 'quarantine'";
    world.in_database(rename).await;
    let collector = world.collector().await;
    let agent = world.agent("agent-1", &collector).await;
    assert_eq!(acked(agent.send_records(1, &[bad(1)]).await), 1);
    collector.stop().await;
    world.assert_quarantine("agent-1", std::iter::once(1)).await;
    let renamed: TableName = "raw.quarantine_before".parse().unwrap();
    catalog(&world).await.load(&renamed).await.unwrap();
}
