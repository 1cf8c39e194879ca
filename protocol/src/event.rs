//! The one definition of an event: what the bodies of clients mean and when they are invalid.
//!
//! The agent's front uses it for its verdicts, the collector for staging. Validation never looks at
//! a clock, and an invalid event keeps its place: it is quarantined, not dropped.

pub(crate) mod posthog;

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::head::{self, Fields, Form, Verdict};
use crate::json::{Document, Object, Value};
use crate::record::Record;
use crate::timestamp;

/// Longest message id, in characters (Segment's limit).
pub const MESSAGE_ID_CHARS_MAX: usize = 100;

/// Kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventType {
    /// Something happened.
    Track,
    /// Who somebody is.
    Identify,
    /// A page was seen.
    Page,
    /// A screen was seen.
    Screen,
    /// Which account somebody belongs to.
    Group,
    /// Two ids are one person.
    Alias,
}

impl EventType {
    /// Returns the name on the wire and in the `type` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Track => "track",
            Self::Identify => "identify",
            Self::Page => "page",
            Self::Screen => "screen",
            Self::Group => "group",
            Self::Alias => "alias",
        }
    }

    /// Reads the name, `None` when it is none of the six.
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Track,
            Self::Identify,
            Self::Page,
            Self::Screen,
            Self::Group,
            Self::Alias,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == text)
    }
}

/// Class of a refusal, the `failure_type` column of `raw.quarantine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Not JSON, or not an object.
    PayloadFormat,
    /// A field that the protocol demands is missing or of a wrong type.
    Protocol,
    /// An event name or property breaks its schema.
    SchemaViolation,
    /// Neither `userId` nor `anonymousId`.
    IdentityMissing,
    /// A timestamp that is none.
    TimeInvalid,
    /// It is larger than its agent takes.
    Size,
    /// The record around the event does not decode.
    Encoding,
}

impl Failure {
    /// Returns the value of the `failure_type` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PayloadFormat => "payload_format",
            Self::Protocol => "protocol",
            Self::SchemaViolation => "schema_violation",
            Self::IdentityMissing => "identity_missing",
            Self::TimeInvalid => "time_invalid",
            Self::Size => "size",
            Self::Encoding => "encoding",
        }
    }
}

/// Why an event cannot be accepted. It is quarantined with these words; sending it again unchanged
/// gives the same answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Invalid {
    /// Class of the refusal.
    pub failure: Failure,
    /// JSON path of the field at fault, `$` for the whole event.
    pub path: &'static str,
    /// Which rule it breaks, in the words of JSON Schema where that has one: `type`, `required`, `enum`,
    /// `maxLength`, `format`; `size` for an event that is too large, `encoding` for bytes around which there
    /// is no record.
    pub keyword: &'static str,
    /// What is wrong; holds no value of the event.
    pub message: &'static str,
}

impl Invalid {
    /// The body is no JSON text.
    pub(crate) const NOT_JSON: Self = Self {
        failure: Failure::PayloadFormat,
        path: "$",
        keyword: "format",
        message: "is not JSON",
    };
    /// The body is JSON and no event.
    pub(crate) const NOT_AN_OBJECT: Self = Self {
        failure: Failure::PayloadFormat,
        path: "$",
        keyword: "type",
        message: "is not a JSON object",
    };
    /// Only the first part of the body is kept, because the event is too large.
    pub const TOO_LARGE: Self = Self {
        failure: Failure::Size,
        path: "$",
        keyword: "size",
        message: "is larger than `http.event_bytes_max` of its agent",
    };
    /// The bytes in the place of a record are none.
    pub const NOT_A_RECORD: Self = Self {
        failure: Failure::Encoding,
        path: "$",
        keyword: "encoding",
        message: "is not a record",
    };
}

/// A valid event. It borrows from the body what stands there as it is. Texts are as sent, except that
/// blank ids count as missing.
#[derive(Debug, Clone, PartialEq)]
pub struct Event<'a> {
    /// Kind of call.
    pub event_type: EventType,
    /// Id of the client's message; equal ids of one company are one event.
    pub message_id: Cow<'a, str>,
    /// Whether the client sent no id and it was derived from the payload.
    pub id_from_server: bool,
    /// SHA-256 of the canonical payload without `sentAt`, first 16 bytes.
    pub payload_sha256: [u8; 16],
    /// Event name of a `track`, page or screen name.
    pub name: Option<Cow<'a, str>>,
    /// `userId`.
    pub user_id: Option<Cow<'a, str>>,
    /// `anonymousId`.
    pub anonymous_id: Option<Cow<'a, str>>,
    /// `groupId` of a `group` call.
    pub group_id: Option<Cow<'a, str>>,
    /// `previousId` of an `alias` call.
    pub previous_id: Option<Cow<'a, str>>,
    /// `originalTimestamp` or `timestamp`, microseconds since the Unix epoch.
    pub original_timestamp: Option<i64>,
    /// `sentAt` of the event or its batch, microseconds since the Unix epoch.
    pub sent_at: Option<i64>,
    /// `properties`, empty when missing.
    pub properties: Document<'a>,
    /// `context`, empty when missing.
    pub context: Document<'a>,
    /// `traits`, when present.
    pub traits: Option<Document<'a>>,
}

