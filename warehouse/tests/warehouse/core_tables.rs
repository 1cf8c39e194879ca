//! `core.events`: deduplication, plans as of the event, business days.

use headwater_tables::promoted::ColumnType;

use crate::world::{Ev, World};

const NIGHT: &str = "2026-11-19";

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_one_row_however_long_ago_its_copy_came() {
    let world = World::new().await;
    world
        .events(&[
            Ev::new("Feature Used", "2026-01-05T10:00:00Z").id("x"),
            Ev::new("Feature Used", "2026-11-19T10:00:00Z")
                .id("x")
                .company("other"),
        ])
        .await;
    world.night(NIGHT).await;
    world
        .events(&[
            Ev::new("Feature Used", "2026-11-19T12:00:00Z").id("x"),
            Ev::new("Feature Used", "2026-11-19T12:00:00Z").id("x"),
        ])
        .await;
    world.night(NIGHT).await;
    let rows = world
        .query("SELECT company_id, event_time, copies FROM core.events ORDER BY company_id")
        .await;
    assert_eq!(
        rows,
        [
            "acme|2026-01-05T10:00:00Z|3",
            "other|2026-11-19T10:00:00Z|1"
        ]
    );
    let fresh = world.query("SELECT count(*) FROM events").await;
    assert_eq!(fresh, ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_copy_that_arrives_later_wins_and_moves_the_event() {
    let world = World::new().await;
    let late = Ev::new("Feature Used", "2026-11-19T10:00:00Z")
        .id("x")
        .received("2026-11-19T10:00:05Z");
    world.events(&[late]).await;
    world.night(NIGHT).await;
    let early = Ev::new("Feature Used", "2026-11-18T23:59:00Z")
        .id("x")
        .agent("agent-2")
        .received("2026-11-18T23:59:30Z");
    world.events(&[early]).await;
    world.night(NIGHT).await;
    let rows = world
        .query(
            "SELECT event_time, first_received_at, copies, _agent_id, report_date FROM core.events",
        )
        .await;
    assert_eq!(
        rows,
        ["2026-11-18T23:59:00Z|2026-11-18T23:59:30Z|2|agent-2|2026-11-18"]
    );
    let days = world
        .query("SELECT report_date, events FROM reports.company_day WHERE events > 0")
        .await;
    assert_eq!(days, ["2026-11-18|1"]);
}

/// A replay of the quarantine adds rows below the watermarks that `core.events` covers.
#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_event_is_taken_in_although_its_position_was_passed() {
    let world = World::new().await;
    let event = |id: &str| Ev::new("Feature Used", "2026-11-19T10:00:00Z").id(id);
    world.events(&[event("a"), event("b")]).await;
    world.night(NIGHT).await;
    world.replayed(event("late"), 1).await;
    let ids = "SELECT message_id, copies FROM core.events ORDER BY 1";
    assert_eq!(world.query("SELECT count(*) FROM events").await, ["3"]);
    world.night(NIGHT).await;
    assert_eq!(world.query(ids).await, ["a|1", "b|1", "late|1"]);
    world.night(NIGHT).await;
    assert_eq!(world.query(ids).await, ["a|1", "b|1", "late|1"]);
}

/// Rows from before, rows of a collector that does not know of it, rows of the night: all answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_property_answers_for_every_row() {
    let world = World::new().await;
    let event = |id: &str, properties: &str| {
        let event = Ev::new("Feature Used", "2026-11-19T10:00:00Z").id(id);
        event.with(properties)
    };
    let answers = async |expected: &[&str]| {
        let sql = "SELECT message_id, coalesce(CAST(subject_length + 1 AS TEXT), 'none')
                   FROM events ORDER BY 1";
        assert_eq!(world.query(sql).await, expected);
    };
    world.events(&[event("a", r#"{"subject_length":5}"#)]).await;
    world.night(NIGHT).await;
    world.promote("subject_length", ColumnType::Long).await;
    answers(&["a|6"]).await;
    world
        .events(&[
            event("b", r#"{"subject_length":7}"#),
            event("c", r#"{"subject_length":"7"}"#),
            event("d", r#"{"other":"subject_length"}"#),
        ])
        .await;
    answers(&["a|6", "b|8", "c|none", "d|none"]).await;
    world.night(NIGHT).await;
    answers(&["a|6", "b|8", "c|none", "d|none"]).await;
}

/// Times that a plan promotes are read from the JSON as the collector reads them into the column: its
/// tests take the same file.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_time_answers_for_every_row() {
    let cases = include_str!("../../../tables/testdata/timestamps.txt").lines();
    let cases: Vec<(&str, &str)> = cases
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once('|').unwrap())
        .collect();
    let events = |prefix: &str| -> Vec<Ev> {
        let event = |(n, (_, text)): (usize, &(&str, &str))| {
            Ev::new("Feature Used", "2026-11-19T10:00:00Z")
                .id(&format!("{prefix}{n:02}"))
                .with(&format!(r#"{{"ends_at":{text:?}}}"#))
        };
        cases.iter().enumerate().map(event).collect()
    };
    let expected = |prefix: &str| -> Vec<String> {
        let line = |(n, (micros, _)): (usize, &(&str, &str))| format!("{prefix}{n:02}|{micros}");
        cases.iter().enumerate().map(line).collect()
    };
    let world = World::new().await;
    world.events(&events("a")).await;
    world.night(NIGHT).await;
    world.promote("ends_at", ColumnType::Timestamp).await;
    let sql = "SELECT message_id, coalesce(CAST(arrow_cast(ends_at, 'Int64') AS TEXT), '-')
               FROM events ORDER BY 1";
    assert_eq!(world.query(sql).await, expected("a"));
    world.events(&events("b")).await;
    let both = [expected("a"), expected("b")].concat();
    assert_eq!(world.query(sql).await, both);
    world.night(NIGHT).await;
    assert_eq!(world.query(sql).await, both);
    let as_time = "SELECT message_id FROM events WHERE ends_at < TIMESTAMP '1900-01-01T00:00:00Z'
                   AND ends_at > TIMESTAMP '1800-01-01T00:00:00Z' ORDER BY 1";
    assert_eq!(world.query(as_time).await, ["a16", "b16"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ties_go_to_the_lowest_agent_epoch_and_sequence() {
    let world = World::new().await;
    let copy = |agent: &str| {
        Ev::new("Feature Used", "2026-11-19T10:00:00Z")
            .id("x")
            .agent(agent)
            .received("2026-11-19T10:00:05Z")
    };
    world.events(&[copy("b"), copy("a"), copy("a")]).await;
    world.night(NIGHT).await;
    let rows = world
        .query("SELECT _agent_id, _sequence, copies FROM core.events")
        .await;
    assert_eq!(rows, ["a|2|3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_changed_at_14_00_holds_from_that_microsecond() {
    let world = World::new().await;
    world.plan("small", 1000).await;
    world.plan("big", 3000).await;
    world.subscribe("s", "big", 5).await;
    world
        .sql("INSERT INTO subscription_changes VALUES ('c', 's', '2026-11-19T14:00:00Z', 'small', 'big', 4, 5)")
        .await;
    world
        .events(&[
            Ev::new("Feature Used", "2026-11-19T13:59:59.999Z"),
            Ev::new("Feature Used", "2026-11-19T14:00:00.000Z"),
            Ev::new("Feature Used", "2025-12-31T00:00:00Z"),
        ])
        .await;
    world.night(NIGHT).await;
    let sql = "SELECT event_time, plan_id_at_event, subscription_status_at_event FROM core.events ORDER BY event_time";
    let first = world.query(sql).await;
    assert_eq!(
        first,
        [
            "2025-12-31T00:00:00Z|small|active",
            "2026-11-19T13:59:59.999Z|small|active",
            "2026-11-19T14:00:00Z|big|active",
        ]
    );
    let days = world
        .query("SELECT report_date, plan_id, seats, mrr_minor, mrr_currency FROM reports.company_day ORDER BY report_date DESC LIMIT 2")
        .await;
    assert_eq!(
        days,
        ["2026-11-19|big|5|15000|USD", "2026-11-18|small|4|4000|USD"]
    );
    // A year later the answer is the same.
    world
        .clock
        .set(crate::world::micros("2027-11-20T02:00:00Z"));
    world.night(NIGHT).await;
    assert_eq!(world.query(sql).await, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_belongs_to_the_companys_own_day() {
    let world = World::new().await;
    world.company("ny", "America/New_York").await;
    world.company("kol", "Asia/Kolkata").await;
    world.company("lh", "Australia/Lord_Howe").await;
    world.company("odd", "Mars/Phobos").await;
    let at = |company: &str, time: &str| Ev::new("Feature Used", time).company(company);
    world
        .events(&[
            // New York: UTC-4 until 2026-11-01 06:00 UTC, UTC-5 after.
            at("ny", "2026-11-01T03:59:59.999Z"),
            at("ny", "2026-11-01T04:00:00Z"),
            at("ny", "2026-11-02T04:59:59.999Z"),
            at("ny", "2026-11-02T05:00:00Z"),
            // Kolkata: UTC+5:30.
            at("kol", "2026-11-18T18:29:59.999Z"),
            at("kol", "2026-11-18T18:30:00Z"),
            // Lord Howe: UTC+10:30, and UTC+11 from 2026-10-04.
            at("lh", "2026-10-03T13:29:59.999Z"),
            at("lh", "2026-10-03T13:30:00Z"),
            at("lh", "2026-10-04T12:59:59.999Z"),
            at("lh", "2026-10-04T13:00:00Z"),
            // An unknown zone is UTC.
            at("odd", "2026-11-18T23:59:59.999Z"),
        ])
        .await;
    world.night(NIGHT).await;
    let rows = world
        .query("SELECT company_id, report_date FROM core.events ORDER BY company_id, event_time")
        .await;
    assert_eq!(
        rows,
        [
            "kol|2026-11-18",
            "kol|2026-11-19",
            "lh|2026-10-03",
            "lh|2026-10-04",
            "lh|2026-10-04",
            "lh|2026-10-05",
            "ny|2026-10-31",
            "ny|2026-11-01",
            "ny|2026-11-01",
            "ny|2026-11-02",
            "odd|2026-11-18",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_its_latest_state() {
    let world = World::new().await;
    world
        .events(&[
            Ev::new("Conversation Started", "2026-11-10T10:00:00Z")
                .of("c")
                .by("contact_user", "u"),
            Ev::new("Conversation Started", "2026-11-10T11:00:00Z")
                .of("c")
                .by("contact_user", "u")
                .company("other"),
        ])
        .await;
    world.night(NIGHT).await;
    world
        .events(&[Ev::new("Conversation Closed", "2026-11-19T10:00:00Z")
            .of("c")
            .by("admin", "a")])
        .await;
    world.night(NIGHT).await;
    let rows = world
        .query("SELECT company_id, started_at, state, events FROM core.conversations ORDER BY company_id")
        .await;
    assert_eq!(
        rows,
        [
            "acme|2026-11-10T10:00:00Z|closed|2",
            "other|2026-11-10T11:00:00Z|open|1"
        ]
    );
    // Its report row lies on the day it began, nine days before the night.
    let rows = world
        .query("SELECT report_date, state FROM reports.conversation WHERE company_id = 'acme'")
        .await;
    assert_eq!(rows, ["2026-11-10|closed"]);
    // An earlier event moves it to another day.
    world
        .events(&[Ev::new("Conversation Started", "2026-11-09T10:00:00Z")
            .of("c")
            .by("contact_user", "u")])
        .await;
    world.night(NIGHT).await;
    let rows = world
        .query("SELECT started_at FROM core.conversations WHERE company_id = 'acme'")
        .await;
    assert_eq!(rows, ["2026-11-09T10:00:00Z"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_of_raw_events_counts_no_copy_twice() {
    let world = World::new().await;
    let event = || Ev::new("Feature Used", "2026-11-19T10:00:00Z");
    world
        .events(&[event().id("x"), event().id("x"), event().id("y")])
        .await;
    world.night(NIGHT).await;
    // New rows and old ones now lie in the same new files.
    world.events(&[event().id("y"), event().id("z")]).await;
    world.compact().await;
    world.night(NIGHT).await;
    let rows = world
        .query("SELECT message_id, copies FROM core.events ORDER BY 1")
        .await;
    assert_eq!(rows, ["x|2", "y|2", "z|1"]);
    // Compaction alone is no news.
    world.compact().await;
    let before = world.snapshots().await;
    world.night(NIGHT).await;
    assert_eq!(world.snapshots().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_night_that_ended_between_events_and_conversations_is_made_good() {
    let world = World::new().await;
    let started = |conversation: &str| {
        Ev::new("Conversation Started", "2026-11-19T10:00:00Z")
            .of(conversation)
            .by("contact_user", "u")
    };
    world.events(&[started("a"), started("b")]).await;
    world.night(NIGHT).await;
    let sql = "SELECT conversation_id, state FROM core.conversations ORDER BY 1";
    let property = headwater_warehouse::core::RAW_SNAPSHOT;
    // Without new events, and with some.
    world.truncate("core.conversations", (property, "1")).await;
    world.night(NIGHT).await;
    assert_eq!(world.query(sql).await, ["a|open", "b|open"]);
    world.truncate("core.conversations", (property, "1")).await;
    world.events(&[started("c")]).await;
    world.night(NIGHT).await;
    assert_eq!(world.query(sql).await, ["a|open", "b|open", "c|open"]);
}
