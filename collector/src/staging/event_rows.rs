//! Columns of `raw.events`, filled one event at a time.
//!
//! Place on the path: the only map from an event to its columns. Promise: the row carries everything
//! of the event (`properties`, `context` and `traits` whole, as canonical JSON) but what the tracking
//! plan omits, which is in no column; a promoted column is null where the value is missing or of
//! another type.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    ArrayRef, FixedSizeBinaryBuilder, Int32Builder, Int64Builder, ListBuilder, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use headwater_protocol::json::{Document, Object, Value};
use headwater_protocol::{Event, EventType, Record, Sequence};
use headwater_tables::promoted::Promoted;

use super::actor::Actor;
use super::promoted_column::PromotedColumn;
use super::time_rule::{Observed, is_representable, resolve};
use super::{BatchOrigin, actor};
use crate::plan::Judgement;
use crate::plan::schema::Violation;

/// Events above this size are flagged `large`: Segment's own limit, in bytes.
const LARGE_BYTES: usize = 32 * 1024;

/// Events that arrive later than this after they happened are flagged `late`: one day, in
/// microseconds.
const LATE_AFTER: i64 = 86_400_000_000;

/// Parts of user agents that name themselves a robot.
const BOT_MARKS: &[&str] = &["bot", "crawler", "spider", "headless"];

/// UTC timestamps in microseconds, as Iceberg's `timestamptz` reads back.
pub(crate) fn timestamptz() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))
}

