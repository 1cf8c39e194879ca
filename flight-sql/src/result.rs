//! A result: runs the plans of one statement and turns their batches into what old drivers read.
//!
//! Place on the event's path: the last step, batches go to the client. Promises: a result is
//! whole or ends in an error, never short, not even when the work panics; every answer about a
//! statement has the same schema; a client that goes away stops the work and frees its place; the
//! work runs on threads of its own, so that a heavy query never stops the server from answering.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arrow::array::{Array as _, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode as _};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::admission::Place;
use crate::error::StatementError;
use crate::metrics;
use crate::queries::Fetch;
use crate::snapshot::Snapshot;

/// Batches that wait for the client. Two keep the wire busy and bound the memory.
const BATCHES_WAITING: usize = 2;
/// Aimed-at bytes of one message. gRPC clients refuse 4 MiB by default; half of it leaves room for
/// headers and padding.
const MESSAGE_BYTES: usize = 2 << 20;

/// How a client gets points in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timestamps {
    /// With their time zone.
    Zoned,
    /// Without one, in UTC: JDBC drivers up to 18 cannot read the others as objects.
    Plain,
}

/// Returns the schema clients see for a result of `schema`: types that JDBC 18 reads, every column
/// nullable, so that a plan which knows more about nulls than another cannot change the answer.
pub(crate) fn client_schema(schema: &Schema, timestamps: Timestamps) -> SchemaRef {
    let fields: Vec<FieldRef> = schema
        .fields()
        .iter()
        .map(|field| {
            Arc::new(Field::new(
                field.name(),
                client_type(field.data_type(), timestamps),
                true,
            ))
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// Returns the plain type for one that old drivers do not read: no views, dictionaries, large or
/// run-end types, no 16-bit floats.
pub(crate) fn client_type(data_type: &DataType, timestamps: Timestamps) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Dictionary(_, values) => client_type(values, timestamps),
        DataType::RunEndEncoded(_, values) => client_type(values.data_type(), timestamps),
        DataType::Timestamp(unit, Some(_)) if timestamps == Timestamps::Plain => {
            DataType::Timestamp(*unit, None)
        }
        DataType::Timestamp(unit, Some(zone)) if is_utc(zone) => {
            DataType::Timestamp(*unit, Some("UTC".into()))
        }
        DataType::Date64 => DataType::Timestamp(TimeUnit::Millisecond, None),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => DataType::List(client_field(item, timestamps)),
        DataType::FixedSizeList(item, size) => {
            DataType::FixedSizeList(client_field(item, timestamps), *size)
        }
        DataType::Struct(fields) => DataType::Struct(
            fields
                .iter()
                .map(|field| client_field(field, timestamps))
                .collect(),
        ),
        DataType::Map(entries, sorted) => DataType::Map(client_field(entries, timestamps), *sorted),
        other => other.clone(),
    }
}

fn is_utc(zone: &str) -> bool {
    matches!(zone, "UTC" | "utc" | "Z" | "+00:00" | "+00" | "Etc/UTC")
}

fn client_field(field: &FieldRef, timestamps: Timestamps) -> FieldRef {
    let data_type = client_type(field.data_type(), timestamps);
    Arc::new(Field::new(field.name(), data_type, field.is_nullable()))
}

/// Casts a batch to the schema clients were told.
fn client_batch(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, StatementError> {
    if batch.num_columns() != schema.fields().len() {
        return Err(StatementError::Changed);
    }
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let columns = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(Arc::clone(column))
            } else {
                cast_with_options(column, field.data_type(), &strict)
            }
        })
        .collect::<Result<Vec<ArrayRef>, _>>()
        .map_err(DataFusionError::from)?;
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let batch = RecordBatch::try_new_with_options(Arc::clone(schema), columns, &rows)
        .map_err(DataFusionError::from)?;
    Ok(batch)
}

