//! Connections to the catalog's database: at most so many, kept while they answer.
//!
//! Place on the event's path: below every question to the catalog. Promise: whatever the network does,
//! a question ends within its bound and takes its connection along, so that the next one can be asked.
//! sqlx's own pool speaks to a connection without a bound when it comes back, and loses its place to a
//! network that falls silent then.

use std::time::Duration;

use parking_lot::Mutex;
use sqlx::{Connection, Database, Executor};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::config::CatalogConfig;
use super::error::CatalogError;
use crate::metrics;

/// Connections, idle or lent.
pub(super) struct Connections<DB: Database> {
    options: <DB::Connection as Connection>::Options,
    /// Statements that each session begins with.
    session: String,
    connect_timeout: Duration,
    timeout: Duration,
    max: usize,
    places: Semaphore,
    idle: Mutex<Vec<DB::Connection>>,
}

/// A connection for one question.
pub(super) struct Lent<'a, DB: Database> {
    connection: DB::Connection,
    _place: SemaphorePermit<'a>,
}

impl<DB: Database> Lent<'_, DB> {
    pub(super) fn connection(&mut self) -> &mut DB::Connection {
        &mut self.connection
    }
}

impl<DB> Connections<DB>
where
    DB: Database,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
{
    pub(super) fn new(
        options: <DB::Connection as Connection>::Options,
        session: String,
        config: &CatalogConfig,
    ) -> Self {
        let max = config.connections_max as usize;
        Self {
            options,
            session,
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
            timeout: Duration::from_millis(config.timeout_ms),
            max,
            places: Semaphore::new(max),
            idle: Mutex::default(),
        }
    }

    /// Opens a connection that is not counted.
    pub(super) async fn connect(&self) -> Result<DB::Connection, sqlx::Error> {
        let connect = async {
            let mut connection = DB::Connection::connect_with(&self.options).await?;
            if !self.session.is_empty() {
                let session = sqlx::raw_sql(&self.session);
                Executor::execute(&mut connection, session).await?;
            }
            Ok(connection)
        };
        let connected = timeout(self.connect_timeout, connect).await;
        connected.unwrap_or_else(|_| {
            metrics::catalog_unanswered();
            let waited = self.connect_timeout.as_millis();
            let silent = format!("no answer within {waited} ms");
            Err(std::io::Error::new(std::io::ErrorKind::TimedOut, silent).into())
        })
    }

    /// Returns a connection that answers.
    pub(super) async fn lend(&self, action: &'static str) -> Result<Lent<'_, DB>, CatalogError> {
        let error = |source| CatalogError::Database { action, source };
        let place = match timeout(self.connect_timeout, self.places.acquire()).await {
            Ok(place) => place.map_err(|_| error(sqlx::Error::PoolClosed))?,
            Err(_) => return Err(unanswered(action, self.connect_timeout)),
        };
        let kept = self.idle.lock().pop();
        if let Some(mut connection) = kept {
            let answered = timeout(self.connect_timeout, connection.ping()).await;
            if matches!(answered, Ok(Ok(()))) {
                return Ok(self.lent(connection, place));
            }
            // What has cut this one off has cut off the others.
            self.idle.lock().clear();
        }
        let connection = self.connect().await.map_err(error)?;
        Ok(self.lent(connection, place))
    }

    fn lent<'a>(&self, connection: DB::Connection, place: SemaphorePermit<'a>) -> Lent<'a, DB> {
        let lent = self.max - self.places.available_permits();
        metrics::catalog_connections(lent + self.idle.lock().len());
        Lent {
            connection,
            _place: place,
        }
    }

    /// Waits for the answer to a question that was asked on a lent connection.
    pub(super) async fn answer<T>(
        &self,
        action: &'static str,
        question: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, CatalogError> {
        match timeout(self.timeout, question).await {
            Ok(answer) => answer.map_err(|source| CatalogError::Database { action, source }),
            Err(_) => Err(unanswered(action, self.timeout)),
        }
    }

    /// Keeps the connection after a whole answer, else closes it: it may be in the middle of anything.
    pub(super) fn give_back<T>(&self, lent: Lent<'_, DB>, answer: &Result<T, CatalogError>) {
        if answer.is_ok() {
            self.idle.lock().push(lent.connection);
        }
    }

    /// Lets every later question fail.
    #[cfg(test)]
    pub(super) fn close(&self) {
        self.places.close();
    }
}

fn unanswered(action: &'static str, waited: Duration) -> CatalogError {
    metrics::catalog_unanswered();
    CatalogError::Unanswered {
        action,
        waited_ms: waited.as_millis(),
    }
}
