//! What staging makes of bodies: which table, which columns, which sequence.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use headwater_protocol::{Codec, Cut, Record, SourceKind};
use metrics::{Counter, Gauge, Histogram, KeyName, Metadata, Recorder, SharedString, Unit};
use serde_bytes::ByteBuf;

use super::*;
use crate::plan::Plan;

const NOW: i64 = 1_790_000_000_000_000;

fn record(body: &str) -> Record {
    Record {
        attempt: Some(1),
        ip: Some("192.0.2.0".to_owned()),
        user_agent: Some("Mozilla/5.0 (compatible; Examplebot/2.1)".to_owned()),
        ..Record::new(NOW, "acme", "web", SourceKind::Server, "/v1/batch", body)
    }
}

fn staged(records: &[u8], count: u32) -> Result<Rows, StageError> {
    staged_by(&Plan::builtin(), records, count)
}

fn staged_by(plan: &Plan, records: &[u8], count: u32) -> Result<Rows, StageError> {
    let header = BatchHeader {
        epoch: 5,
        first_sequence: 1,
        count,
        codec: Codec::Zstd,
        body_bytes: records.len() as u64,
    };
    let origin = BatchOrigin::new("agent-1".parse().unwrap(), 5, &header, NOW + 1);
    let body = batch::compress(records).unwrap();
    stage(&origin, &header, &body, plan)
}

fn text<'a>(rows: &'a RecordBatch, column: &str) -> Option<&'a str> {
    let array = rows.column_by_name(column).unwrap().as_string::<i32>();
    array.is_valid(0).then(|| array.value(0))
}

#[test]
fn columns_are_those_of_the_tables() {
    let names = |spec: headwater_tables::TableSpec| -> Vec<String> {
        let fields = spec.schema.as_struct().fields();
        fields.iter().map(|field| field.name.clone()).collect()
    };
    let ours = |schema: &arrow::datatypes::SchemaRef| -> Vec<String> {
        let fields = schema.fields();
        fields.iter().map(|field| field.name().clone()).collect()
    };
    assert_eq!(
        ours(&event_rows::SCHEMA),
        names(headwater_tables::schema::raw_events())
    );
    assert_eq!(
        ours(&quarantine_rows::SCHEMA),
        names(headwater_tables::schema::raw_quarantine())
    );
    let index = |name: &str| event_rows::SCHEMA.index_of(name).unwrap();
    use event_rows::column;
    assert_eq!(index("company_id"), column::COMPANY_ID);
    assert_eq!(index("message_id"), column::MESSAGE_ID);
    assert_eq!(index("event_time"), column::EVENT_TIME);
    assert_eq!(index("_sequence"), column::SEQUENCE);
    let index = quarantine_rows::SCHEMA.index_of("_sequence").unwrap();
    assert_eq!(index, quarantine_rows::SEQUENCE_COLUMN);
}

#[test]
fn an_event_fills_its_columns() {
    let body = r#"{"type":"track","event":"conversation_rated","messageId":"m-1","userId":"u-1",
        "timestamp":"2026-09-21T10:00:00Z","properties":{"rating":4,"conversation_id":77,"z":1,"a":2},
        "context":{"library":{"name":"analytics-python","version":"2.4"},"locale":"de",
        "page":{"url":"https://a.example/x","path":"/x"}}}"#;
    let rows = staged(&record(body).encode(), 1).unwrap();
    let events = rows.events;
    let expected = [
        ("company_id", Some("acme")),
        ("message_id", Some("m-1")),
        ("event_name", Some("Conversation Rated")),
        ("event_name_raw", Some("conversation_rated")),
        ("time_rule", Some("trusted")),
        ("actor_type", Some("contact_user")),
        ("actor_id", Some("u-1")),
        ("contact_id", Some("u-1")),
        ("admin_id", None),
        ("conversation_id", Some("77")),
        (
            "properties",
            Some(r#"{"a":2,"conversation_id":77,"rating":4,"z":1}"#),
        ),
        ("page_path", Some("/x")),
        ("locale", Some("de")),
        ("ip", Some("192.0.2.0")),
        ("library_name", Some("analytics-python")),
        ("traits", None),
        ("ingest_batch_id", Some("agent-1/5/1+1")),
        ("_agent_id", Some("agent-1")),
    ];
    for (column, value) in expected {
        assert_eq!(text(&events, column), value, "{column}");
    }
    let rating = events.column_by_name("rating").unwrap();
    assert_eq!(rating.as_primitive::<Int32Type>().value(0), 4);
    let time = events.column_by_name("event_time").unwrap();
    let expected = headwater_protocol::timestamp::parse("2026-09-21T10:00:00Z").unwrap();
    assert_eq!(
        time.as_primitive::<TimestampMicrosecondType>().value(0),
        expected
    );
    let flags = events.column_by_name("flags").unwrap().as_list::<i32>();
    let flags = flags.value(0);
    let flags: Vec<_> = flags.as_string::<i32>().iter().flatten().collect();
    assert_eq!(flags, ["bot", "unplanned_property"]);
}

