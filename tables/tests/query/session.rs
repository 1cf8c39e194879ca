//! Sessions: one set of snapshots, read-only, bounded.

use std::collections::BTreeMap;

use headwater_tables::query::{Pins, SessionOptions, session};

use crate::interactions::{rows, schema};
use crate::lake::{Lake, arrow_schema};
use crate::plans::{answer, value};

const TABLE: &str = "raw.interactions";

async fn lake() -> Lake {
    let lake = Lake::new().await;
    let table = lake.create(TABLE, schema(), Some("at")).await;
    lake.append(TABLE, rows(&arrow_schema(&table), 0, 100))
        .await;
    lake
}

#[tokio::test]
async fn a_session_keeps_its_answer_while_commits_go_on() {
    let lake = lake().await;
    let pins = lake.pins(&[TABLE]).await;
    let context = session(&pins, &SessionOptions::default()).unwrap();
    let query = "SELECT count(*), sum(id) FROM raw.interactions WHERE id >= 0";
    let before = answer(&context, query).await;
    let arrow = arrow_schema(&lake.load(TABLE).await);
    for commit in 1..5 {
        lake.append(TABLE, rows(&arrow, commit * 100, 100)).await;
        assert_eq!(answer(&context, query).await, before);
    }
    // Another session on the same pins as well; one on new pins reads what is new.
    let again = session(&pins, &SessionOptions::default()).unwrap();
    assert_eq!(answer(&again, query).await, before);
    let newer = session(&lake.pins(&[TABLE]).await, &SessionOptions::default()).unwrap();
    assert_eq!(
        value(&newer, "SELECT count(*) FROM raw.interactions").await,
        "500"
    );
}

#[tokio::test]
async fn two_references_in_one_query_read_one_snapshot() {
    let lake = lake().await;
    let arrow = arrow_schema(&lake.load(TABLE).await);
    let commits = async {
        for commit in 1..30 {
            lake.append(TABLE, rows(&arrow, commit * 10, 10)).await;
        }
    };
    let queries = async {
        let query = "SELECT count(*) FROM raw.interactions AS a \
                     FULL JOIN raw.interactions AS b USING (id, at) \
                     WHERE a.company IS NULL OR b.company IS NULL \
                        OR (SELECT count(*) FROM raw.interactions) <> \
                           (SELECT count(company) FROM raw.interactions WHERE id >= 0)";
        for _ in 0..10 {
            let pins = lake.pins(&[TABLE]).await;
            let context = session(&pins, &SessionOptions::default()).unwrap();
            assert_eq!(value(&context, query).await, "0");
        }
    };
    tokio::join!(commits, queries);
}

#[tokio::test]
async fn pins_name_the_snapshot_of_each_table() {
    let lake = lake().await;
    lake.create("ops.empty", schema(), None).await;
    let pins = lake.pins(&[TABLE, "ops.empty"]).await;
    let snapshots = pins.snapshots();
    let current = lake.load(TABLE).await.metadata().current_snapshot_id();
    assert!(current.is_some());
    assert_eq!(snapshots[&TABLE.parse().unwrap()], current);
    assert_eq!(snapshots[&"ops.empty".parse().unwrap()], None);
}

#[tokio::test]
async fn the_catalog_can_be_browsed_and_not_changed() {
    let lake = lake().await;
    let pins = lake.pins(&[TABLE]).await;
    let context = session(&pins, &SessionOptions::default()).unwrap();
    let tables = answer(
        &context,
        "SELECT table_catalog, table_schema, table_name, table_type \
         FROM information_schema.tables WHERE table_schema <> 'information_schema' ORDER BY 2, 3",
    )
    .await;
    assert!(
        tables.contains("| headwater     | public       | events       | VIEW"),
        "{tables}"
    );
    assert!(
        tables.contains("| headwater     | raw          | interactions | BASE TABLE"),
        "{tables}"
    );
    for statement in [
        "CREATE TABLE raw.mine AS SELECT 1",
        "CREATE VIEW raw.mine AS SELECT 1",
        "CREATE VIEW mine AS SELECT 1",
        "DROP TABLE raw.interactions",
        "DROP VIEW events",
        "CREATE SCHEMA headwater.mine",
        "DROP SCHEMA headwater.raw CASCADE",
        "INSERT INTO raw.interactions SELECT * FROM raw.interactions",
        "DELETE FROM raw.interactions",
        "UPDATE raw.interactions SET id = 1",
    ] {
        let outcome = match context.sql(statement).await {
            Ok(frame) => frame.collect().await.map(|_| ()),
            Err(error) => Err(error),
        };
        assert!(outcome.is_err(), "`{statement}` was not refused");
    }
}

