//! The queries of this server: planned, prepared, bound, fetched, cancelled.
//!
//! Place on the event's path: between the RPCs and the parts that do the work. Promises: planning
//! pins one snapshot set and every fetch of the handle reads it; planning runs nothing; a
//! handle works for the principal it was given to and for nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use arrow_flight::CancelStatus;
use datafusion::logical_expr::LogicalPlan;
use headwater_service::clock::SharedClock;
use headwater_tables::Catalog;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::admission::Admission;
use crate::config::LimitsConfig;
use crate::error::StatementError;
use crate::handle::{Bounds, Handles};
use crate::result::{ResultStream, Work};
use crate::session::Session;
use crate::snapshot::Snapshot;
use crate::{metrics, parameters, statement};

/// Plans and runs statements.
pub(crate) struct Queries {
    catalog: Catalog,
    limits: LimitsConfig,
    admission: Admission,
    statements: Handles<Statement>,
    prepared: Handles<Prepared>,
    runtime: tokio::runtime::Handle,
    /// Ends all running queries.
    stop: CancellationToken,
}

/// A planned result, not yet forgotten.
struct Statement {
    snapshot: Snapshot,
    plans: Vec<LogicalPlan>,
    schema: SchemaRef,
    cancel: CancellationToken,
    /// Fetches that run now.
    running: Arc<AtomicUsize>,
}

/// A prepared statement.
struct Prepared {
    sql: String,
    /// Default schema when it was prepared.
    schema_name: String,
    schema: SchemaRef,
    parameters: Vec<DataType>,
    bound: Mutex<Vec<RecordBatch>>,
}

/// What the client gets for a planned result.
pub(crate) struct Ticketed {
    /// Handle to fetch the result by.
    pub(crate) handle: String,
    /// Schema of the result.
    pub(crate) schema: SchemaRef,
    /// The pinned snapshots, as JSON.
    pub(crate) snapshots: String,
}

/// What the client gets for a prepared statement.
pub(crate) struct PreparedAnswer {
    /// Handle to bind and execute by.
    pub(crate) handle: String,
    /// Schema of the result.
    pub(crate) schema: SchemaRef,
    /// Schema of the parameters.
    pub(crate) parameters: SchemaRef,
}

/// Counts one running fetch.
pub(crate) struct Fetch(Arc<AtomicUsize>);

