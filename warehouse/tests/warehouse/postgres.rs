//! The PostgreSQL source, on a real server: `HEADWATER_TEST_POSTGRES` is its `postgres://` address.

use sqlx::{Connection, Executor, PgConnection};

use crate::world::{Ev, SCHEMA, World};

fn server() -> String {
    std::env::var("HEADWATER_TEST_POSTGRES").expect(
        "set HEADWATER_TEST_POSTGRES to the postgres:// address of a server this test may create databases in; `cargo xtask test` starts one",
    )
}

/// Makes a new database and returns its address.
async fn database(name: &str) -> String {
    let server = server();
    let mut connection = PgConnection::connect(&server).await.unwrap();
    connection
        .execute(format!("DROP DATABASE IF EXISTS {name}").as_str())
        .await
        .unwrap();
    connection
        .execute(format!("CREATE DATABASE {name}").as_str())
        .await
        .unwrap();
    connection.close().await.unwrap();
    let (address, options) = server.split_once('?').unwrap_or((&server, ""));
    let after_scheme = address.find("://").map_or(0, |at| at + 3);
    let base = match address[after_scheme..].find('/') {
        Some(at) => &address[..after_scheme + at],
        None => address,
    };
    format!("{base}/{name}?{options}")
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_and_sqlite_give_the_same_tables() {
    let uri = database("headwater_warehouse_test").await;
    let rows = "
        INSERT INTO companies (company_id, name, created_at, timezone, status, updated_at) VALUES
            ('acme', 'Acme', '2026-01-01T01:00:00.000001+01:00', 'Asia/Kolkata', 'active', '2026-01-01T00:00:00Z');
        INSERT INTO plans (plan_id, name, tier_rank, billing_interval, interval_count, currency, unit_amount_minor, usage_type, active, created_at, updated_at)
            VALUES ('p', 'P', 1, 'month', 1, 'USD', 1000, 'licensed', TRUE, '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z');
        INSERT INTO fx_rates_daily VALUES ('2026-11-19', 'EUR', 'USD', 1.0845, NULL);";
    let mut connection = PgConnection::connect(&uri).await.unwrap();
    connection.execute(SCHEMA).await.unwrap();
    connection.execute(rows).await.unwrap();
    connection.close().await.unwrap();

    let mut postgres = World::without_source();
    postgres.config.source.uri = uri;
    let sqlite = World::without_source();
    sqlite.sql(SCHEMA).await;
    sqlite.sql(rows).await;
    for world in [&postgres, &sqlite] {
        world
            .events(&[Ev::new("Feature Used", "2026-11-19T10:00:00Z")])
            .await;
        world.night("2026-11-19").await;
    }
    for table in [
        "ops.companies",
        "ops.plans",
        "ops.fx_rates_daily",
        "ops.companies_history",
        "reports.company_day",
    ] {
        let sql = format!("SELECT * FROM {table} ORDER BY 1, 2");
        let rows = postgres.query(&sql).await;
        assert!(!rows.is_empty(), "{table}");
        assert_eq!(rows, sqlite.query(&sql).await, "{table}");
    }
    let created = postgres.query("SELECT created_at FROM ops.companies").await;
    assert_eq!(created, ["2026-01-01T00:00:00.000001Z"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_postgres_table_is_named() {
    let mut world = World::without_source();
    world.config.source.uri = database("headwater_warehouse_empty").await;
    let error = world.try_night("2026-11-19").await.unwrap_err().to_string();
    assert!(error.contains("no readable table `companies`"), "{error}");
}