#[tokio::test]
async fn a_query_beyond_its_memory_fails_with_the_largest_consumers() {
    let lake = lake().await;
    let options = SessionOptions {
        memory_bytes_max: 1 << 20,
        spill_bytes_max: 0,
        ..SessionOptions::default()
    };
    let context = session(&lake.pins(&[TABLE]).await, &options).unwrap();
    let query = "SELECT count(*) FROM (SELECT a.id, b.id, count(*) \
                 FROM raw.interactions a, raw.interactions b, range(0, 100) GROUP BY 1, 2, value)";
    let error = context
        .sql(query)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap_err();
    let message = error.to_string();
    assert!(message.contains("top memory consumers"), "{message}");
}

#[tokio::test]
async fn text_and_time_keep_their_plain_types() {
    let lake = lake().await;
    let context = session(&lake.pins(&[TABLE]).await, &SessionOptions::default()).unwrap();
    let types = "SELECT arrow_typeof('a'), arrow_typeof(CAST(1 AS VARCHAR)), \
                 arrow_typeof(at), arrow_typeof(now()) FROM raw.interactions LIMIT 1";
    let answer = answer(&context, types).await;
    assert!(!answer.contains("Utf8View"), "{answer}");
    assert!(answer.contains("Timestamp(µs, \"UTC\")"), "{answer}");
    assert!(answer.contains("Timestamp(ns, \"UTC\")"), "{answer}");
}

/// The reports' medians and percentiles rest on this.
#[tokio::test]
async fn percentile_cont_is_exact() {
    let lake = lake().await;
    let context = session(&lake.pins(&[TABLE]).await, &SessionOptions::default()).unwrap();
    for (query, expected) in [
        (
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY id) FROM raw.interactions",
            "49.5",
        ),
        (
            "SELECT percentile_cont(0.9) WITHIN GROUP (ORDER BY id) FROM raw.interactions",
            "89.1",
        ),
        (
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY id) FROM raw.interactions \
             WHERE id < 3",
            "1.0",
        ),
    ] {
        assert_eq!(value(&context, query).await, expected, "{query}");
    }
}

#[tokio::test]
async fn a_key_of_a_json_column_can_be_asked_for() {
    let context = session(&Pins::of(BTreeMap::new()), &SessionOptions::default()).unwrap();
    let sql = r#"SELECT p ->> 'tag' AS tag, json_get_int(p, 'n') AS n, json_contains(p, 'absent') AS absent,
                 round(2.567, 1) AS rounded
                 FROM (VALUES ('{"tag": "vip", "n": 7}')) AS t(p)"#;
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    let text = arrow::util::pretty::pretty_format_batches(&batches)
        .unwrap()
        .to_string();
    assert!(text.contains("| vip | 7 | false  | 2.6     |"), "{text}");
}

#[tokio::test]
async fn what_the_reports_compute_with_is_there_for_everybody() {
    let lake = lake().await;
    let context = session(&lake.pins(&[]).await, &SessionOptions::default()).unwrap();
    let sql = "SELECT local_date(to_timestamp('2026-11-20T03:00:00Z'), 'America/New_York')";
    assert_eq!(value(&context, sql).await, "2026-11-19");
    let sql = "SELECT seconds_between(local_midnight(DATE '2026-11-01', 'America/New_York'),
                                      local_midnight(DATE '2026-11-02', 'America/New_York'))";
    assert_eq!(value(&context, sql).await, "90000");
}
