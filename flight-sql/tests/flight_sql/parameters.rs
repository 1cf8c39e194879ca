//! Prepared statements: bound values reach the rows they mean.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array, NullArray,
    RecordBatch, StringArray, TimestampMicrosecondArray, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, TimeUnit};
use futures::TryStreamExt as _;
use tonic::Code;

use crate::harness::{Client, Server, fetch, status, texts};

fn row(columns: Vec<ArrayRef>) -> RecordBatch {
    let named = columns
        .into_iter()
        .enumerate()
        .map(|(index, column)| (format!("{index}"), column, true));
    RecordBatch::try_from_iter_with_nullable(named).unwrap()
}

/// Prepares, binds, runs and returns the first column as text.
async fn run(
    client: &mut Client,
    sql: &str,
    parameters: RecordBatch,
) -> Result<Vec<String>, tonic::Status> {
    let mut prepared = client.prepare(sql.to_owned(), None).await.map_err(error)?;
    prepared.set_parameters(parameters).map_err(error)?;
    let info = prepared.execute().await.map_err(error)?;
    let result = fetch(client, info).await.map_err(status)?;
    prepared.close().await.map_err(error)?;
    Ok(texts(&result))
}

fn error(error: impl std::fmt::Display) -> tonic::Status {
    tonic::Status::unknown(error.to_string())
}

fn int(value: i64) -> ArrayRef {
    Arc::new(Int64Array::from(vec![value]))
}

fn text(value: &str) -> ArrayRef {
    Arc::new(StringArray::from(vec![value]))
}