impl<'a> Event<'a> {
    /// Parses and validates the body of `record`.
    ///
    /// # Errors
    /// [`Invalid`] names the first field at fault.
    pub fn from_record(record: &'a Record) -> Result<Self, Invalid> {
        if record.cut.is_some_and(|cut| cut.allowed_bytes.is_some()) {
            return Err(Invalid::TOO_LARGE);
        }
        let mut event = Self::parse(&record.body, record.event_type, record.sent_at.as_deref())?;
        posthog::add_library(&mut event, record.user_agent.as_deref());
        Ok(event)
    }

    /// Parses and validates one event.
    ///
    /// `path_type` is the type that the request's path implies, `batch_sent_at` the `sentAt` of the
    /// batch around the event.
    ///
    /// # Errors
    /// [`Invalid`] names the first field at fault.
    pub fn parse(
        body: &'a [u8],
        path_type: Option<EventType>,
        batch_sent_at: Option<&str>,
    ) -> Result<Self, Invalid> {
        let value = Value::parse(body).map_err(|_| Invalid::NOT_JSON)?;
        let Value::Object(mut object) = value else {
            return Err(Invalid::NOT_AN_OBJECT);
        };
        let Verdict {
            form,
            event_type,
            original_timestamp,
        } = head::judge(&Fields::of(&object), path_type)?;
        // The hash must not change when a retry refreshes `sentAt`.
        let own_sent_at = object.remove("sentAt");
        // A `sentAt` that cannot be read only loses the skew correction.
        let sent_at = own_sent_at
            .as_ref()
            .and_then(Value::as_str)
            .or(batch_sent_at)
            .and_then(timestamp::parse);
        if form == Form::PostHog {
            let event = posthog::build(object, event_type, original_timestamp, sent_at);
            return Ok(event);
        }
        let payload = Payload::of(&object);
        let payload_sha256 = payload.sha256;
        let name = match event_type {
            EventType::Track => text(&object, "event"),
            EventType::Page | EventType::Screen => text(&object, "name"),
            _ => None,
        };
        let properties = payload.document(&mut object, "properties");
        let context = payload.document(&mut object, "context");
        let traits = payload.document(&mut object, "traits");
        let message_id = text(&object, "messageId");
        let user_id = text(&object, "userId");
        let anonymous_id = text(&object, "anonymousId");
        let group_id = text(&object, "groupId");
        let previous_id = text(&object, "previousId");
        let id_from_server = message_id.is_none();
        let message_id = message_id.unwrap_or_else(|| payload_id(&payload_sha256));
        Ok(Self {
            event_type,
            message_id,
            id_from_server,
            payload_sha256,
            name,
            user_id,
            anonymous_id,
            group_id,
            previous_id,
            original_timestamp,
            sent_at,
            properties: properties.unwrap_or_default(),
            context: context.unwrap_or_default(),
            traits,
        })
    }
}

/// Returns a field as text: numbers as digits (some clients send numeric ids), null and blank as
/// missing.
fn text<'a>(object: &Object<'a>, key: &str) -> Option<Cow<'a, str>> {
    match object.get(key)? {
        Value::Text(text) if !text.trim().is_empty() => Some(text.clone()),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    }
}

fn object_of<'a>(object: &mut Object<'a>, key: &str) -> Option<Object<'a>> {
    match object.remove(key)? {
        Value::Object(inner) => Some(inner),
        _ => None,
    }
}

/// Returns the id of an event whose client gave it none.
fn payload_id(payload_sha256: &[u8; 16]) -> Cow<'static, str> {
    Cow::Owned(format!("payload-{}", hex(payload_sha256)))
}

/// The canonical text of an event without `sentAt`, from which its hash is taken.
struct Payload {
    sha256: [u8; 16],
    text: String,
    /// Where in `text` the values of [`DOCUMENTS`] stand.
    places: [Range<usize>; DOCUMENTS.len()],
}

/// Fields whose text goes into a column as it is: written once, for the hash.
const DOCUMENTS: [&str; 3] = ["context", "properties", "traits"];

