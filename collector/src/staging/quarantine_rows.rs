//! Columns of `raw.quarantine`: every event that could not be accepted.
//!
//! Place on the path: staging puts here what is invalid, and bytes that are no record at all.
//! Promise: the reason and the original bytes (up to [`PAYLOAD_BYTES_MAX`]) are kept, one row per
//! sequence.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Int32Builder, Int64Builder, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use headwater_protocol::{Cut, EventType, Failure, Invalid, Record, Sequence, SourceKind};
use serde_json::Value;

use super::BatchOrigin;
use super::event_rows::timestamptz;
use super::flaws::{self, Flaw, FlawsBuilder};
use crate::plan::{Blocked, Judgement};

/// Bytes of a payload that are kept: 64 KiB.
pub const PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Characters of a name or id that are kept; it may be the very thing that is wrong.
const TEXT_CHARS_MAX: usize = 256;

/// The `failure_type` of events that the tracking plan does not know.
const UNPLANNED_EVENT: &str = "unplanned_event";

/// The Arrow schema of the rows, in column order.
pub(crate) static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    use DataType::{Binary, Boolean, Int32, Int64, Utf8};
    let columns = [
        ("quarantine_id", Utf8, false),
        ("company_id", Utf8, true),
        ("source_id", Utf8, true),
        ("received_at", timestamptz(), false),
        ("failed_at", timestamptz(), false),
        ("failure_type", Utf8, false),
        ("errors", flaws::data_type(), false),
        ("event_name", Utf8, true),
        ("message_id", Utf8, true),
        ("http_path", Utf8, true),
        ("ip", Utf8, true),
        ("user_agent", Utf8, true),
        ("payload", Binary, false),
        ("payload_truncated", Boolean, false),
        ("actual_bytes", Int64, false),
        ("replay_status", Utf8, false),
        ("schema_ref", Utf8, true),
        ("processor_version", Utf8, true),
        ("source_kind", Utf8, true),
        ("event_type", Utf8, true),
        ("batch_sent_at", Utf8, true),
        ("attempt", Int32, true),
        ("clock_skew_ms", Int64, true),
        ("processor_name", Utf8, false),
        ("maximum_allowed_bytes", Int64, false),
        ("retention_until", timestamptz(), false),
        ("content_type", Utf8, true),
        ("encoding", Utf8, true),
        ("_agent_id", Utf8, false),
        ("_epoch", Int64, false),
        ("_sequence", Int64, false),
    ];
    let fields: Vec<Field> = columns
        .into_iter()
        .map(|(name, data_type, nullable)| Field::new(name, data_type, nullable))
        .collect();
    Arc::new(Schema::new(fields))
});

/// Position of `failure_type`.
pub(crate) const REASON_COLUMN: usize = 5;

/// Position of the column that the committer filters by.
pub(crate) const SEQUENCE_COLUMN: usize = 30;

/// Rows of `raw.quarantine` in the making.
#[derive(Debug)]
pub(crate) struct QuarantineRows {
    quarantine_id: StringBuilder,
    company_id: StringBuilder,
    source_id: StringBuilder,
    received_at: TimestampMicrosecondBuilder,
    failed_at: TimestampMicrosecondBuilder,
    failure_type: StringBuilder,
    errors: FlawsBuilder,
    event_name: StringBuilder,
    message_id: StringBuilder,
    http_path: StringBuilder,
    ip: StringBuilder,
    user_agent: StringBuilder,
    payload: BinaryBuilder,
    payload_truncated: BooleanBuilder,
    actual_bytes: Int64Builder,
    replay_status: StringBuilder,
    schema_ref: StringBuilder,
    processor_version: StringBuilder,
    /// What the record says besides its body, so that the event can be judged again.
    source_kind: StringBuilder,
    event_type: StringBuilder,
    batch_sent_at: StringBuilder,
    attempt: Int32Builder,
    clock_skew_ms: Int64Builder,
    processor_name: StringBuilder,
    maximum_allowed_bytes: Int64Builder,
    retention_until: TimestampMicrosecondBuilder,
    /// The form of the request, as far as its record keeps it.
    content_type: StringBuilder,
    encoding: StringBuilder,
    agent_id: StringBuilder,
    epoch: Int64Builder,
    sequence: Int64Builder,
}

