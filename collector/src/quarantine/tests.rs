//! Records on their way through the quarantine and back.

use headwater_protocol::{EventType, Invalid, Record, SourceKind};
use headwater_tables::schema::{RAW_EVENTS, raw_events, raw_quarantine};
use headwater_tables::watermark::Watermarks;
use headwater_tables::{Catalog, CatalogConfig, Change};

use super::replay::{Extent, replay};
use super::*;
use crate::commit::files::write_quarantine;
use crate::plan::Plan;
use crate::staging::BatchOrigin;
use crate::staging::quarantine_rows::QuarantineRows;

const NOW: i64 = 1_790_000_000_000_000;

fn plain() -> Record {
    Record::new(
        NOW - 1,
        "acme",
        "web",
        SourceKind::Server,
        "/v1/batch",
        r#"{"type":"track","event":"E","userId":"u"}"#,
    )
}

fn key() -> Key {
    Key {
        agent: "agent-1".parse().unwrap(),
        epoch: 5,
    }
}

fn origin() -> BatchOrigin {
    BatchOrigin {
        key: key(),
        batch_id: "agent-1/5/1+1".to_owned(),
        now: NOW,
        retention_until: NOW + 7,
    }
}

#[test]
fn a_record_comes_back_as_its_agent_sent_it() {
    let full = Record {
        source_kind: SourceKind::Browser,
        event_type: Some(EventType::Track),
        sent_at: Some("2026-01-01T00:00:00Z".to_owned()),
        attempt: Some(3),
        ip: Some("192.0.2.0".to_owned()),
        user_agent: Some("Mozilla/5.0".to_owned()),
        skew_ms: Some(-7),
        content_type: Some("text/plain".to_owned()),
        encoding: Some("gzip".to_owned()),
        ..plain()
    };
    let mut rows = QuarantineRows::default();
    for (sequence, record) in (1..).zip([&full, &plain()]) {
        rows.push_invalid(&origin(), sequence, record, &Invalid::NOT_A_RECORD);
    }
    let rows = rows.finish().unwrap();
    let entries = entries(&rows).unwrap();
    assert_eq!(entries[0].record().unwrap(), full);
    assert_eq!(entries[1].record().unwrap(), plain());
    assert_eq!(entries[1].retention_until, NOW + 7);
}

#[test]
fn what_did_not_arrive_at_any_time_of_a_table_is_not_replayed() {
    let never = Record {
        received_at: i64::MAX,
        ..plain()
    };
    let mut rows = QuarantineRows::default();
    rows.push_undecodable(&origin(), 1, &never.encode());
    // As it was written before such a record counted as none.
    rows.push_invalid(&origin(), 2, &never, &Invalid::NOT_A_RECORD);
    let entries = entries(&rows.finish().unwrap()).unwrap();
    assert_eq!(entries.len(), 2);
    assert!(entries.iter().all(|entry| entry.record().is_err()));
}

/// Such a collector takes a record with more fields than it knows for none
/// (`protocol/tests/wire.rs`). The bytes that it keeps are whole.
#[tokio::test]
async fn what_an_older_collector_could_not_decode_is_brought_in_by_a_replay() {
    let directory = tempfile::tempdir().unwrap();
    let config = CatalogConfig::local(directory.path());
    let catalog = Catalog::open(&config).await.unwrap();
    let newer = Record {
        content_type: Some("text/plain".to_owned()),
        ..plain()
    };
    let mut rows = QuarantineRows::default();
    rows.push_undecodable(&origin(), 1, &newer.encode());
    let quarantine = catalog.ensure(&raw_quarantine()).await.unwrap();
    let files = write_quarantine(&quarantine, vec![rows.finish().unwrap()]).await;
    let change = Change::append(files.unwrap());
    catalog.commit(&quarantine, change).await.unwrap();
    let events = catalog.ensure(&raw_events()).await.unwrap();
    let none = Watermarks::of(&events).unwrap();
    let mut passed = none.clone();
    passed.advance("agent-1", 5, 1);
    let change = Change {
        properties: passed.changed_properties(&none),
        ..Change::append(Vec::new())
    };
    catalog.commit(&events, change).await.unwrap();

    let (plan, all) = (Plan::builtin(), Filter::default());
    let done = replay(&catalog, &plan, &all, Extent::default(), &|_| true).await;
    assert_eq!(done.unwrap().added, 1);
    let events = catalog.load(&RAW_EVENTS).await.unwrap();
    let stored = sequences_of(&events, &key(), 0, 1).await.unwrap();
    assert_eq!(stored, BTreeSet::from([1]));
}