/// The `event_time`, rule and skew of a browser's event that happened at 23:59:30 before midnight.
fn timed(attempt: Option<u32>, skew_ms: Option<i64>, received_at: &str) -> (i64, String, i64) {
    let micros = |text: &str| headwater_protocol::timestamp::parse(text).unwrap();
    let body = r#"{"type":"track","event":"E","anonymousId":"a","messageId":"m",
        "timestamp":"2026-09-20T23:59:30Z","sentAt":"2026-09-20T23:59:31Z"}"#;
    let record = Record {
        source_kind: SourceKind::Browser,
        received_at: micros(received_at),
        attempt,
        skew_ms,
        ..record(body)
    };
    let events = staged(&record.encode(), 1).unwrap().events;
    let time = events.column_by_name("event_time").unwrap();
    let time = time.as_primitive::<TimestampMicrosecondType>().value(0);
    let skew = events.column_by_name("clock_skew_ms").unwrap();
    let rule = text(&events, "time_rule").unwrap().to_owned();
    let off = time - micros("2026-09-20T23:59:30Z");
    (off, rule, skew.as_primitive::<Int64Type>().value(0))
}

#[test]
fn a_retry_six_hours_later_stays_on_its_side_of_midnight() {
    let (at_once, later) = ("2026-09-20T23:59:31.2Z", "2026-09-21T05:59:31.2Z");
    let trusted = |skew| (0, "trusted".to_owned(), skew);
    assert_eq!(timed(None, None, at_once), trusted(200));
    // `sentAt` is frozen. The client says that it retries, or the agent knows the device's clock.
    assert_eq!(timed(Some(3), None, later), trusted(21_600_200));
    assert_eq!(timed(Some(3), Some(200), later), trusted(200));
    assert_eq!(timed(None, Some(200), later), trusted(200));
}

#[test]
fn a_wrong_clock_is_corrected_by_the_skew_of_its_device() {
    const NETWORK_MS: i64 = 200;
    let behind = 3 * 86_400_000 + NETWORK_MS;
    let ahead = -3 * 86_400_000 + NETWORK_MS;
    for (skew, at_once, retried) in [
        (behind, "2026-09-23T23:59:31.2Z", "2026-09-24T05:59:31.2Z"),
        (ahead, "2026-09-17T23:59:31.2Z", "2026-09-18T05:59:31.2Z"),
    ] {
        let corrected = (skew * 1000, "skew_corrected".to_owned(), skew);
        assert_eq!(timed(None, None, at_once), corrected);
        assert_eq!(timed(None, Some(skew), at_once), corrected);
        assert_eq!(timed(Some(2), Some(skew), retried), corrected);
    }
}