/// Splits a batch so that each part fits one message, unless a single row does not.
pub(crate) fn split(batch: RecordBatch) -> Vec<RecordBatch> {
    let rows = batch.num_rows();
    if rows == 0 {
        return Vec::new();
    }
    let nested: usize = sizes(&batch, true).sum();
    let nested_per_row = nested.div_ceil(rows);
    let mut parts = Vec::new();
    let mut queue = vec![batch];
    while let Some(batch) = queue.pop() {
        let rows = batch.num_rows();
        let bytes = sizes(&batch, false).sum::<usize>() + nested_per_row * rows;
        if bytes <= MESSAGE_BYTES || rows <= 1 {
            parts.push(batch);
            continue;
        }
        let half = rows / 2;
        queue.push(batch.slice(half, rows - half));
        queue.push(batch.slice(0, half));
    }
    parts
}

/// Bytes of the nested or of the flat columns. Flat ones are exact for slices; nested ones count
/// all of their children, so they are measured once and shared out by row.
fn sizes(batch: &RecordBatch, nested: bool) -> impl Iterator<Item = usize> {
    batch
        .columns()
        .iter()
        .filter(move |column| column.data_type().is_nested() == nested)
        .map(|column| {
            column
                .to_data()
                .get_slice_memory_size()
                .unwrap_or(MESSAGE_BYTES)
        })
}

/// What to run, and within which bounds.
pub(crate) struct Work {
    /// The tables.
    pub(crate) snapshot: Snapshot,
    /// Plans whose results follow one another.
    pub(crate) plans: Vec<LogicalPlan>,
    /// Schema of the result.
    pub(crate) schema: SchemaRef,
    /// Ends the work when cancelled.
    pub(crate) cancel: CancellationToken,
    /// Longest time of the work.
    pub(crate) timeout: Duration,
    /// Which limit `timeout` comes from.
    pub(crate) timeout_name: &'static str,
    /// Counts this fetch while it runs.
    pub(crate) fetch: Fetch,
}

/// The batches of a running result. Dropping it stops the work.
pub(crate) struct ResultStream {
    batches: mpsc::Receiver<RecordBatch>,
    work: Option<JoinHandle<Result<(), Status>>>,
    started: Instant,
}

impl ResultStream {
    /// Starts `work` on the threads of `runtime`; it holds `place` until it has ended.
    pub(crate) fn start(work: Work, place: Place, runtime: &tokio::runtime::Handle) -> Self {
        let (sender, batches) = mpsc::channel(BATCHES_WAITING);
        let work = tokio::spawn(drive(work, place, sender, runtime.clone()));
        Self {
            batches,
            work: Some(work),
            started: Instant::now(),
        }
    }

    fn ended(&mut self, outcome: &'static str) {
        self.work = None;
        ::metrics::counter!(metrics::QUERIES, "outcome" => outcome).increment(1);
        ::metrics::histogram!(metrics::QUERY_SECONDS).record(self.started.elapsed().as_secs_f64());
    }
}

impl Stream for ResultStream {
    type Item = Result<RecordBatch, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(batch) = ready!(self.batches.poll_recv(context)) {
            return Poll::Ready(Some(Ok(batch)));
        }
        // the end of the batches is the end of the result only if the work says so.
        let Some(work) = &mut self.work else {
            return Poll::Ready(None);
        };
        let outcome = ready!(Pin::new(work).poll(context));
        match outcome {
            Ok(Ok(())) => {
                self.ended("ok");
                Poll::Ready(None)
            }
            Ok(Err(status)) => {
                let is_cancelled = status.code() == tonic::Code::Cancelled;
                self.ended(if is_cancelled { "cancelled" } else { "error" });
                tracing::info!(code = ?status.code(), error = status.message(), "query failed");
                Poll::Ready(Some(Err(status)))
            }
            Err(join_error) => {
                self.ended("error");
                tracing::error!(error = %join_error, "query stopped unexpectedly");
                Poll::Ready(Some(Err(StatementError::Panicked.into())))
            }
        }
    }
}

impl Drop for ResultStream {
    fn drop(&mut self) {
        if let Some(work) = &self.work {
            work.abort();
            self.ended("dropped");
        }
    }
}