impl Default for QuarantineRows {
    fn default() -> Self {
        let time = || TimestampMicrosecondBuilder::new().with_data_type(timestamptz());
        Self {
            quarantine_id: StringBuilder::new(),
            company_id: StringBuilder::new(),
            source_id: StringBuilder::new(),
            received_at: time(),
            failed_at: time(),
            failure_type: StringBuilder::new(),
            errors: FlawsBuilder::default(),
            event_name: StringBuilder::new(),
            message_id: StringBuilder::new(),
            http_path: StringBuilder::new(),
            ip: StringBuilder::new(),
            user_agent: StringBuilder::new(),
            payload: BinaryBuilder::new(),
            payload_truncated: BooleanBuilder::new(),
            actual_bytes: Int64Builder::new(),
            replay_status: StringBuilder::new(),
            schema_ref: StringBuilder::new(),
            processor_version: StringBuilder::new(),
            source_kind: StringBuilder::new(),
            event_type: StringBuilder::new(),
            batch_sent_at: StringBuilder::new(),
            attempt: Int32Builder::new(),
            clock_skew_ms: Int64Builder::new(),
            processor_name: StringBuilder::new(),
            maximum_allowed_bytes: Int64Builder::new(),
            retention_until: time(),
            content_type: StringBuilder::new(),
            encoding: StringBuilder::new(),
            agent_id: StringBuilder::new(),
            epoch: Int64Builder::new(),
            sequence: Int64Builder::new(),
        }
    }
}

impl QuarantineRows {
    /// Adds an event that is invalid.
    pub(crate) fn push_invalid(
        &mut self,
        origin: &BatchOrigin,
        sequence: Sequence,
        record: &Record,
        invalid: &Invalid,
    ) {
        self.push_record(record);
        self.schema_ref.append_null();
        self.push_failure(invalid);
        self.push_position(origin, sequence);
    }

    /// Adds an event that is valid and that the tracking plan keeps out.
    pub(crate) fn push_blocked(
        &mut self,
        origin: &BatchOrigin,
        sequence: Sequence,
        record: &Record,
        judgement: &Judgement<'_>,
        blocked: Blocked,
    ) {
        self.push_record(record);
        let planned = judgement.planned;
        self.schema_ref
            .append_option(planned.map(|it| format!("{}@{}", it.name, it.version)));
        self.failure_type.append_value(match blocked {
            Blocked::SchemaViolation => Failure::SchemaViolation.as_str(),
            Blocked::UnplannedEvent => UNPLANNED_EVENT,
        });
        self.errors
            .push(judgement.violations.iter().map(Flaw::from));
        self.push_position(origin, sequence);
    }

    /// Fills what the record says, so that the event can be judged again as it came.
    fn push_record(&mut self, record: &Record) {
        let (name, message_id) = names(&record.body);
        self.company_id.append_value(&record.company_id);
        self.source_id.append_value(&record.source_id);
        self.received_at.append_value(record.received_at);
        self.event_name.append_option(name);
        self.message_id.append_option(message_id);
        self.http_path.append_value(&record.path);
        self.ip.append_option(record.ip.as_deref());
        self.user_agent.append_option(record.user_agent.as_deref());
        self.source_kind
            .append_value(source_kind_name(record.source_kind));
        self.event_type
            .append_option(record.event_type.map(EventType::as_str));
        self.batch_sent_at.append_option(record.sent_at.as_deref());
        let attempt = record.attempt.and_then(|it| i32::try_from(it).ok());
        self.attempt.append_option(attempt);
        self.clock_skew_ms.append_option(record.skew_ms);
        self.content_type
            .append_option(record.content_type.as_deref());
        self.encoding.append_option(record.encoding.as_deref());
        self.push_payload(&record.body, record.cut);
    }

    /// Adds bytes that should have been a record, or are one that says of its arrival what cannot be. They
    /// arrived at an unknown time: now.
    pub(crate) fn push_undecodable(
        &mut self,
        origin: &BatchOrigin,
        sequence: Sequence,
        bytes: &[u8],
    ) {
        self.company_id.append_null();
        self.source_id.append_null();
        self.received_at.append_value(origin.now);
        self.event_name.append_null();
        self.message_id.append_null();
        self.http_path.append_null();
        self.ip.append_null();
        self.user_agent.append_null();
        self.source_kind.append_null();
        self.event_type.append_null();
        self.batch_sent_at.append_null();
        self.attempt.append_null();
        self.clock_skew_ms.append_null();
        self.content_type.append_null();
        self.encoding.append_null();
        self.schema_ref.append_null();
        self.push_failure(&Invalid::NOT_A_RECORD);
        self.push_payload(bytes, None);
        self.push_position(origin, sequence);
    }