#[tokio::test(flavor = "multi_thread")]
async fn bound_values_of_every_kind_find_their_rows() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let decimal: ArrayRef = Arc::new(
        Decimal128Array::from(vec![1250])
            .with_precision_and_scale(18, 2)
            .unwrap(),
    );
    let millis = |zone: bool| -> ArrayRef {
        let array = TimestampMillisecondArray::from(vec![1_750_000_000_123]);
        if zone {
            Arc::new(array.with_timezone("UTC"))
        } else {
            Arc::new(array)
        }
    };
    let micros: ArrayRef =
        Arc::new(TimestampMicrosecondArray::from(vec![1_750_000_000_123_000]).with_timezone("UTC"));
    let null: ArrayRef = Arc::new(NullArray::new(1));
    let cases: Vec<(&str, Vec<ArrayRef>, Vec<&str>)> = vec![
        (
            "SELECT id FROM core.zoo WHERE id = ?",
            vec![int(2)],
            vec!["2"],
        ),
        (
            "SELECT id FROM core.zoo WHERE id = $1",
            vec![Arc::new(Int32Array::from(vec![2]))],
            vec!["2"],
        ),
        (
            "SELECT id FROM core.zoo WHERE name = 'what?' AND id = ?",
            vec![int(1)],
            vec!["1"],
        ),
        (
            "SELECT id FROM core.zoo WHERE name = ? -- really?",
            vec![text("what?")],
            vec!["1"],
        ),
        (
            "SELECT id FROM core.zoo WHERE id > $2 AND id < $1",
            vec![int(3), int(1)],
            vec!["2"],
        ),
        (
            "SELECT id FROM core.zoo WHERE amount = ?",
            vec![decimal],
            vec!["1"],
        ),
        (
            "SELECT id FROM core.zoo WHERE day = ?",
            vec![Arc::new(Date32Array::from(vec![20_000]))],
            vec!["1"],
        ),
        (
            "SELECT id FROM core.zoo WHERE at = ?",
            vec![millis(true)],
            vec!["1"],
        ),
        (
            "SELECT id FROM core.zoo WHERE at = ?",
            vec![millis(false)],
            vec!["1"],
        ),
        (
            "SELECT id FROM core.zoo WHERE at = ?",
            vec![micros],
            vec!["1"],
        ),
        (
            "SELECT id FROM core.zoo WHERE at >= ?",
            vec![text("2025-01-01T00:00:00Z")],
            vec!["1"],
        ),
        (
            "SELECT id FROM core.zoo WHERE ratio < ?",
            vec![Arc::new(Float64Array::from(vec![0.0]))],
            vec!["2"],
        ),
        (
            "SELECT id FROM core.zoo WHERE name LIKE ?",
            vec![text("it%")],
            vec!["2"],
        ),
        (
            "SELECT id FROM core.zoo WHERE id IN (?, ?) ORDER BY id",
            vec![int(3), int(1)],
            vec!["1", "3"],
        ),
        (
            "SELECT id FROM core.zoo WHERE id BETWEEN ? AND ? ORDER BY id",
            vec![int(2), int(9)],
            vec!["2", "3"],
        ),
        (
            "SELECT id FROM core.zoo WHERE name = ?",
            vec![null.clone()],
            vec![],
        ),
        (
            "SELECT id FROM core.zoo ORDER BY id LIMIT ? OFFSET ?",
            vec![int(1), int(1)],
            vec!["2"],
        ),
        ("SELECT ?", vec![text("echo")], vec!["echo"]),
        ("SELECT ?", vec![int(7)], vec!["7"]),
        ("SELECT ? IS NULL", vec![null], vec!["true"]),
        ("SELECT upper(?) || 'x'", vec![text("a")], vec!["Ax"]),
        ("SELECT CAST(? AS INT) + 1", vec![int(41)], vec!["42"]),
        (
            "SELECT count(*) FROM core.zoo WHERE id = (SELECT max(id) FROM core.zoo WHERE id < ?)",
            vec![int(3)],
            vec!["1"],
        ),
        (
            "SELECT \"what?\" FROM (SELECT 1 AS \"what?\") WHERE 1 = ?",
            vec![int(1)],
            vec!["1"],
        ),
    ];
    for (sql, parameters, expected) in cases {
        let got = run(&mut client, sql, row(parameters)).await;
        assert_eq!(
            got.map_err(|error| format!("{sql}: {error}")).unwrap(),
            expected,
            "{sql}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_declared_with_types_that_jdbc_can_write() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let sql = "SELECT ? FROM core.zoo WHERE at > ? AND amount < ? AND day = ? AND id = ?";
    let prepared = client.prepare(sql.to_owned(), None).await.unwrap();
    let types: Vec<DataType> = prepared
        .parameter_schema()
        .unwrap()
        .fields()
        .iter()
        .map(|field| field.data_type().clone())
        .collect();
    assert_eq!(
        types,
        [
            DataType::Utf8,
            DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            DataType::Decimal128(18, 2),
            DataType::Date32,
            DataType::Int64,
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn several_bound_rows_give_their_results_in_order() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![3, 1, 2]));
    let got = run(
        &mut client,
        "SELECT id FROM core.zoo WHERE id = ?",
        row(vec![ids]),
    )
    .await;
    assert_eq!(got.unwrap(), ["3", "1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statement_runs_again_with_other_values_and_fresh_data() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut prepared = client
        .prepare(
            "SELECT count(*) FROM core.counter WHERE n >= ?".to_owned(),
            None,
        )
        .await
        .unwrap();
    let mut count = async |client: &mut Client, n: i64| {
        prepared.set_parameters(row(vec![int(n)])).unwrap();
        let info = prepared.execute().await.unwrap();
        texts(&fetch(client, info).await.unwrap())
    };
    assert_eq!(count(&mut client, 0).await, ["0"]);
    server
        .append("core.counter", crate::harness::counter(5))
        .await;
    assert_eq!(count(&mut client, 0).await, ["1"]);
    assert_eq!(count(&mut client, 6).await, ["0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_do_not_fit_are_refused_when_they_are_bound() {
    let server = Server::start_with_limits(|limits| limits.parameter_rows_max = 5).await;
    let mut client = server.client().await;
    let sql = "SELECT id FROM core.zoo WHERE id = ?";
    for (parameters, part) in [
        (row(vec![text("seven")]), "parameter $1"),
        (row(vec![int(1), int(2)]), "2 parameters are bound"),
        (
            row(vec![Arc::new(Int64Array::from(vec![1; 6]))]),
            "limits.parameter_rows_max",
        ),
    ] {
        let error = run(&mut client, sql, parameters).await.unwrap_err();
        assert!(error.message().contains(part), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_foreign_prepared_handles_are_not_found() {
    use arrow_flight::sql::{CommandPreparedStatementQuery, ProstMessageExt as _};
    use prost::Message as _;
    let server = Server::start().await;
    let mut client = server.client().await;
    let other = server.client_of("other", "s3cret:with:colons").await;
    let mut raw = server.raw().await;
    let prepared = client.prepare("SELECT 1".to_owned(), None).await.unwrap();
    // The client keeps its handle to itself: take one from the wire.
    let action = arrow_flight::sql::ActionCreatePreparedStatementRequest {
        query: "SELECT 1".to_owned(),
        transaction_id: None,
    };
    let action =
        arrow_flight::Action::new("CreatePreparedStatement", action.as_any().encode_to_vec());
    let answers: Vec<arrow_flight::Result> = raw
        .do_action(crate::harness::with_token(&client, action))
        .await
        .unwrap()
        .into_inner()
        .try_collect()
        .await
        .unwrap();
    let any = arrow_flight::sql::Any::decode(answers[0].body.clone()).unwrap();
    let created: arrow_flight::sql::ActionCreatePreparedStatementResult =
        any.unpack().unwrap().unwrap();
    for (client, handle) in [
        (&other, created.prepared_statement_handle.clone()),
        (&client, "guess".into()),
        (&client, "".into()),
    ] {
        let query = CommandPreparedStatementQuery {
            prepared_statement_handle: handle,
        };
        let descriptor = arrow_flight::FlightDescriptor::new_cmd(query.as_any().encode_to_vec());
        let request = crate::harness::with_token(client, descriptor);
        let error = raw.get_flight_info(request).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
    }
    prepared.close().await.unwrap();
}