#[test]
fn a_promoted_property_of_another_type_is_null_and_kept_in_the_json() {
    let body = r#"{"type":"track","event":"E","userId":"u","properties":{"rating":"four","team_id":{"x":1}}}"#;
    let events = staged(&record(body).encode(), 1).unwrap().events;
    assert!(events.column_by_name("rating").unwrap().is_null(0));
    assert_eq!(text(&events, "team_id"), None);
    assert_eq!(
        text(&events, "properties"),
        Some(r#"{"rating":"four","team_id":{"x":1}}"#)
    );
}

fn list(rows: &RecordBatch, column: &str, row: usize) -> Option<Vec<String>> {
    let array = rows.column_by_name(column).unwrap().as_list::<i32>();
    array.is_valid(row).then(|| {
        let values = array.value(row);
        let values = values.as_string::<i32>().iter().flatten();
        values.map(str::to_owned).collect()
    })
}

#[test]
fn a_violation_is_noted_in_the_row_and_keeps_it() {
    let event = |properties: &str| {
        let name = r#""type":"track","event":"conversation rated","userId":"u""#;
        record(&format!(r#"{{{name},"properties":{properties}}}"#)).encode()
    };
    let mut body = event(r#"{"conversation_id":"c","rating":4,"rated_type":"teammate"}"#);
    body.extend(event(r#"{"conversation_id":"c","rating":"four","mood":1}"#));
    body.extend(record(r#"{"type":"track","event":"E","userId":"u"}"#).encode());
    let events = staged(&body, 3).unwrap().events;
    let versions = events.column_by_name("schema_version").unwrap();
    assert_eq!(versions.as_primitive::<Int32Type>().values(), &[1, 1, 0]);
    assert_eq!(list(&events, "property_violations", 0), None);
    assert_eq!(
        list(&events, "property_violations", 1).unwrap(),
        [
            "$.properties.rated_type: required",
            "$.properties.rating: type"
        ]
    );
    let flags = |row| list(&events, "flags", row).unwrap();
    assert!(!flags(0).contains(&"unplanned_property".to_owned()));
    assert!(flags(1).contains(&"unplanned_property".to_owned()));
    assert_eq!(list(&events, "property_violations", 2), None);
}

/// Adds up one counter and nothing else.
struct OneCounter {
    name: &'static str,
    value: Arc<AtomicU64>,
}

impl Recorder for OneCounter {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &metrics::Key, _: &Metadata<'_>) -> Counter {
        match key.name() == self.name {
            true => Counter::from_arc(Arc::clone(&self.value)),
            false => Counter::noop(),
        }
    }

    fn register_gauge(&self, _: &metrics::Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &metrics::Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn only_a_track_whose_name_no_file_has_counts_as_unplanned() {
    let cases = [
        (r#"{"type":"track","event":"E","userId":"u"}"#, 1),
        (r#"{"type":"track","event":"signed_in","userId":"u"}"#, 0),
        (r#"{"type":"identify","userId":"u"}"#, 0),
        (r#"{"type":"page","userId":"u"}"#, 0),
        (r#"{"type":"page","name":"E","userId":"u"}"#, 0),
        (r#"{"type":"alias","userId":"u","previousId":"p"}"#, 0),
    ];
    for (body, expected) in cases {
        let recorder = OneCounter {
            name: names::EVENTS_UNPLANNED,
            value: Arc::default(),
        };
        let stage = || staged(&record(body).encode(), 1).unwrap();
        let rows = metrics::with_local_recorder(&recorder, stage);
        assert_eq!(rows.events.num_rows(), 1, "{body}");
        assert_eq!(recorder.value.load(Ordering::Acquire), expected, "{body}");
    }
}

#[test]
fn what_the_plan_keeps_out_is_in_quarantine_with_everything_that_a_replay_needs() {
    let file = r#"{"event":"E","version":3,"mode":"quarantine","schema":{"required":["x"]}}"#;
    let others = r#"{"unplanned_events":"quarantine"}"#;
    let plan = Plan::of_texts(&[("e.json", file), ("plan.json", others)]).unwrap();
    let mut bad = record(r#"{"type":"track","event":"e","userId":"u","messageId":"m"}"#);
    bad.source_kind = SourceKind::Browser;
    bad.event_type = Some(EventType::Track);
    bad.sent_at = Some("2026-01-01T00:00:00Z".to_owned());
    bad.skew_ms = Some(-7);
    bad.content_type = Some("text/plain".to_owned());
    bad.encoding = Some("gzip".to_owned());
    let mut body = bad.encode();
    record(r#"{"type":"track","event":"F","userId":"u"}"#).encode_into(&mut body);
    record(r#"{"type":"track","event":"E","userId":"u","properties":{"x":1}}"#)
        .encode_into(&mut body);
    let rows = staged_by(&plan, &body, 3).unwrap();
    assert_eq!(rows.events.num_rows(), 1);
    let rows = rows.quarantine;
    let types = rows.column_by_name("failure_type").unwrap();
    let types: Vec<_> = types.as_string::<i32>().iter().flatten().collect();
    assert_eq!(types, ["schema_violation", "unplanned_event"]);
    let flaws = flaws::read(rows.column_by_name("errors").unwrap()).unwrap();
    let lines = |row: usize| {
        flaws[row]
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        lines(0),
        ["$.properties.x: required: a value expected, missing found"]
    );
    assert_eq!(
        lines(1),
        ["$.event: unplanned: a name of the tracking plan expected, string found"]
    );
    for (column, expected) in [
        ("schema_ref", "E@3"),
        ("source_kind", "browser"),
        ("event_type", "track"),
        ("batch_sent_at", "2026-01-01T00:00:00Z"),
        ("message_id", "m"),
        ("content_type", "text/plain"),
        ("encoding", "gzip"),
        ("processor_name", "headwater-collector"),
    ] {
        assert_eq!(text(&rows, column), Some(expected), "{column}");
    }
    for column in ["content_type", "encoding"] {
        assert!(rows.column_by_name(column).unwrap().is_null(1), "{column}");
    }
    let number = |column: &str| rows.column_by_name(column).unwrap().clone();
    let skew = number("clock_skew_ms");
    assert_eq!(skew.as_primitive::<Int64Type>().value(0), -7);
    let attempt = number("attempt");
    assert_eq!(attempt.as_primitive::<Int32Type>().value(0), 1);
    let payload = number("payload");
    assert_eq!(payload.as_binary::<i32>().value(0), bad.body.as_slice());
}

/// Everything that a row says, as text.
fn everything(rows: &RecordBatch) -> String {
    let columns = rows.columns().iter().zip(rows.schema_ref().fields());
    let columns = columns.map(|(column, field)| format!("{field} {column:?}"));
    columns.collect()
}

#[test]
fn what_the_plan_omits_is_in_no_column() {
    let of_type = |name: &str| format!(r#""{name}":{{"type":"null"}}"#);
    // Whatever a column, a flag or the actor is derived from.
    let derived = [
        "session_id",
        "contact_id",
        "admin_id",
        "team_id",
        "conversation_id",
        "part_id",
        "ticket_id",
        "channel",
        "part_type",
        "page_url",
        "url",
        "path",
        "plan_x",
        "mood",
    ];
    let mut schemas: Vec<String> = derived.iter().map(|name| of_type(name)).collect();
    schemas.extend(["rating", "actor_type", "is_ai_answer"].map(of_type));
    let file = format!(
        r#"{{"event":"E","version":1,"mode":"omit","promote":{{"plan_x":"string"}},
            "schema":{{"properties":{{{}}}}}}}"#,
        schemas.join(",")
    );
    let plan = Plan::of_texts(&[("e.json", &file)]).unwrap();
    let body = |properties: &str| {
        format!(
            r#"{{"type":"track","event":"E","userId":"u","messageId":"m","properties":{{{properties}}}}}"#
        )
    };
    let secrets = derived.map(|name| format!(r#""{name}":"secret-{name}","#));
    let sent = format!(
        r#"{}"actor_type":"bot","is_ai_answer":true,"rating":5,"kept":1"#,
        secrets.concat()
    );
    let row = |properties: &str| {
        let rows = staged_by(&plan, &record(&body(properties)).encode(), 1).unwrap();
        assert_eq!(rows.quarantine.num_rows(), 0);
        rows.events
    };
    let (stored, never_sent) = (row(&sent), row(r#""kept":1"#));
    assert!(!everything(&stored).contains("secret"));
    assert_eq!(text(&stored, "properties"), Some(r#"{"kept":1}"#));
    let noted = list(&stored, "property_violations", 0).unwrap();
    assert_eq!(noted.len(), 16);
    assert_eq!(noted[0], "$.properties.actor_type: type");
    // All else is as if they had not been sent, but for the hash of what was sent.
    for (column, field) in stored.columns().iter().zip(stored.schema_ref().fields()) {
        if !["payload_sha256", "property_violations"].contains(&field.name().as_str()) {
            let without = never_sent.column_by_name(field.name()).unwrap();
            assert_eq!(column.to_data(), without.to_data(), "{field}");
        }
    }
}

#[test]
fn what_the_plan_omits_of_a_posthog_event_is_in_no_column() {
    let file = r#"{"event":"E","version":1,"mode":"omit","schema":{"additionalProperties":false}}"#;
    let plan = Plan::of_texts(&[("e.json", file)]).unwrap();
    let body = r#"{"event":"E","distinct_id":"u","uuid":"m","properties":{
        "$current_url":"https://secret","$session_id":"secret","$device_id":"secret",
        "$raw_user_agent":"secret","$set":{"name":"secret"},"$lib":"secret"}}"#;
    let rows = staged_by(&plan, &record(body).encode(), 1).unwrap().events;
    assert!(!everything(&rows).contains("secret"));
    assert_eq!(text(&rows, "properties"), Some("{}"));
    assert_eq!(text(&rows, "context"), Some("{}"));
    assert_eq!(text(&rows, "actor_id"), Some("u"));
}

#[test]
fn an_event_is_large_by_what_is_stored_of_it() {
    let file = r#"{"event":"E","version":1,"mode":"omit",
        "schema":{"properties":{"blob":{"maxLength":9}}}}"#;
    let plan = Plan::of_texts(&[("e.json", file)]).unwrap();
    let flags = |properties: &str| {
        let body =
            format!(r#"{{"type":"track","event":"E","userId":"u","properties":{properties}}}"#);
        let events = staged_by(&plan, &record(&body).encode(), 1).unwrap().events;
        list(&events, "flags", 0).unwrap()
    };
    let long = "x".repeat(40_000);
    let is_large = |flags: Vec<String>| flags.contains(&"large".to_owned());
    assert!(!is_large(flags(&format!(r#"{{"blob":"{long}"}}"#))));
    assert!(is_large(flags(&format!(r#"{{"text":"{long}"}}"#))));
    let both = format!(r#"{{"blob":"{long}","text":"{long}"}}"#);
    assert!(is_large(flags(&both)));
}

#[test]
fn every_slot_becomes_one_row_with_its_sequence() {
    let good = r#"{"type":"track","event":"E","userId":"u"}"#;
    let mut body = record(good).encode();
    record(r#"{"type":"track","event":"E","messageId":"m"}"#).encode_into(&mut body);
    body.push(0x2a); // A number where a record should be.
    record(good).encode_into(&mut body);
    record("{").encode_into(&mut body);
    let rows = staged(&body, 5).unwrap();
    let sequences = |rows: &RecordBatch, column| -> Vec<i64> {
        rows.column(column)
            .as_primitive::<Int64Type>()
            .values()
            .to_vec()
    };
    assert_eq!(
        sequences(&rows.events, event_rows::column::SEQUENCE),
        [1, 4]
    );
    assert_eq!(
        sequences(&rows.quarantine, quarantine_rows::SEQUENCE_COLUMN),
        [2, 3, 5]
    );
    let failures = rows.quarantine.column_by_name("failure_type").unwrap();
    let failures: Vec<_> = failures.as_string::<i32>().iter().flatten().collect();
    assert_eq!(failures, ["identity_missing", "encoding", "payload_format"]);
    let flaws = flaws::read(rows.quarantine.column_by_name("errors").unwrap()).unwrap();
    let keywords: Vec<_> = flaws.iter().map(|row| row[0].keyword.as_str()).collect();
    assert_eq!(keywords, ["required", "encoding", "format"]);
    assert_eq!(text(&rows.quarantine, "message_id"), Some("m"));
    assert_eq!(text(&rows.quarantine, "quarantine_id"), Some("agent-1/5/2"));
}

#[test]
fn a_record_that_arrived_at_no_time_that_a_table_has_is_none() {
    const END: i64 = 253_402_300_800_000_000;
    let times = [i64::MIN, -1, 0, END - 1, END, i64::MAX];
    let records = times.map(|received_at| Record {
        received_at,
        ..record(r#"{"type":"track","event":"E","userId":"u"}"#)
    });
    let body: Vec<u8> = records.iter().flat_map(Record::encode).collect();
    let rows = staged(&body, 6).unwrap();
    let times = |rows: &RecordBatch| {
        let times = rows.column_by_name("received_at").unwrap();
        times
            .as_primitive::<TimestampMicrosecondType>()
            .values()
            .to_vec()
    };
    assert_eq!(times(&rows.events), [0, END - 1]);
    assert_eq!(times(&rows.quarantine), [NOW + 1; 4]);
    let failures = rows.quarantine.column_by_name("failure_type").unwrap();
    let failures = failures.as_string::<i32>();
    assert!(failures.iter().all(|it| it == Some("encoding")));
    let payloads = rows.quarantine.column_by_name("payload").unwrap();
    assert_eq!(payloads.as_binary::<i32>().value(0), records[0].encode());
}

#[test]
fn known_events_of_an_overlap_are_cut_off() {
    let one = record(r#"{"type":"identify","userId":"u"}"#).encode();
    let events = staged(&one.repeat(5), 5).unwrap().events;
    let column = event_rows::column::SEQUENCE;
    for (after, rows) in [(0, 5), (3, 2), (5, 0), (9, 0)] {
        let cut = crate::commit::files::rows_after(&events, column, after);
        assert_eq!(cut.num_rows(), rows);
    }
}

#[test]
fn long_payloads_are_cut_and_say_so() {
    let mut long = record("");
    long.event_type = Some(EventType::Track);
    long.body = ByteBuf::from(vec![b'x'; quarantine_rows::PAYLOAD_BYTES_MAX + 10]);
    let rows = staged(&long.encode(), 1).unwrap().quarantine;
    let payload = rows.column_by_name("payload").unwrap().as_binary::<i32>();
    assert_eq!(payload.value(0).len(), quarantine_rows::PAYLOAD_BYTES_MAX);
    let truncated = rows.column_by_name("payload_truncated").unwrap();
    assert!(truncated.as_boolean().value(0));
    let actual = rows.column_by_name("actual_bytes").unwrap();
    let actual = actual.as_primitive::<Int64Type>().value(0);
    let allowed = rows.column_by_name("maximum_allowed_bytes").unwrap();
    let allowed = allowed.as_primitive::<Int64Type>().value(0);
    assert_eq!(allowed, quarantine_rows::PAYLOAD_BYTES_MAX as i64);
    assert_eq!(actual, allowed + 10);
}

#[test]
fn what_its_agent_has_cut_says_how_large_it_was() {
    let cut = |allowed_bytes| {
        let mut cut = record(r#"{"type":"track"#);
        cut.cut = Some(Cut {
            sent_bytes: 2_000_000,
            allowed_bytes,
        });
        let rows = staged(&cut.encode(), 1).unwrap().quarantine;
        let number = |name: &str| {
            let column = rows.column_by_name(name).unwrap();
            column.as_primitive::<Int64Type>().value(0)
        };
        let truncated = rows.column_by_name("payload_truncated").unwrap();
        assert!(truncated.as_boolean().value(0));
        assert_eq!(number("actual_bytes"), 2_000_000);
        let failure = text(&rows, "failure_type").unwrap().to_owned();
        (failure, number("maximum_allowed_bytes"))
    };
    assert_eq!(cut(Some(1 << 20)), ("size".to_owned(), 1 << 20));
    // The beginning of a request that nobody can read: that it is long is not what is wrong.
    assert_eq!(cut(None), ("payload_format".to_owned(), 65_536));
}

#[test]
fn a_body_with_another_count_is_refused() {
    let one = record("{}").encode();
    assert!(matches!(
        staged(&one, 2),
        Err(StageError::Body(BodyError::Count {
            expected: 2,
            got: 1
        }))
    ));
}