/// The Arrow schema of the rows, in column order.
pub(crate) static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    use DataType::{FixedSizeBinary, Int32, Int64, Utf8};
    let strings = DataType::List(Arc::new(Field::new_list_field(Utf8, true)));
    let columns = [
        ("company_id", Utf8, false),
        ("source_id", Utf8, false),
        ("message_id", Utf8, false),
        ("payload_sha256", FixedSizeBinary(16), false),
        ("type", Utf8, false),
        ("schema_version", Int32, false),
        ("event_time", timestamptz(), false),
        ("received_at", timestamptz(), false),
        ("time_rule", Utf8, false),
        ("properties", Utf8, false),
        ("context", Utf8, false),
        ("event_name", Utf8, true),
        ("event_name_raw", Utf8, true),
        ("original_timestamp", timestamptz(), true),
        ("sent_at", timestamptz(), true),
        ("clock_skew_ms", Int64, true),
        ("actor_type", Utf8, true),
        ("actor_id", Utf8, true),
        ("anonymous_id", Utf8, true),
        ("session_id", Utf8, true),
        ("contact_id", Utf8, true),
        ("admin_id", Utf8, true),
        ("team_id", Utf8, true),
        ("conversation_id", Utf8, true),
        ("part_id", Utf8, true),
        ("ticket_id", Utf8, true),
        ("channel", Utf8, true),
        ("part_type", Utf8, true),
        ("rating", Int32, true),
        ("page_url", Utf8, true),
        ("page_path", Utf8, true),
        ("locale", Utf8, true),
        ("timezone", Utf8, true),
        ("user_agent", Utf8, true),
        ("ip", Utf8, true),
        ("library_name", Utf8, true),
        ("library_version", Utf8, true),
        ("traits", Utf8, true),
        ("attempt", Int32, true),
        ("flags", strings.clone(), true),
        ("property_violations", strings, true),
        ("ingest_batch_id", Utf8, false),
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

/// Position of columns that the committer sorts and filters by.
pub(crate) mod column {
    pub(crate) const COMPANY_ID: usize = 0;
    pub(crate) const MESSAGE_ID: usize = 2;
    pub(crate) const EVENT_TIME: usize = 6;
    pub(crate) const RECEIVED_AT: usize = 7;
    pub(crate) const SEQUENCE: usize = 44;
}

/// Rows of `raw.events` in the making.
#[derive(Debug)]
pub(crate) struct EventRows {
    company_id: StringBuilder,
    source_id: StringBuilder,
    message_id: StringBuilder,
    payload_sha256: FixedSizeBinaryBuilder,
    event_type: StringBuilder,
    schema_version: Int32Builder,
    event_time: TimestampMicrosecondBuilder,
    received_at: TimestampMicrosecondBuilder,
    time_rule: StringBuilder,
    properties: StringBuilder,
    context: StringBuilder,
    event_name: StringBuilder,
    event_name_raw: StringBuilder,
    original_timestamp: TimestampMicrosecondBuilder,
    sent_at: TimestampMicrosecondBuilder,
    clock_skew_ms: Int64Builder,
    actor_type: StringBuilder,
    actor_id: StringBuilder,
    anonymous_id: StringBuilder,
    /// `session_id` to `part_type`, in the order of [`PROMOTED`].
    promoted: [StringBuilder; PROMOTED.len()],
    rating: Int32Builder,
    page_url: StringBuilder,
    page_path: StringBuilder,
    locale: StringBuilder,
    timezone: StringBuilder,
    user_agent: StringBuilder,
    ip: StringBuilder,
    library_name: StringBuilder,
    library_version: StringBuilder,
    traits: StringBuilder,
    attempt: Int32Builder,
    flags: ListBuilder<StringBuilder>,
    property_violations: ListBuilder<StringBuilder>,
    ingest_batch_id: StringBuilder,
    agent_id: StringBuilder,
    epoch: Int64Builder,
    sequence: Int64Builder,
    by_plan: Vec<PromotedColumn>,
}

/// Properties with a column of their own and of the same name.
const PROMOTED: [&str; 9] = [
    "session_id",
    "contact_id",
    "admin_id",
    "team_id",
    "conversation_id",
    "part_id",
    "ticket_id",
    "channel",
    "part_type",
];

impl EventRows {
    /// Begins rows that have these promoted properties as their last columns.
    pub(crate) fn new(by_plan: &[Promoted]) -> Self {
        let time = || TimestampMicrosecondBuilder::new().with_data_type(timestamptz());
        Self {
            company_id: StringBuilder::new(),
            source_id: StringBuilder::new(),
            message_id: StringBuilder::new(),
            payload_sha256: FixedSizeBinaryBuilder::new(16),
            event_type: StringBuilder::new(),
            schema_version: Int32Builder::new(),
            event_time: time(),
            received_at: time(),
            time_rule: StringBuilder::new(),
            properties: StringBuilder::new(),
            context: StringBuilder::new(),
            event_name: StringBuilder::new(),
            event_name_raw: StringBuilder::new(),
            original_timestamp: time(),
            sent_at: time(),
            clock_skew_ms: Int64Builder::new(),
            actor_type: StringBuilder::new(),
            actor_id: StringBuilder::new(),
            anonymous_id: StringBuilder::new(),
            promoted: std::array::from_fn(|_| StringBuilder::new()),
            rating: Int32Builder::new(),
            page_url: StringBuilder::new(),
            page_path: StringBuilder::new(),
            locale: StringBuilder::new(),
            timezone: StringBuilder::new(),
            user_agent: StringBuilder::new(),
            ip: StringBuilder::new(),
            library_name: StringBuilder::new(),
            library_version: StringBuilder::new(),
            traits: StringBuilder::new(),
            attempt: Int32Builder::new(),
            flags: ListBuilder::new(StringBuilder::new()),
            property_violations: ListBuilder::new(StringBuilder::new()),
            ingest_batch_id: StringBuilder::new(),
            agent_id: StringBuilder::new(),
            epoch: Int64Builder::new(),
            sequence: Int64Builder::new(),
            by_plan: by_plan.iter().map(PromotedColumn::new).collect(),
        }
    }

    /// Adds the row of one event, without what the plan omits of it.
    ///
    /// # Errors
    /// Only when the payload hash has another length than its column, which the types exclude.
    pub(crate) fn push(
        &mut self,
        origin: &BatchOrigin,
        sequence: Sequence,
        record: &Record,
        event: &Event<'_>,
        judgement: &Judgement<'_>,
    ) -> Result<(), ArrowError> {
        let stored = judgement.stored(event);
        let bytes = match &stored {
            Cow::Borrowed(_) => record.body.len(),
            Cow::Owned(stored) => bytes_without_omitted(record, event, stored),
        };
        self.push_stored(origin, sequence, record, &stored, judgement, bytes)
    }

    /// As [`EventRows::push`], for what is left of an event, which has so many `bytes`.
    fn push_stored(
        &mut self,
        origin: &BatchOrigin,
        sequence: Sequence,
        record: &Record,
        event: &Event<'_>,
        judgement: &Judgement<'_>,
        bytes: usize,
    ) -> Result<(), ArrowError> {
        self.company_id.append_value(&record.company_id);
        self.source_id.append_value(&record.source_id);
        self.message_id.append_value(&event.message_id);
        self.payload_sha256.append_value(event.payload_sha256)?;
        self.event_type.append_value(event.event_type.as_str());
        self.schema_version.append_value(judgement.version);
        self.properties.append_value(event.properties.canonical());
        self.context.append_value(event.context.canonical());
        self.traits
            .append_option(event.traits.as_ref().map(Document::canonical));
        self.attempt
            .append_option(record.attempt.and_then(|it| i32::try_from(it).ok()));
        let event_time = self.push_times(record, event);
        self.push_who(event, judgement);
        self.push_context(record, event);
        self.push_flags(record, event, event_time, judgement, bytes);
        push_list(
            &mut self.property_violations,
            judgement.violations.iter().map(Violation::short),
        );
        self.ingest_batch_id.append_value(&origin.batch_id);
        self.agent_id.append_value(origin.key.agent.as_str());
        self.epoch.append_value(origin.key.epoch.cast_signed());
        self.sequence.append_value(sequence.cast_signed());
        for column in &mut self.by_plan {
            column.push(event);
        }
        Ok(())
    }

    /// Fills the time columns and returns the event time.
    fn push_times(&mut self, record: &Record, event: &Event<'_>) -> i64 {
        let received_at = record.received_at;
        let sent_at = event.sent_at.filter(|time| is_representable(*time));
        let original = event
            .original_timestamp
            .filter(|time| is_representable(*time));
        let own_skew = sent_at.map(|sent_at| received_at.saturating_sub(sent_at));
        let device_skew = record.skew_ms.map(|skew| skew.saturating_mul(1000));
        let (event_time, rule) = resolve(&Observed {
            source_kind: record.source_kind,
            library: library(event, "name"),
            original,
            received_at,
            device_skew,
            own_skew,
            attempt: record.attempt,
        });
        self.event_time.append_value(event_time);
        self.received_at.append_value(received_at);
        self.time_rule.append_value(rule.as_str());
        self.original_timestamp.append_option(original);
        self.sent_at.append_option(sent_at);
        self.clock_skew_ms
            .append_option(record.skew_ms.or_else(|| own_skew.map(|skew| skew / 1000)));
        event_time
    }

    /// Fills the name, the actor and the promoted properties.
    fn push_who(&mut self, event: &Event<'_>, judgement: &Judgement<'_>) {
        let planned = judgement.planned;
        let raw = event.name.as_deref();
        let canonical = planned.map(|planned| planned.name.as_str());
        self.event_name
            .append_option(canonical.or_else(|| raw.map(str::trim)));
        self.event_name_raw.append_option(raw);
        let planned_track = planned.filter(|_| event.event_type == EventType::Track);
        let actor = actor::derive(event, planned_track.map(|planned| planned.causer));
        self.actor_type.append_option(actor.map(Actor::as_str));
        self.actor_id.append_option(event.user_id.as_deref());
        self.anonymous_id
            .append_option(event.anonymous_id.as_deref());
        for (builder, key) in self.promoted.iter_mut().zip(PROMOTED) {
            let value = id_text(&event.properties, key);
            let value = value.or_else(|| implied_id(event, actor, key).map(Cow::Borrowed));
            builder.append_option(value);
        }
        let rating = event.properties.get("rating").and_then(Value::as_i64);
        self.rating
            .append_option(rating.and_then(|rating| i32::try_from(rating).ok()));
    }

    /// Fills what the client says about itself.
    fn push_context(&mut self, record: &Record, event: &Event<'_>) {
        let properties = &event.properties;
        let context = &event.context;
        let page = object(context, "page");
        let in_page = |key: &str| page.and_then(|page| text(page, key));
        self.page_url.append_option(
            in_page("url")
                .or_else(|| text(properties, "page_url"))
                .or_else(|| text(properties, "url")),
        );
        self.page_path
            .append_option(in_page("path").or_else(|| text(properties, "path")));
        self.locale.append_option(text(context, "locale"));
        self.timezone.append_option(text(context, "timezone"));
        self.user_agent.append_option(user_agent(record, event));
        self.ip.append_option(record.ip.as_deref());
        self.library_name.append_option(library(event, "name"));
        self.library_version
            .append_option(library(event, "version"));
    }

    fn push_flags(
        &mut self,
        record: &Record,
        event: &Event<'_>,
        event_time: i64,
        judgement: &Judgement<'_>,
        bytes: usize,
    ) {
        let is_bot = user_agent(record, event).is_some_and(|agent| {
            let agent = agent.to_ascii_lowercase();
            BOT_MARKS.iter().any(|mark| agent.contains(mark))
        });
        let is_out_of_range = |time: Option<i64>| time.is_some_and(|time| !is_representable(time));
        let flags = [
            ("id_from_server", event.id_from_server),
            (
                "late",
                record.received_at.saturating_sub(event_time) > LATE_AFTER,
            ),
            ("large", bytes > LARGE_BYTES),
            ("bot", is_bot),
            (
                "time_out_of_range",
                is_out_of_range(event.original_timestamp) || is_out_of_range(event.sent_at),
            ),
            ("unplanned_property", judgement.has_unplanned_properties),
        ];
        let set = flags.into_iter().filter(|(_, is_set)| *is_set);
        push_list(&mut self.flags, set.map(|(flag, _)| flag));
    }

    /// Returns the rows as one batch.
    ///
    /// # Errors
    /// Only when the columns do not fit the schema, which a test excludes.
    pub(crate) fn finish(mut self) -> Result<RecordBatch, ArrowError> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.company_id.finish()),
            Arc::new(self.source_id.finish()),
            Arc::new(self.message_id.finish()),
            Arc::new(self.payload_sha256.finish()),
            Arc::new(self.event_type.finish()),
            Arc::new(self.schema_version.finish()),
            Arc::new(self.event_time.finish()),
            Arc::new(self.received_at.finish()),
            Arc::new(self.time_rule.finish()),
            Arc::new(self.properties.finish()),
            Arc::new(self.context.finish()),
            Arc::new(self.event_name.finish()),
            Arc::new(self.event_name_raw.finish()),
            Arc::new(self.original_timestamp.finish()),
            Arc::new(self.sent_at.finish()),
            Arc::new(self.clock_skew_ms.finish()),
            Arc::new(self.actor_type.finish()),
            Arc::new(self.actor_id.finish()),
            Arc::new(self.anonymous_id.finish()),
        ];
        columns.extend(
            self.promoted
                .iter_mut()
                .map(|builder| -> ArrayRef { Arc::new(builder.finish()) }),
        );
        columns.extend([
            Arc::new(self.rating.finish()) as ArrayRef,
            Arc::new(self.page_url.finish()),
            Arc::new(self.page_path.finish()),
            Arc::new(self.locale.finish()),
            Arc::new(self.timezone.finish()),
            Arc::new(self.user_agent.finish()),
            Arc::new(self.ip.finish()),
            Arc::new(self.library_name.finish()),
            Arc::new(self.library_version.finish()),
            Arc::new(self.traits.finish()),
            Arc::new(self.attempt.finish()),
            Arc::new(self.flags.finish()),
            Arc::new(self.property_violations.finish()),
            Arc::new(self.ingest_batch_id.finish()),
            Arc::new(self.agent_id.finish()),
            Arc::new(self.epoch.finish()),
            Arc::new(self.sequence.finish()),
        ]);
        if self.by_plan.is_empty() {
            return RecordBatch::try_new(Arc::clone(&SCHEMA), columns);
        }
        let mut fields = SCHEMA.fields().to_vec();
        for column in self.by_plan {
            let (field, values) = column.finish();
            fields.push(Arc::new(field));
            columns.push(values);
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
    }
}