    fn push_failure(&mut self, invalid: &Invalid) {
        self.failure_type.append_value(invalid.failure.as_str());
        self.errors.push([Flaw::from(invalid)]);
    }

    /// Keeps the beginning of `bytes`, which may be a beginning themselves.
    fn push_payload(&mut self, bytes: &[u8], cut: Option<Cut>) {
        let kept = &bytes[..bytes.len().min(PAYLOAD_BYTES_MAX)];
        let sent = cut.map_or(bytes.len() as u64, |cut| cut.sent_bytes);
        let allowed = cut.and_then(|cut| cut.allowed_bytes);
        let allowed = allowed.unwrap_or(PAYLOAD_BYTES_MAX as u64);
        let long = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.payload.append_value(kept);
        self.payload_truncated
            .append_value((kept.len() as u64) < sent);
        self.maximum_allowed_bytes.append_value(long(allowed));
        self.actual_bytes.append_value(long(sent));
        self.replay_status.append_value("none");
    }

    fn push_position(&mut self, origin: &BatchOrigin, sequence: Sequence) {
        let key = &origin.key;
        self.quarantine_id
            .append_value(format!("{}/{}/{sequence}", key.agent, key.epoch));
        self.failed_at.append_value(origin.now);
        self.retention_until.append_value(origin.retention_until);
        self.processor_name.append_value(env!("CARGO_PKG_NAME"));
        self.processor_version
            .append_value(env!("CARGO_PKG_VERSION"));
        self.agent_id.append_value(key.agent.as_str());
        self.epoch.append_value(key.epoch.cast_signed());
        self.sequence.append_value(sequence.cast_signed());
    }

    /// Returns the rows as one batch.
    ///
    /// # Errors
    /// Only when the columns do not fit the schema, which a test excludes.
    pub(crate) fn finish(mut self) -> Result<RecordBatch, ArrowError> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.quarantine_id.finish()),
            Arc::new(self.company_id.finish()),
            Arc::new(self.source_id.finish()),
            Arc::new(self.received_at.finish()),
            Arc::new(self.failed_at.finish()),
            Arc::new(self.failure_type.finish()),
            self.errors.finish()?,
            Arc::new(self.event_name.finish()),
            Arc::new(self.message_id.finish()),
            Arc::new(self.http_path.finish()),
            Arc::new(self.ip.finish()),
            Arc::new(self.user_agent.finish()),
            Arc::new(self.payload.finish()),
            Arc::new(self.payload_truncated.finish()),
            Arc::new(self.actual_bytes.finish()),
            Arc::new(self.replay_status.finish()),
            Arc::new(self.schema_ref.finish()),
            Arc::new(self.processor_version.finish()),
            Arc::new(self.source_kind.finish()),
            Arc::new(self.event_type.finish()),
            Arc::new(self.batch_sent_at.finish()),
            Arc::new(self.attempt.finish()),
            Arc::new(self.clock_skew_ms.finish()),
            Arc::new(self.processor_name.finish()),
            Arc::new(self.maximum_allowed_bytes.finish()),
            Arc::new(self.retention_until.finish()),
            Arc::new(self.content_type.finish()),
            Arc::new(self.encoding.finish()),
            Arc::new(self.agent_id.finish()),
            Arc::new(self.epoch.finish()),
            Arc::new(self.sequence.finish()),
        ];
        RecordBatch::try_new(Arc::clone(&SCHEMA), columns)
    }
}

/// Returns the value of the `source_kind` column.
pub(crate) fn source_kind_name(kind: SourceKind) -> &'static str {
    match kind {
        SourceKind::Server => "server",
        SourceKind::Browser => "browser",
        SourceKind::Mobile => "mobile",
    }
}

/// Returns the event's name and message id as far as they can be made out.
fn names(body: &[u8]) -> (Option<String>, Option<String>) {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| {
        let text = value.get(key)?.as_str()?;
        Some(text.chars().take(TEXT_CHARS_MAX).collect())
    };
    let message_id = text("messageId").or_else(|| text("uuid"));
    (text("event"), message_id)
}
