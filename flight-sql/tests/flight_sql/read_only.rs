//! No statement writes, on any path (Q-2).

use arrow_flight::sql::{
    Any, CommandStatementIngest, CommandStatementQuery, CommandStatementSubstraitPlan,
    CommandStatementUpdate, ProstMessageExt as _,
};
use arrow_flight::{FlightData, FlightDescriptor};
use futures::stream;
use prost::Message as _;
use tonic::Code;

use crate::harness::{Server, column, heads, with_token};

const WRITES: &[&str] = &[
    "INSERT INTO core.counter VALUES (1)",
    "INSERT INTO core.counter SELECT id FROM core.zoo",
    "INSERT OVERWRITE core.counter SELECT id FROM core.zoo",
    "insert/**/into core.counter values (1)",
    "REPLACE INTO core.counter VALUES (1)",
    "UPDATE core.counter SET n = 1",
    "DELETE FROM core.counter",
    "DELETE FROM core.counter WHERE n = 1",
    "TRUNCATE TABLE core.counter",
    "MERGE INTO core.counter USING core.zoo ON n = id WHEN MATCHED THEN DELETE",
    "CREATE TABLE core.new (a INT)",
    "CREATE TABLE new AS SELECT * FROM core.zoo",
    "CREATE TABLE IF NOT EXISTS core.new AS VALUES (1)",
    "CREATE OR REPLACE TABLE core.zoo AS SELECT 1",
    "CREATE TEMPORARY TABLE t (a INT)",
    "CREATE UNLOGGED TABLE t (a INT)",
    "CREATE VIEW v AS SELECT 1",
    "CREATE OR REPLACE VIEW public.events AS SELECT 1",
    "CREATE MATERIALIZED VIEW v AS SELECT 1",
    "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
    "CREATE EXTERNAL TABLE t (a INT) STORED AS PARQUET LOCATION '/tmp/'",
    "CREATE UNBOUNDED EXTERNAL TABLE t STORED AS CSV LOCATION '/tmp/'",
    "CREATE SCHEMA s",
    "CREATE SCHEMA IF NOT EXISTS core",
    "CREATE DATABASE d",
    "CREATE INDEX i ON core.zoo (id)",
    "CREATE FUNCTION f(INT) RETURNS INT RETURN $1 + 1",
    "CREATE FUNCTION f() RETURNS INT LANGUAGE sql AS 'SELECT 1'",
    "CREATE ROLE r",
    "CREATE SEQUENCE s",
    "CREATE TYPE t AS (a INT)",
    "DROP TABLE core.zoo",
    "DROP TABLE IF EXISTS core.zoo",
    "DROP VIEW public.events",
    "DROP SCHEMA core CASCADE",
    "DROP DATABASE headwater",
    "DROP FUNCTION f",
    "DROP INDEX i",
    "ALTER TABLE core.zoo ADD COLUMN x INT",
    "ALTER TABLE core.zoo RENAME TO zoo2",
    "ALTER TABLE core.zoo DROP COLUMN name",
    "ALTER VIEW public.events AS SELECT 1",
    "COPY core.zoo TO '/tmp/zoo.parquet'",
    "COPY (SELECT * FROM core.zoo) TO '/tmp/zoo.csv' STORED AS CSV",
    "COPY core.zoo FROM '/etc/passwd'",
    "COPY core.zoo FROM STDIN",
    "SET datafusion.execution.batch_size = 1",
    "SET TIME ZONE 'Europe/Berlin'",
    "SET search_path TO core",
    "SET x = 1",
    "RESET datafusion.execution.batch_size",
    "PREPARE p AS SELECT 1",
    "PREPARE p (INT) AS INSERT INTO core.counter VALUES ($1)",
    "EXECUTE p",
    "EXECUTE p(1)",
    "DEALLOCATE p",
    "BEGIN",
    "BEGIN TRANSACTION",
    "START TRANSACTION",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "EXPLAIN INSERT INTO core.counter VALUES (1)",
    "EXPLAIN ANALYZE INSERT INTO core.counter VALUES (1)",
    "EXPLAIN ANALYZE VERBOSE CREATE TABLE t AS SELECT 1",
    "EXPLAIN ANALYZE COPY core.zoo TO '/tmp/zoo.parquet'",
    "EXPLAIN CREATE TABLE t (a INT)",
    "EXPLAIN EXPLAIN DROP TABLE core.zoo",
    "WITH x AS (SELECT 1) INSERT INTO core.counter SELECT * FROM x",
    "WITH x AS (INSERT INTO core.counter VALUES (1)) SELECT * FROM x",
    "SELECT * INTO t FROM core.zoo",
    "SELECT 1; DROP TABLE core.zoo",
    "SELECT 1; SELECT 2",
    "DROP TABLE core.zoo; SELECT 1",
    "/* SELECT */ DELETE FROM core.zoo",
    "-- SELECT\nDELETE FROM core.zoo",
    "GRANT SELECT ON core.zoo TO demo",
    "REVOKE SELECT ON core.zoo FROM demo",
    "CALL p()",
    "ANALYZE TABLE core.zoo COMPUTE STATISTICS",
    "VACUUM core.zoo",
    "KILL 1",
    "USE core",
    "LOCK TABLES core.zoo WRITE",
    "CACHE TABLE core.zoo",
    "UNCACHE TABLE core.zoo",
    "MSCK REPAIR TABLE core.zoo",
    "REFRESH TABLE core.zoo",
    "LOAD DATA INPATH '/etc/passwd' INTO TABLE core.zoo",
    "INSTALL httpfs",
    "ATTACH DATABASE 'x' AS y",
    "DETACH y",
    "PRAGMA table_info(zoo)",
    "COMMENT ON TABLE core.zoo IS 'x'",
    "UNLOAD('SELECT 1') TO 's3://x'",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM '/tmp/zoo.parquet'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_parquet('/tmp/zoo.parquet')",
    "SELECT * FROM parquet_metadata('/tmp/zoo.parquet')",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_path_takes_a_statement_that_writes() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let mut raw = server.raw().await;
    let before = heads(&server.catalog).await;
    assert!(WRITES.len() >= 60);
    for sql in WRITES {
        let refused = |path: &str, status: tonic::Status| {
            assert!(
                matches!(
                    status.code(),
                    Code::PermissionDenied | Code::InvalidArgument
                ),
                "{path} {sql}: {status}"
            );
        };
        let query = CommandStatementQuery {
            query: (*sql).to_owned(),
            transaction_id: None,
        };
        let descriptor = FlightDescriptor::new_cmd(query.as_any().encode_to_vec());
        let request = || with_token(&client, descriptor.clone());
        refused(
            "query",
            raw.get_flight_info(request()).await.expect_err(sql),
        );
        refused("schema", raw.get_schema(request()).await.expect_err(sql));
        refused(
            "poll",
            raw.poll_flight_info(request()).await.expect_err(sql),
        );
        assert!(
            client.prepare((*sql).to_owned(), None).await.is_err(),
            "prepare {sql}"
        );
        assert!(
            client
                .execute_update((*sql).to_owned(), None)
                .await
                .is_err(),
            "update {sql}"
        );
    }
    assert_eq!(heads(&server.catalog).await, before);
    assert_eq!(
        column(&mut client, "SELECT count(*) FROM core.zoo").await,
        ["3"]
    );
    assert!(!std::path::Path::new("/tmp/zoo.parquet").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_writes_are_refused_as_read_only() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for sql in [
        "INSERT INTO core.counter VALUES (1)",
        "DROP TABLE core.zoo",
        "SET x = 1",
    ] {
        let error = client
            .execute(sql.to_owned(), None)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("read-only"), "{sql}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn update_ingest_and_substrait_commands_are_refused() {
    let server = Server::start().await;
    let client = server.client().await;
    let mut raw = server.raw().await;
    let update = CommandStatementUpdate {
        query: "SELECT 1".to_owned(),
        transaction_id: None,
    };
    let ingest = CommandStatementIngest {
        table: "counter".to_owned(),
        schema: Some("core".to_owned()),
        ..CommandStatementIngest::default()
    };
    let commands: [(Any, Code); 4] = [
        (update.as_any(), Code::PermissionDenied),
        (ingest.as_any(), Code::PermissionDenied),
        (
            CommandStatementSubstraitPlan::default().as_any(),
            Code::Unimplemented,
        ),
        (
            Any {
                type_url: "type.googleapis.com/x".to_owned(),
                value: "y".into(),
            },
            Code::Unimplemented,
        ),
    ];
    for (command, code) in commands {
        let data = FlightData {
            flight_descriptor: Some(FlightDescriptor::new_cmd(command.encode_to_vec())),
            ..FlightData::default()
        };
        let error = raw
            .do_put(with_token(&client, stream::iter([data])))
            .await
            .unwrap_err();
        assert_eq!(error.code(), code, "{}", command.type_url);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_are_refused() {
    let server = Server::start().await;
    let mut client = server.client().await;
    assert!(client.begin_transaction().await.is_err());
    assert!(
        client
            .execute("SELECT 1".to_owned(), Some("t".into()))
            .await
            .is_err()
    );
}