impl Payload {
    fn of(object: &Object<'_>) -> Self {
        let mut text = String::with_capacity(1024);
        let mut places = [const { 0..0 }; DOCUMENTS.len()];
        object.write(&mut text, |key, place| {
            if let Some(known) = DOCUMENTS.iter().position(|known| *known == key) {
                places[known] = place;
            }
        });
        let digest = Sha256::digest(&text);
        let mut sha256 = [0; 16];
        sha256.copy_from_slice(&digest[..16]);
        Self {
            sha256,
            text,
            places,
        }
    }

    /// Takes one of [`DOCUMENTS`] out of the object that this is the text of.
    fn document<'a>(&self, object: &mut Object<'a>, key: &str) -> Option<Document<'a>> {
        let place = DOCUMENTS.iter().position(|known| *known == key)?;
        let inner = object_of(object, key)?;
        let text = &self.text[self.places[place].clone()];
        Some(Document::written(inner, text))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Event<'_>, Invalid> {
        Event::parse(body.as_bytes(), None, None)
    }

    #[test]
    fn invalid_events_name_the_field_at_fault() {
        let cases: &[(&str, Failure, &str, &str)] = &[
            ("{", Failure::PayloadFormat, "$", "format"),
            ("[1]", Failure::PayloadFormat, "$", "type"),
            (r#"{"userId":"u"}"#, Failure::Protocol, "$.type", "required"),
            (
                r#"{"type":"trak","userId":"u"}"#,
                Failure::Protocol,
                "$.type",
                "enum",
            ),
            (
                r#"{"type":"track","event":"E","userId":"","anonymousId":null}"#,
                Failure::IdentityMissing,
                "$.userId",
                "required",
            ),
            (
                r#"{"type":"track","userId":"u"}"#,
                Failure::SchemaViolation,
                "$.event",
                "required",
            ),
            (
                r#"{"type":"track","event":"E","userId":"u","timestamp":"soon"}"#,
                Failure::TimeInvalid,
                "$.timestamp",
                "format",
            ),
            (
                r#"{"type":"track","event":"E","userId":"u","properties":[1]}"#,
                Failure::SchemaViolation,
                "$.properties",
                "type",
            ),
            (
                r#"{"distinct_id":"u","uuid":"1"}"#,
                Failure::SchemaViolation,
                "$.event",
                "required",
            ),
            (
                r#"{"distinct_id":"u","event":" "}"#,
                Failure::SchemaViolation,
                "$.event",
                "required",
            ),
            (
                r#"{"distinct_id":"u","event":"E","timestamp":7}"#,
                Failure::TimeInvalid,
                "$.timestamp",
                "format",
            ),
            (
                r#"{"distinct_id":"u","event":"E","properties":[]}"#,
                Failure::SchemaViolation,
                "$.properties",
                "type",
            ),
            (
                r#"{"distinct_id":"","event":"E"}"#,
                Failure::Protocol,
                "$.type",
                "required",
            ),
        ];
        for (body, failure, path, keyword) in cases {
            let invalid = parse(body).unwrap_err();
            let found = (invalid.failure, invalid.path, invalid.keyword);
            assert_eq!(found, (*failure, *path, *keyword), "{body}");
        }
    }

    #[test]
    fn a_retry_with_another_sent_at_is_the_same_payload() {
        let first = parse(r#"{"type":"track","event":"E","userId":"u","sentAt":"2026-01-01T00:00:00Z","properties":{"b":1,"a":{"d":1,"c":2}}}"#).unwrap();
        let again = parse(r#"{"sentAt":"2026-01-02T00:00:00Z","properties":{"a":{"c":2,"d":1},"b":1},"userId":"u","event":"E","type":"track"}"#).unwrap();
        assert_eq!(first.payload_sha256, again.payload_sha256);
        assert_eq!(first.message_id, again.message_id);
        assert!(first.id_from_server);
        assert_ne!(first.sent_at, again.sent_at);
    }

    #[test]
    fn documents_have_the_text_that_they_would_be_written_as() {
        let event = parse(r#"{"type":"track","event":"E","userId":"u","traits":{"c":[1, 2]},"other":{"d":1},"properties":{"b":1,"a":"\u00e9"},"context":{"e":{"g":1,"f":2}}}"#).unwrap();
        assert_eq!(event.context.canonical(), r#"{"e":{"f":2,"g":1}}"#);
        assert_eq!(event.properties.canonical(), r#"{"a":"é","b":1}"#);
        assert_eq!(event.traits.unwrap().canonical(), r#"{"c":[1,2]}"#);
    }

    #[test]
    fn original_timestamp_wins_over_timestamp() {
        let event = parse(r#"{"type":"track","event":"E","userId":7,"originalTimestamp":"2026-01-01T00:00:00Z","timestamp":"2026-01-02T00:00:00Z"}"#).unwrap();
        assert_eq!(
            event.original_timestamp,
            timestamp::parse("2026-01-01T00:00:00Z")
        );
        assert_eq!(event.user_id.as_deref(), Some("7"));
    }
}
