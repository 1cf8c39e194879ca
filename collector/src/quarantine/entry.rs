//! One row of `raw.quarantine`, and the record that it was.
//!
//! Beside the path. Promise: what a record said when it was quarantined comes back whole, unless its
//! payload was cut; then it says so.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use headwater_protocol::{AgentId, EventType, Record, Sequence, SourceKind};
use serde::Serialize;
use serde_bytes::ByteBuf;

use super::QuarantineError;
use super::oldest::Arrival;
use crate::ledger::Key;
use crate::staging::event_rows::timestamptz;
use crate::staging::flaws::{self, Flaw};
use crate::staging::time_rule::is_arrival;

/// Columns that are read.
pub(super) const COLUMNS: [&str; 27] = [
    "quarantine_id",
    "company_id",
    "source_id",
    "received_at",
    "failed_at",
    "failure_type",
    "errors",
    "event_name",
    "message_id",
    "http_path",
    "ip",
    "user_agent",
    "payload",
    "payload_truncated",
    "actual_bytes",
    "schema_ref",
    "source_kind",
    "event_type",
    "batch_sent_at",
    "attempt",
    "clock_skew_ms",
    "retention_until",
    "content_type",
    "encoding",
    "_agent_id",
    "_epoch",
    "_sequence",
];

/// Columns that say when a row was received, and what its position is.
pub(super) const ARRIVAL_COLUMNS: [&str; 4] = ["received_at", "_agent_id", "_epoch", "_sequence"];

/// One quarantined event. Times in microseconds since the Unix epoch.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// `agent/epoch/sequence`.
    pub quarantine_id: String,
    /// Whose it is; unknown where the bytes are no record.
    pub company_id: Option<String>,
    /// Source within the company.
    pub source_id: Option<String>,
    /// When the agent accepted it.
    pub received_at: i64,
    /// When a collector judged it.
    pub failed_at: i64,
    /// Until when it should be kept.
    pub retention_until: i64,
    /// Class of the failure.
    pub failure_type: String,
    /// What is wrong with it.
    pub errors: Vec<Flaw>,
    /// Its name, as far as it can be made out.
    pub event_name: Option<String>,
    /// Its message id, as far as it can be made out.
    pub message_id: Option<String>,
    /// Event and version of the schema that it breaks.
    pub schema_ref: Option<String>,
    /// Path of the request.
    pub http_path: Option<String>,
    /// `Content-Type` of the request; unknown, or plain JSON, where there is none.
    pub content_type: Option<String>,
    /// `Content-Encoding` of the request.
    pub encoding: Option<String>,
    /// Length of the original bytes.
    pub actual_bytes: i64,
    /// Whether only the first 64 KiB are kept.
    pub payload_truncated: bool,
    /// The original bytes.
    #[serde(skip)]
    pub payload: Vec<u8>,
    #[serde(skip)]
    pub(super) key: Key,
    #[serde(skip)]
    pub(super) sequence: Sequence,
    #[serde(skip)]
    rest: Rest,
}

/// What only a replay asks for.
#[derive(Debug, Clone)]
struct Rest {
    ip: Option<String>,
    user_agent: Option<String>,
    source_kind: Option<String>,
    event_type: Option<String>,
    sent_at: Option<String>,
    attempt: Option<u32>,
    skew_ms: Option<i64>,
}

impl Entry {
    /// Returns the entry for a list, which shows no payload.
    pub(super) fn without_payload(self) -> Self {
        Self {
            payload: Vec::new(),
            ..self
        }
    }

    /// Returns the record as the agent sent it.
    ///
    /// # Errors
    /// Why it cannot be had, in one line.
    pub(super) fn record(&self) -> Result<Record, String> {
        if self.payload_truncated {
            return Err(format!(
                "only 64 KiB of its {} bytes are kept: the client must send it again",
                self.actual_bytes
            ));
        }
        let (Some(company_id), Some(source_id)) = (&self.company_id, &self.source_id) else {
            let record = Record::decode(&self.payload).ok();
            let record = record.filter(|record| is_arrival(record.received_at));
            return record.ok_or_else(|| "it is no record".to_owned());
        };
        if !is_arrival(self.received_at) {
            return Err("it did not arrive when it says".to_owned());
        }
        let source_kind = self.rest.source_kind.as_deref().and_then(source_kind);
        let source_kind =
            source_kind.ok_or("it was written before a replay could be made of it")?;
        Ok(Record {
            received_at: self.received_at,
            company_id: company_id.clone(),
            source_id: source_id.clone(),
            source_kind,
            path: self.http_path.clone().unwrap_or_default(),
            event_type: self.rest.event_type.as_deref().and_then(EventType::parse),
            sent_at: self.rest.sent_at.clone(),
            attempt: self.rest.attempt,
            ip: self.rest.ip.clone(),
            user_agent: self.rest.user_agent.clone(),
            body: ByteBuf::from(self.payload.clone()),
            skew_ms: self.rest.skew_ms,
            content_type: self.content_type.clone(),
            encoding: self.encoding.clone(),
            // What was cut does not come here.
            cut: None,
        })
    }
}

fn source_kind(name: &str) -> Option<SourceKind> {
    let all = [SourceKind::Server, SourceKind::Browser, SourceKind::Mobile];
    all.into_iter()
        .find(|kind| crate::staging::quarantine_rows::source_kind_name(*kind) == name)
}

/// Columns of one batch, of the types that are expected.
struct Columns<'a>(&'a RecordBatch);