/// Appends a list; null where there is nothing in it, which takes no room.
fn push_list<T: AsRef<str>>(
    builder: &mut ListBuilder<StringBuilder>,
    values: impl Iterator<Item = T>,
) {
    let mut any = false;
    for value in values {
        builder.values().append_value(value);
        any = true;
    }
    builder.append(any);
}

/// Returns how large an event is: its body, less the properties that are not stored.
fn bytes_without_omitted(record: &Record, sent: &Event<'_>, stored: &Event<'_>) -> usize {
    let bytes = |event: &Event<'_>| event.properties.canonical().len();
    let omitted = bytes(sent).saturating_sub(bytes(stored));
    record.body.len().saturating_sub(omitted)
}

/// An admin's own event is about that admin, a contact's about that contact.
fn implied_id<'a>(event: &'a Event<'_>, actor: Option<Actor>, key: &str) -> Option<&'a str> {
    match (key, actor?) {
        ("admin_id", Actor::Admin) | ("contact_id", Actor::ContactUser | Actor::ContactLead) => {
            event.user_id.as_deref()
        }
        _ => None,
    }
}

fn user_agent<'a>(record: &'a Record, event: &'a Event<'_>) -> Option<&'a str> {
    text(&event.context, "userAgent").or(record.user_agent.as_deref())
}

fn library<'a>(event: &'a Event<'_>, key: &str) -> Option<&'a str> {
    object(&event.context, "library").and_then(|library| text(library, key))
}

fn object<'a, 'e>(object: &'a Object<'e>, key: &str) -> Option<&'a Object<'e>> {
    object.get(key)?.as_object()
}

fn text<'a>(object: &'a Object<'_>, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// Ids are opaque: a number is as good as its digits.
fn id_text<'a>(object: &'a Object<'_>, key: &str) -> Option<Cow<'a, str>> {
    match object.get(key)? {
        Value::Text(text) if !text.is_empty() => Some(Cow::Borrowed(text)),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    }
}