impl Fetch {
    fn start(running: &Arc<AtomicUsize>) -> Self {
        running.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(running))
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Queries {
    /// Makes an empty set of queries that run on `runtime` until `stop` is cancelled.
    pub(crate) fn new(
        catalog: Catalog,
        limits: LimitsConfig,
        clock: SharedClock,
        runtime: tokio::runtime::Handle,
        stop: CancellationToken,
    ) -> Self {
        let bounds = |max: usize, idle_ms: u64| Bounds {
            total_max: max,
            per_owner_max: max,
            idle_ms,
        };
        Self {
            admission: Admission::new(&limits),
            statements: Handles::new(
                bounds(limits.statements_max, limits.statement_ttl_ms),
                Arc::clone(&clock),
                metrics::STATEMENTS,
                metrics::STATEMENTS_EVICTED,
            ),
            prepared: Handles::new(
                bounds(limits.prepared_max, limits.prepared_ttl_ms),
                clock,
                metrics::PREPARED,
                metrics::PREPARED_EVICTED,
            ),
            catalog,
            limits,
            runtime,
            stop,
        }
    }

    /// Forgets expired results and prepared statements.
    pub(crate) fn sweep(&self) {
        self.statements.sweep();
        self.prepared.sweep();
    }

    /// Pins the present state of all tables.
    pub(crate) async fn snapshot(&self, schema_name: &str) -> Result<Snapshot, StatementError> {
        Snapshot::take(&self.catalog, &self.limits, schema_name).await
    }

    /// Returns the schema of a statement's result.
    pub(crate) async fn schema(&self, session: &Session, sql: &str) -> Result<SchemaRef, Status> {
        let snapshot = self.snapshot(&session.schema()).await?;
        Ok(self.plan(session, &snapshot, sql).await?.schema)
    }

    /// Plans a statement without parameters.
    pub(crate) async fn execute(&self, session: &Session, sql: &str) -> Result<Ticketed, Status> {
        let snapshot = self.snapshot(&session.schema()).await?;
        let planned = self.plan(session, &snapshot, sql).await?;
        let schema = Arc::clone(&planned.schema);
        let plans = planned.bind(&[])?;
        Ok(self.keep(session, snapshot, plans, schema))
    }

    /// Prepares a statement.
    pub(crate) async fn prepare(
        &self,
        session: &Session,
        sql: String,
    ) -> Result<PreparedAnswer, Status> {
        let schema_name = session.schema();
        let snapshot = self.snapshot(&schema_name).await?;
        let planned = self.plan(session, &snapshot, &sql).await?;
        let schema = Arc::clone(&planned.schema);
        let parameters = parameters::client_schema(&planned.parameters);
        let prepared = Prepared {
            sql,
            schema_name,
            schema: planned.schema,
            parameters: planned.parameters,
            bound: Mutex::new(Vec::new()),
        };
        let principal = Arc::clone(&session.principal);
        Ok(PreparedAnswer {
            handle: self.prepared.insert(principal, Arc::new(prepared)),
            schema,
            parameters,
        })
    }

    /// Returns the schema of a prepared statement's result.
    pub(crate) fn prepared_schema(
        &self,
        session: &Session,
        handle: &[u8],
    ) -> Result<SchemaRef, Status> {
        Ok(Arc::clone(&self.prepared(session, handle)?.schema))
    }

    /// Binds rows of parameters; they replace those bound before.
    pub(crate) fn bind(
        &self,
        session: &Session,
        handle: &[u8],
        rows: Vec<RecordBatch>,
    ) -> Result<(), Status> {
        let prepared = self.prepared(session, handle)?;
        // Read every row now, so that the error comes with the binding and not with the result.
        for batch in &rows {
            for row in 0..batch.num_rows() {
                parameters::literals(batch, row, &prepared.parameters)?;
            }
        }
        *prepared.bound.lock() = rows;
        Ok(())
    }

    /// Plans a prepared statement with what is bound, over the tables as they are now.
    pub(crate) async fn execute_prepared(
        &self,
        session: &Session,
        handle: &[u8],
    ) -> Result<Ticketed, Status> {
        let prepared = self.prepared(session, handle)?;
        let bound = prepared.bound.lock().clone();
        let snapshot = self.snapshot(&prepared.schema_name).await?;
        let planned = self.plan(session, &snapshot, &prepared.sql).await?;
        if planned.schema != prepared.schema {
            return Err(StatementError::Changed.into());
        }
        let plans = planned.bind(&bound)?;
        let schema = Arc::clone(&prepared.schema);
        Ok(self.keep(session, snapshot, plans, schema))
    }

    /// Forgets a prepared statement; one that is not there is fine.
    pub(crate) fn close_prepared(&self, session: &Session, handle: &[u8]) {
        self.prepared.remove_owned(handle, &session.principal);
    }

    /// Starts the result of `handle`. Dropping the stream stops it.
    pub(crate) async fn fetch(
        &self,
        session: &Session,
        handle: &[u8],
        client_timeout: Option<Duration>,
    ) -> Result<(SchemaRef, ResultStream), Status> {
        let statement = self.statement(session, handle)?;
        let place = self.admission.enter().await?;
        let (timeout, timeout_name) = match client_timeout {
            Some(asked) if asked < self.limits.query_timeout() => (asked, "grpc-timeout"),
            _ => (self.limits.query_timeout(), "limits.query_timeout_ms"),
        };
        let work = Work {
            snapshot: statement.snapshot.clone(),
            plans: statement.plans.clone(),
            schema: Arc::clone(&statement.schema),
            cancel: statement.cancel.clone(),
            timeout,
            timeout_name,
            fetch: Fetch::start(&statement.running),
        };
        let stream = ResultStream::start(work, place, &self.runtime);
        Ok((Arc::clone(&statement.schema), stream))
    }

    /// Cancels a result and forgets its handle.
    pub(crate) fn cancel(&self, session: &Session, handle: &[u8]) -> Result<CancelStatus, Status> {
        let statement = self
            .statements
            .remove_owned(handle, &session.principal)
            .ok_or_else(unknown_result)?;
        statement.cancel.cancel();
        if statement.running.load(Ordering::SeqCst) == 0 {
            Ok(CancelStatus::Cancelled)
        } else {
            Ok(CancelStatus::Cancelling)
        }
    }

    async fn plan(
        &self,
        session: &Session,
        snapshot: &Snapshot,
        sql: &str,
    ) -> Result<statement::Planned, StatementError> {
        if sql.len() > self.limits.statement_bytes_max {
            return Err(StatementError::TooLong {
                got: sql.len(),
                max: self.limits.statement_bytes_max,
            });
        }
        let context = snapshot.context.clone();
        let sql = sql.to_owned();
        let timestamps = session.timestamps;
        // On the threads of queries, so that a monstrous statement cannot stop the server, and
        // aborted when the client goes away.
        let planning = self
            .runtime
            .spawn(async move { statement::plan(&context, &sql, timestamps).await });
        match AbortOnDropHandle::new(planning).await {
            Ok(planned) => planned,
            Err(error) => {
                tracing::error!(%error, "planning stopped unexpectedly");
                Err(StatementError::Panicked)
            }
        }
    }

    fn keep(
        &self,
        session: &Session,
        snapshot: Snapshot,
        plans: Vec<LogicalPlan>,
        schema: SchemaRef,
    ) -> Ticketed {
        let snapshots = snapshot.described.clone();
        let statement = Statement {
            snapshot,
            plans,
            schema: Arc::clone(&schema),
            cancel: self.stop.child_token(),
            running: Arc::new(AtomicUsize::new(0)),
        };
        let principal = Arc::clone(&session.principal);
        Ticketed {
            handle: self.statements.insert(principal, Arc::new(statement)),
            schema,
            snapshots,
        }
    }

    fn prepared(&self, session: &Session, handle: &[u8]) -> Result<Arc<Prepared>, Status> {
        self.prepared
            .get_owned(handle, &session.principal)
            .ok_or_else(|| {
                Status::not_found(
                    "the prepared statement is unknown, closed or expired; prepare it again",
                )
            })
    }

    fn statement(&self, session: &Session, handle: &[u8]) -> Result<Arc<Statement>, Status> {
        self.statements
            .get_owned(handle, &session.principal)
            .ok_or_else(unknown_result)
    }
}

fn unknown_result() -> Status {
    Status::not_found("the result is unknown, cancelled or expired; run the statement again")
}
