//! The catalog in a PostgreSQL database: programs on many machines share it.
//!
//! Place on the event's path: opened at start. Promise: a commit that the server reported was flushed
//! to its log first, and a program that freezes in the middle of a commit holds up the others for no
//! longer than `catalog.timeout_ms`.

use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Executor, Postgres};

use super::config::{CatalogConfig, InvalidSetting};
use super::connections::Connections;
use super::error::CatalogError;
use super::heads::{CREATE_TABLES, SqlHeads};

/// Key of the lock under which the tables are made; two programs that start at once would trip over
/// each other.
const LOCK_KEY: i64 = 0x6865_6164_7761_7465;
/// SQLSTATE: there is no such table.
const UNDEFINED_TABLE: &str = "42P01";

/// Connects, and makes the tables when they are missing.
pub(crate) async fn open(
    config: &CatalogConfig,
    catalog: &'static str,
) -> Result<SqlHeads<Postgres>, CatalogError> {
    let options = options(config)?;
    let place = format!(
        "{}:{}/{}",
        options.get_host(),
        options.get_port(),
        options.get_database().unwrap_or_default()
    );
    let connections = Connections::new(options, session(config.timeout_ms), config);
    let first = connections.connect().await;
    let mut first = first.map_err(|source| CatalogError::Unreachable { place, source })?;
    let made = make_tables(&mut first);
    connections.answer("make its tables", made).await?;
    Ok(SqlHeads::new(connections, catalog))
}

/// Returns how to connect: the address, and the password from its file or the environment.
fn options(config: &CatalogConfig) -> Result<PgConnectOptions, CatalogError> {
    let options = PgConnectOptions::from_str(&config.uri).map_err(|error| InvalidSetting {
        key: "catalog.uri",
        message: format!("cannot be read: {error}"),
    })?;
    let Some(path) = &config.password_file else {
        return Ok(options);
    };
    let password = std::fs::read_to_string(path).map_err(|source| CatalogError::Path {
        path: path.clone(),
        source,
    })?;
    Ok(options.password(password.trim_end_matches(['\r', '\n'])))
}

/// Makes the tables, unless they are there: who only reads need not be allowed to.
async fn make_tables(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let probe = "SELECT 1 FROM iceberg_tables, iceberg_namespace_properties LIMIT 0";
    match connection.execute(probe).await {
        Ok(_) => return Ok(()),
        Err(error) => {
            let code = error.as_database_error().and_then(|error| error.code());
            if code.as_deref() != Some(UNDEFINED_TABLE) {
                return Err(error);
            }
        }
    }
    // Several statements at once are one transaction, and the lock ends with it.
    let make = format!("SELECT pg_advisory_xact_lock({LOCK_KEY}); {CREATE_TABLES}");
    connection.execute(sqlx::raw_sql(&make)).await?;
    Ok(())
}

/// Returns the settings of a session. The timeouts are the server's: it lets go of the locks of a
/// program that froze or whose network broke. A commit is reported after it is flushed, whatever the
/// database's default: an ack must survive a crash of the server.
fn session(timeout_ms: u64) -> String {
    format!(
        "SET statement_timeout = {timeout_ms}; SET lock_timeout = {timeout_ms}; \
         SET idle_in_transaction_session_timeout = {timeout_ms}; \
         SELECT set_config('synchronous_commit', 'on', false) \
         WHERE current_setting('synchronous_commit') = 'off'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_session_is_bounded_and_flushes_its_commits() {
        let server = std::env::var("HEADWATER_TEST_POSTGRES")
            .expect("set HEADWATER_TEST_POSTGRES; `cargo xtask test` starts a server");
        let cases = [
            ("off", "on"),
            ("on", "on"),
            ("remote_apply", "remote_apply"),
        ];
        for (default, expected) in cases {
            let uri = format!("{server}?options=-csynchronous_commit%3D{default}");
            let options = PgConnectOptions::from_str(&uri).unwrap();
            let config = CatalogConfig::default();
            let connections = Connections::<Postgres>::new(options, session(1_234), &config);
            let mut session = connections.connect().await.unwrap();
            let sql = "SELECT current_setting(name) FROM unnest(ARRAY['synchronous_commit', \
                       'statement_timeout', 'lock_timeout', \
                       'idle_in_transaction_session_timeout']) AS name";
            let found: Vec<String> = sqlx::query_scalar(sql)
                .fetch_all(&mut session)
                .await
                .unwrap();
            assert_eq!(found, [expected, "1234ms", "1234ms", "1234ms"]);
        }
    }
}