impl Columns<'_> {
    fn column(&self, name: &str) -> Result<&ArrayRef, QuarantineError> {
        let column = self.0.column_by_name(name);
        column.ok_or_else(|| QuarantineError::Row(format!("no column `{name}`")))
    }

    fn get(&self, name: &str, data_type: &DataType) -> Result<ArrayRef, QuarantineError> {
        cast(self.column(name)?, data_type).map_err(|error| of_type(name, &error))
    }

    fn texts(&self, name: &str) -> Result<Vec<Option<String>>, QuarantineError> {
        let column = self.get(name, &DataType::Utf8)?;
        let texts = column.as_string::<i32>().iter();
        Ok(texts.map(|text| text.map(str::to_owned)).collect())
    }

    fn longs(&self, name: &str) -> Result<Vec<Option<i64>>, QuarantineError> {
        let column = self.get(name, &DataType::Int64)?;
        Ok(column.as_primitive::<Int64Type>().iter().collect())
    }

    fn times(&self, name: &str) -> Result<Vec<Option<i64>>, QuarantineError> {
        let column = self.get(name, &timestamptz())?;
        let times = column.as_primitive::<TimestampMicrosecondType>();
        Ok(times.iter().collect())
    }

    fn flaws(&self, name: &str) -> Result<Vec<Vec<Flaw>>, QuarantineError> {
        flaws::read(self.column(name)?).map_err(|error| of_type(name, &error))
    }

    fn flags(&self, name: &str) -> Result<BooleanArray, QuarantineError> {
        Ok(self.get(name, &DataType::Boolean)?.as_boolean().clone())
    }
}

fn of_type(column: &str, error: &ArrowError) -> QuarantineError {
    QuarantineError::Row(format!("`{column}`: {error}"))
}

/// Returns when each row of a batch was received, and its position.
pub(super) fn arrivals(rows: &RecordBatch) -> Result<Vec<Arrival>, QuarantineError> {
    let columns = Columns(rows);
    let (agents, epochs) = (columns.texts("_agent_id")?, columns.longs("_epoch")?);
    let (received, sequences) = (columns.times("received_at")?, columns.longs("_sequence")?);
    (0..rows.num_rows())
        .map(|row| {
            let sequence = sequences[row].unwrap_or_default().cast_unsigned();
            let key = key(&agents[row], epochs[row])?;
            Ok((received[row].unwrap_or_default(), key, sequence))
        })
        .collect()
}

fn key(agent: &Option<String>, epoch: Option<i64>) -> Result<Key, QuarantineError> {
    let agent: AgentId = text(agent)
        .parse()
        .map_err(|error| QuarantineError::Row(format!("{error}")))?;
    let epoch = epoch.unwrap_or_default().cast_unsigned();
    Ok(Key { agent, epoch })
}

/// Returns the rows of a batch.
pub(super) fn entries(rows: &RecordBatch) -> Result<Vec<Entry>, QuarantineError> {
    let columns = Columns(rows);
    let texts = |name| columns.texts(name);
    let (ids, failures) = (texts("quarantine_id")?, texts("failure_type")?);
    let (companies, sources) = (texts("company_id")?, texts("source_id")?);
    let (names, messages) = (texts("event_name")?, texts("message_id")?);
    let (paths, ips, agents) = (texts("http_path")?, texts("ip")?, texts("user_agent")?);
    let (schemas, kinds) = (texts("schema_ref")?, texts("source_kind")?);
    let (types, sent) = (texts("event_type")?, texts("batch_sent_at")?);
    let (agents_of, epochs) = (texts("_agent_id")?, columns.longs("_epoch")?);
    let (sequences, sizes) = (columns.longs("_sequence")?, columns.longs("actual_bytes")?);
    let (received, failed) = (columns.times("received_at")?, columns.times("failed_at")?);
    let skews = columns.longs("clock_skew_ms")?;
    let kept = columns.times("retention_until")?;
    let (forms, encodings) = (texts("content_type")?, texts("encoding")?);
    let attempts = columns.get("attempt", &DataType::Int32)?;
    let attempts = attempts.as_primitive::<Int32Type>();
    let truncated = columns.flags("payload_truncated")?;
    let payloads = columns.get("payload", &DataType::Binary)?;
    let payloads = payloads.as_binary::<i32>();
    let errors = columns.flaws("errors")?;
    (0..rows.num_rows())
        .map(|row| {
            Ok(Entry {
                quarantine_id: text(&ids[row]),
                company_id: companies[row].clone(),
                source_id: sources[row].clone(),
                received_at: received[row].unwrap_or_default(),
                failed_at: failed[row].unwrap_or_default(),
                retention_until: kept[row].unwrap_or_default(),
                failure_type: text(&failures[row]),
                errors: errors[row].clone(),
                event_name: names[row].clone(),
                message_id: messages[row].clone(),
                schema_ref: schemas[row].clone(),
                http_path: paths[row].clone(),
                content_type: forms[row].clone(),
                encoding: encodings[row].clone(),
                actual_bytes: sizes[row].unwrap_or_default(),
                payload_truncated: truncated.value(row),
                payload: payloads.value(row).to_vec(),
                key: key(&agents_of[row], epochs[row])?,
                sequence: sequences[row].unwrap_or_default().cast_unsigned(),
                rest: Rest {
                    ip: ips[row].clone(),
                    user_agent: agents[row].clone(),
                    source_kind: kinds[row].clone(),
                    event_type: types[row].clone(),
                    sent_at: sent[row].clone(),
                    attempt: attempts
                        .is_valid(row)
                        .then(|| attempts.value(row).cast_unsigned()),
                    skew_ms: skews[row],
                },
            })
        })
        .collect()
}

fn text(value: &Option<String>) -> String {
    value.clone().unwrap_or_default()
}