/// Runs the work within its bounds. The work is a task on other threads: an operator that computes for
/// long without a pause must not delay the answer that time is up.
async fn drive(
    work: Work,
    place: Place,
    sender: mpsc::Sender<RecordBatch>,
    runtime: tokio::runtime::Handle,
) -> Result<(), Status> {
    let cancel = work.cancel.clone();
    let (timeout, timeout_name) = (work.timeout, work.timeout_name);
    let running = AbortOnDropHandle::new(runtime.spawn(run(work, place, sender)));
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Status::cancelled("the query was cancelled")),
        outcome = tokio::time::timeout(timeout, running) => match outcome {
            Ok(Ok(outcome)) => outcome.map_err(Status::from),
            Ok(Err(panic)) => {
                tracing::error!(error = %panic, "query stopped unexpectedly");
                Err(StatementError::Panicked.into())
            }
            Err(_elapsed) => Err(Status::deadline_exceeded(format!(
                "the query took longer than `{timeout_name}` = {} ms",
                timeout.as_millis()
            ))),
        },
    }
}

/// Does the work. The place is given back when this future has ended or been dropped, so never while
/// it still computes.
async fn run(
    work: Work,
    place: Place,
    sender: mpsc::Sender<RecordBatch>,
) -> Result<(), StatementError> {
    let _held = (place, &work.fetch);
    let context = &work.snapshot.context;
    let state = context.state();
    for plan in &work.plans {
        let physical = state.create_physical_plan(plan).await?;
        let mut batches = execute_stream(pausing(physical)?, context.task_ctx())?;
        while let Some(batch) = batches.next().await {
            let batch = client_batch(&batch?, &work.schema)?;
            for part in split(batch) {
                ::metrics::counter!(metrics::ROWS).increment(part.num_rows() as u64);
                ::metrics::counter!(metrics::BYTES).increment(bytes(&part));
                if sender.send(part).await.is_err() {
                    // The client went away; whoever dropped the receiver also aborts this work.
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Makes joins pause now and then. DataFusion pauses only where data is read, and a join can make a
/// million batches of one, during which nothing could stop the query.
fn pausing(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    let plan = plan.transform_up(|node| {
        if node.name().ends_with("JoinExec") {
            Ok(Transformed::yes(Arc::new(CooperativeExec::new(node)) as _))
        } else {
            Ok(Transformed::no(node))
        }
    })?;
    Ok(plan.data)
}

fn bytes(batch: &RecordBatch) -> u64 {
    (sizes(batch, false).sum::<usize>() + sizes(batch, true).sum::<usize>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int32Array, StringArray};

    #[test]
    fn types_old_drivers_cannot_read_become_plain_ones() {
        let item = |data_type| Arc::new(Field::new("item", data_type, true));
        let dictionary =
            DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8View));
        for (given, plain) in [
            (DataType::Utf8View, DataType::Utf8),
            (DataType::LargeBinary, DataType::Binary),
            (dictionary.clone(), DataType::Utf8),
            (
                DataType::LargeList(item(dictionary)),
                DataType::List(item(DataType::Utf8)),
            ),
            (
                DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
                DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            ),
        ] {
            assert_eq!(client_type(&given, Timestamps::Zoned), plain);
        }
    }

    #[test]
    fn parts_are_small_and_keep_every_row_in_order() {
        let texts: Vec<String> = (0..1000)
            .map(|row| format!("{row}").repeat(row * 10))
            .collect();
        let numbers: Vec<i32> = (0..1000).collect();
        let batch = RecordBatch::try_from_iter([
            ("n", Arc::new(Int32Array::from(numbers)) as ArrayRef),
            ("t", Arc::new(StringArray::from(texts)) as ArrayRef),
        ])
        .unwrap();
        let parts = split(batch.clone());
        assert!(parts.len() > 2);
        for part in &parts {
            assert!(sizes(part, false).sum::<usize>() <= MESSAGE_BYTES);
        }
        let together = arrow::compute::concat_batches(&batch.schema(), &parts).unwrap();
        assert_eq!(together, batch);
    }
}
