//! Statements and their results: one schema everywhere, whole or an error, promptly stopped.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeBinaryArray, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Schema, TimeUnit};
use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt as _, TicketStatementQuery};
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightDescriptor, Ticket,
};
use futures::{StreamExt as _, TryStreamExt as _};
use headwater_tables::promoted::{ColumnType, Promoted, raw_events_with};
use prost::Message as _;
use tonic::Code;

use crate::harness::{SOON, Server, column, fetch, query, status, texts, with_token};

/// Runs for minutes, sends its first rows at once.
const ENDLESS: &str = "SELECT a.value + b.value AS n FROM generate_series(1, 1000000) a \
                       CROSS JOIN generate_series(1, 1000000) b";

fn descriptor(sql: &str) -> FlightDescriptor {
    let query = CommandStatementQuery {
        query: sql.to_owned(),
        transaction_id: None,
    };
    FlightDescriptor::new_cmd(query.as_any().encode_to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_about_a_statement_has_the_same_schema() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut raw = server.raw().await;
    for sql in [
        "SELECT * FROM core.zoo",
        "SELECT count(*), min(id), max(name), sum(amount), avg(ratio) FROM core.zoo",
        "SELECT id, row_number() OVER (ORDER BY id) AS n FROM core.zoo",
        "SELECT z.id, c.n FROM core.zoo z LEFT JOIN core.counter c ON c.n = z.id",
        "SELECT arrow_cast(name, 'Dictionary(Int32, Utf8)') d, arrow_cast(name, 'Utf8View') v, \
         arrow_cast(name, 'LargeUtf8') l, arrow_cast(ratio, 'Float16') f FROM core.zoo",
        "SELECT id FROM core.zoo WHERE 1 = 0",
        "SELECT NULL AS nothing, 1 AS one",
        "EXPLAIN SELECT * FROM core.zoo",
        "SHOW TABLES",
        "DESCRIBE core.zoo",
        "SELECT * FROM events",
        "SELECT * FROM information_schema.columns",
    ] {
        let asked = raw
            .get_schema(with_token(&client, descriptor(sql)))
            .await
            .unwrap();
        let schema = Schema::try_from(&asked.into_inner()).unwrap();
        let info = client.execute(sql.to_owned(), None).await.unwrap();
        assert_eq!(info.clone().try_decode_schema().unwrap(), schema, "{sql}");
        let prepared = client.prepare(sql.to_owned(), None).await.unwrap();
        assert_eq!(*prepared.dataset_schema().unwrap(), schema, "{sql}");
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        let mut batches = client.do_get(ticket).await.unwrap();
        while let Some(batch) = batches.next().await {
            assert_eq!(*batch.unwrap().schema(), schema, "{sql}");
        }
        assert_eq!(**batches.schema().unwrap(), schema, "{sql}");
        for field in schema.fields() {
            assert!(
                !matches!(
                    field.data_type(),
                    DataType::Utf8View
                        | DataType::LargeUtf8
                        | DataType::Dictionary(..)
                        | DataType::Float16
                ),
                "{sql}: {field}"
            );
        }
    }
}

/// A row of `raw.events` with a promoted time in its column, or in its JSON alone.
fn event(message_id: &str, ends_at: Option<i64>, properties: &str) -> RecordBatch {
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
    let long = |value: i64| -> ArrayRef { Arc::new(Int64Array::from(vec![value])) };
    let time = |value: Option<i64>| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from(vec![value]).with_timezone("+00:00"))
    };
    let hash = FixedSizeBinaryArray::try_from_iter([[7_u8; 16]].into_iter());
    let columns = [
        ("company_id", text("acme")),
        ("source_id", text("web")),
        ("message_id", text(message_id)),
        ("payload_sha256", Arc::new(hash.unwrap())),
        ("type", text("track")),
        ("schema_version", Arc::new(Int32Array::from(vec![1]))),
        ("event_time", time(Some(0))),
        ("received_at", time(Some(0))),
        ("time_rule", text("trusted")),
        ("properties", text(properties)),
        ("context", text("{}")),
        ("ingest_batch_id", text("b")),
        ("_agent_id", text("agent")),
        ("_epoch", long(1)),
        ("_sequence", long(1)),
        ("ends_at", time(ends_at)),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn promoted_time_is_a_timestamp_with_zone_from_column_and_json() {
    let server = Server::start().await;
    let promoted = Promoted {
        name: "ends_at".to_owned(),
        column_type: ColumnType::Timestamp,
    };
    let spec = raw_events_with(&[promoted]).unwrap();
    server.catalog.ensure(&spec).await.unwrap();
    let json = r#"{"ends_at":"1969-12-31T23:30:00+01:00"}"#;
    server
        .append("raw.events", event("a", Some(-5_400_000_000), json))
        .await;
    server.append("raw.events", event("b", None, json)).await;
    let none = r#"{"ends_at":"1969-12-31T24:00:00Z"}"#;
    server.append("raw.events", event("c", None, none)).await;
    let mut client = server.client().await;
    let sql = "SELECT ends_at, event_time FROM events ORDER BY message_id";
    let rows = query(&mut client, sql).await.unwrap();
    for batch in &rows {
        let types = batch.schema();
        let (ends_at, event_time) = (types.field(0).data_type(), types.field(1).data_type());
        assert!(matches!(
            ends_at,
            DataType::Timestamp(TimeUnit::Microsecond, Some(_))
        ));
        assert_eq!(ends_at, event_time);
    }
    let time = "1969-12-31T22:30:00Z";
    assert_eq!(texts(&rows), [time, time, "NULL"]);
    let declared = "SELECT data_type FROM information_schema.columns \
                    WHERE table_name = 'events' AND column_name IN ('ends_at', 'event_time')";
    let declared = column(&mut client, declared).await;
    assert!(
        declared.len() >= 4 && declared.iter().all(|it| *it == declared[0]),
        "{declared:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn poll_flight_info_is_done_at_once() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let request = with_token(&client, descriptor("SELECT id FROM core.zoo"));
    let answer = server
        .raw()
        .await
        .poll_flight_info(request)
        .await
        .unwrap()
        .into_inner();
    assert!(answer.flight_descriptor.is_none());
    let rows = fetch(&mut client, answer.info.unwrap()).await.unwrap();
    assert_eq!(rows.iter().map(|batch| batch.num_rows()).sum::<usize>(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_result_arrives_whole_in_messages_below_4_mib() {
    let server = Server::start().await;
    let client = server.client().await;
    let mut raw = server.raw().await;
    let sql = "SELECT value, repeat('x', 2000) AS text FROM generate_series(1, 20000)";
    let info = raw
        .get_flight_info(with_token(&client, descriptor(sql)))
        .await
        .unwrap();
    let ticket = info.into_inner().endpoint[0].ticket.clone().unwrap();
    let messages: Vec<_> = raw
        .do_get(with_token(&client, ticket))
        .await
        .unwrap()
        .into_inner()
        .try_collect()
        .await
        .unwrap();
    assert!(
        messages
            .iter()
            .all(|message| message.encoded_len() < 4 << 20)
    );
    assert!(messages.len() < 60, "{} messages", messages.len());

    let mut client = server.client().await;
    let count = query(&mut client, "SELECT value FROM generate_series(1, 1000000)")
        .await
        .unwrap();
    assert_eq!(
        count.iter().map(|batch| batch.num_rows()).sum::<usize>(),
        1_000_000
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn error_in_the_middle_is_an_error_and_never_a_short_result() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for sql in [
        "SELECT 1 / (value - 900000) FROM generate_series(1, 1000000)",
        "SELECT CAST(CASE WHEN value = 900000 THEN 'x' ELSE '1' END AS INT) FROM generate_series(1, 1000000)",
    ] {
        let info = client.execute(sql.to_owned(), None).await.unwrap();
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        let mut batches = client.do_get(ticket).await.unwrap();
        let mut rows = 0;
        let error = loop {
            match batches.next().await {
                Some(Ok(batch)) => rows += batch.num_rows(),
                Some(Err(error)) => break error,
                None => panic!("{sql}: {rows} rows and no error"),
            }
        };
        assert!(rows > 0 && rows < 1_000_000, "{sql}: {rows} rows");
        assert_eq!(status(error).code(), Code::InvalidArgument, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_stream_frees_its_place() {
    let server = Server::start_with_limits(|limits| limits.queries_max = 1).await;
    let mut client = server.client().await;
    for _ in 0..3 {
        let info = client.execute(ENDLESS.to_owned(), None).await.unwrap();
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        let mut batches = client.do_get(ticket).await.unwrap();
        batches.next().await.unwrap().unwrap();
    }
    let answer = tokio::time::timeout(SOON, column(&mut client, "SELECT 1"))
        .await
        .unwrap();
    assert_eq!(answer, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_result_ends_with_an_error_and_its_handle_is_gone() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let info = client.execute(ENDLESS.to_owned(), None).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let mut batches = client.do_get(ticket.clone()).await.unwrap();
    batches.next().await.unwrap().unwrap();
    let cancel = CancelFlightInfoRequest { info: Some(info) };
    let action = Action::new("CancelFlightInfo", cancel.encode_to_vec());
    let mut answer = server
        .raw()
        .await
        .do_action(with_token(&client, action))
        .await
        .unwrap()
        .into_inner();
    let result =
        CancelFlightInfoResult::decode(answer.message().await.unwrap().unwrap().body).unwrap();
    assert_eq!(result.status(), CancelStatus::Cancelling);
    let error = loop {
        if let Err(error) = batches.next().await.expect("an error ends the result") {
            break error;
        }
    };
    assert_eq!(status(error).code(), Code::Cancelled);
    let error = client.do_get(ticket).await.err().unwrap();
    assert_eq!(status(error).code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn query_that_takes_too_long_names_its_limit() {
    let server = Server::start_with_limits(|limits| limits.query_timeout_ms = 200).await;
    let mut client = server.client().await;
    let sql = format!("SELECT count(*) FROM ({ENDLESS})");
    let error = status(query(&mut client, &sql).await.unwrap_err());
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(
        error.message().contains("limits.query_timeout_ms"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn query_beyond_its_memory_fails_alone_and_names_it() {
    let server = Server::start_with_limits(|limits| {
        limits.query_memory_bytes = 4 << 20;
        limits.query_spill_bytes = 0;
    })
    .await;
    let mut client = server.client().await;
    let sql = "SELECT count(*) FROM (SELECT repeat(CAST(value AS VARCHAR), 20) AS k, count(*) \
               FROM generate_series(1, 300000) GROUP BY 1)";
    let error = status(query(&mut client, sql).await.unwrap_err());
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert_eq!(column(&mut client, "SELECT 1").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_query_too_many_is_unavailable() {
    let server = Server::start_with_limits(|limits| {
        limits.queries_max = 1;
        limits.queue_max = 0;
    })
    .await;
    let mut client = server.client().await;
    let info = client.execute(ENDLESS.to_owned(), None).await.unwrap();
    let mut batches = client
        .do_get(info.endpoint[0].ticket.clone().unwrap())
        .await
        .unwrap();
    batches.next().await.unwrap().unwrap();
    let error = status(query(&mut client, "SELECT 1").await.unwrap_err());
    assert_eq!(error.code(), Code::Unavailable);
    // Metadata needs no place.
    client.get_catalogs().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_foreign_and_broken_handles_are_refused_without_harm() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut other = server.client_of("other", "s3cret:with:colons").await;
    let info = client.execute("SELECT 1".to_owned(), None).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let error = other.do_get(ticket.clone()).await.err().unwrap();
    assert_eq!(status(error).code(), Code::NotFound);
    let forged = TicketStatementQuery {
        statement_handle: "guess".into(),
    };
    let error = client
        .do_get(Ticket::new(forged.as_any().encode_to_vec()))
        .await
        .err()
        .unwrap();
    assert_eq!(status(error).code(), Code::NotFound);
    // Every byte of the ticket changed, one at a time, and every shorter ticket.
    let bytes = ticket.ticket.to_vec();
    for index in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[index] ^= 0x55;
        for bytes in [changed, bytes[..index].to_vec()] {
            let error = status(client.do_get(Ticket::new(bytes)).await.err().unwrap());
            assert!(
                matches!(
                    error.code(),
                    Code::NotFound | Code::InvalidArgument | Code::Unimplemented
                ),
                "{error}"
            );
        }
    }
    assert_eq!(fetch(&mut client, info).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_sql_says_what_is_wrong() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for (sql, part) in [
        ("SELEC 1", "SELEC"),
        ("SELECT * FROM nowhere", "nowhere"),
        ("SELECT colour FROM core.zoo", "colour"),
        ("SELECT 1; SELECT 2", "exactly one statement"),
        ("SELECT ?", "1 parameters"),
        ("SELECT 'open", "read"),
    ] {
        let error = status(query(&mut client, sql).await.unwrap_err());
        assert_eq!(error.code(), Code::InvalidArgument, "{sql}");
        assert!(error.message().contains(part), "{sql}: {error}");
    }
}
