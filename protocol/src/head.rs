//! What decides whether an event is valid, and the few fields that the agent's front reads, in one
//! pass that keeps nothing else. [`crate::Event`] asks the same rules, so that the verdict which a
//! client hears is the one that the collector comes to.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::event::{EventType, Failure, Invalid, MESSAGE_ID_CHARS_MAX, posthog};
use crate::timestamp;

/// The ids of an event and the verdict on it. Blank ids count as missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head<'a> {
    /// `messageId`, or PostHog's `uuid`.
    pub message_id: Option<Cow<'a, str>>,
    /// `userId`, or PostHog's `distinct_id`.
    pub user_id: Option<Cow<'a, str>>,
    /// `anonymousId`. PostHog's stands in properties that are not read here: missing.
    pub anonymous_id: Option<Cow<'a, str>>,
    /// `sentAt` of the event itself.
    pub sent_at: Option<Cow<'a, str>>,
    /// Why the event will be quarantined; `None` when it is valid.
    pub invalid: Option<Invalid>,
}

impl<'a> Head<'a> {
    /// Reads the head of one event. `path_type` is the type that the request's path implies.
    pub fn of(body: &'a [u8], path_type: Option<EventType>) -> Self {
        // The text is checked once as a whole, not string by string.
        let fields = std::str::from_utf8(body)
            .ok()
            .and_then(|text| serde_json::from_str(text).ok());
        let fields: Fields<'a> = match fields {
            Some(Json::Object(fields)) => *fields,
            Some(Json::Other) => return Self::not("is not a JSON object"),
            None => return Self::not("is not JSON"),
        };
        let invalid = judge(&fields, path_type).err();
        let (message_id, user_id) = match Form::of(&fields, path_type) {
            Form::Segment => (fields.message_id, fields.user_id),
            Form::PostHog => (fields.uuid, fields.distinct_id),
        };
        Self {
            message_id: message_id.into_text(),
            user_id: user_id.into_text(),
            anonymous_id: fields.anonymous_id.into_text(),
            sent_at: fields.sent_at.into_text(),
            invalid,
        }
    }

    fn not(message: &'static str) -> Self {
        Self {
            invalid: Some(Invalid {
                failure: Failure::PayloadFormat,
                path: "$",
                message,
            }),
            ..Self::default()
        }
    }
}

/// Whose fields an event has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Segment's, RudderStack's, Jitsu's and Headwater's own.
    Segment,
    /// PostHog's, see [`posthog`].
    PostHog,
}

impl Form {
    fn of(fields: &Fields<'_>, path_type: Option<EventType>) -> Self {
        let has_segment_id = [&fields.message_id, &fields.user_id, &fields.anonymous_id]
            .into_iter()
            .any(Field::is_text);
        if path_type.is_none() && fields.distinct_id.is_text() && !has_segment_id {
            Self::PostHog
        } else {
            Self::Segment
        }
    }
}

/// What the rules find out on their way.
pub(crate) struct Verdict {
    pub(crate) form: Form,
    pub(crate) event_type: EventType,
    /// Microseconds since the Unix epoch.
    pub(crate) original_timestamp: Option<i64>,
}

/// The rules. They never look at a clock; the error names the first field at fault.
pub(crate) fn judge(fields: &Fields<'_>, path_type: Option<EventType>) -> Result<Verdict, Invalid> {
    let form = Form::of(fields, path_type);
    let event_type = match form {
        Form::PostHog => fields.event.as_str().map(posthog::event_type),
        Form::Segment => path_type.or_else(|| EventType::parse(fields.kind.as_str()?)),
    };
    let event_type = event_type.ok_or_else(|| match form {
        Form::PostHog => invalid(Failure::SchemaViolation, "$.event", "is missing"),
        Form::Segment => invalid(
            Failure::Protocol,
            "$.type",
            "is missing or not a known type",
        ),
    })?;
    let (id, id_path) = match form {
        Form::PostHog => (&fields.uuid, "$.uuid"),
        Form::Segment => (&fields.message_id, "$.messageId"),
    };
    if id
        .as_str()
        .is_some_and(|id| !id.trim().is_empty() && id.chars().count() > MESSAGE_ID_CHARS_MAX)
    {
        return Err(invalid(
            Failure::Protocol,
            id_path,
            "is longer than 100 characters",
        ));
    }
    let is_anybody =
        form == Form::PostHog || fields.user_id.is_text() || fields.anonymous_id.is_text();
    if !is_anybody && event_type != EventType::Alias {
        return Err(invalid(
            Failure::IdentityMissing,
            "$.userId",
            "and `anonymousId` are both missing",
        ));
    }
    if event_type == EventType::Track && !fields.event.is_text() {
        return Err(invalid(Failure::SchemaViolation, "$.event", "is missing"));
    }
    let original_timestamp = original_timestamp(fields)?;
    for (field, path) in [
        (&fields.properties, "$.properties"),
        (&fields.context, "$.context"),
        (&fields.traits, "$.traits"),
    ] {
        if !matches!(field, Field::Missing | Field::Object) {
            return Err(invalid(Failure::SchemaViolation, path, "is not an object"));
        }
    }
    Ok(Verdict {
        form,
        event_type,
        original_timestamp,
    })
}

fn original_timestamp(fields: &Fields<'_>) -> Result<Option<i64>, Invalid> {
    let time = match &fields.original_timestamp {
        Field::Missing => &fields.timestamp,
        present => present,
    };
    if matches!(time, Field::Missing) {
        return Ok(None);
    }
    let parsed = time.as_str().and_then(timestamp::parse);
    parsed.map(Some).ok_or_else(|| {
        invalid(
            Failure::TimeInvalid,
            "$.timestamp",
            "is not an ISO-8601 time",
        )
    })
}

fn invalid(failure: Failure, path: &'static str, message: &'static str) -> Invalid {
    Invalid {
        failure,
        path,
        message,
    }
}

/// The fields that decide. A key that comes twice counts as its last.
#[derive(Debug, Default)]
pub(crate) struct Fields<'a> {
    kind: Field<'a>,
    message_id: Field<'a>,
    user_id: Field<'a>,
    anonymous_id: Field<'a>,
    event: Field<'a>,
    original_timestamp: Field<'a>,
    timestamp: Field<'a>,
    sent_at: Field<'a>,
    properties: Field<'a>,
    context: Field<'a>,
    traits: Field<'a>,
    distinct_id: Field<'a>,
    uuid: Field<'a>,
}

impl<'a> Fields<'a> {
    /// Takes them from a parsed event.
    pub(crate) fn of(object: &'a Map<String, Value>) -> Self {
        let mut fields = Self::default();
        for (key, value) in object {
            if let Some(place) = fields.place(key) {
                *place = Field::of(value);
            }
        }
        fields
    }

    fn place(&mut self, key: &str) -> Option<&mut Field<'a>> {
        let place = match key {
            "type" => &mut self.kind,
            "messageId" => &mut self.message_id,
            "userId" => &mut self.user_id,
            "anonymousId" => &mut self.anonymous_id,
            "event" => &mut self.event,
            "originalTimestamp" => &mut self.original_timestamp,
            "timestamp" => &mut self.timestamp,
            "sentAt" => &mut self.sent_at,
            "properties" => &mut self.properties,
            "context" => &mut self.context,
            "traits" => &mut self.traits,
            "distinct_id" => &mut self.distinct_id,
            "uuid" => &mut self.uuid,
            _ => return None,
        };
        Some(place)
    }
}

/// A value, as far as the rules look at it.
#[derive(Debug, Default)]
pub(crate) enum Field<'a> {
    /// Not there, or null.
    #[default]
    Missing,
    Text(Cow<'a, str>),
    Number(Number),
    Object,
    /// An array or a truth value.
    Other,
}

impl<'a> Field<'a> {
    fn of(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Missing,
            Value::String(text) => Self::Text(Cow::Borrowed(text)),
            Value::Number(number) => Self::Number(number.clone()),
            Value::Object(_) => Self::Object,
            Value::Array(_) | Value::Bool(_) => Self::Other,
        }
    }

    fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn is_text(&self) -> bool {
        match self {
            Self::Text(text) => !text.trim().is_empty(),
            Self::Number(_) => true,
            _ => false,
        }
    }

    /// Returns an id: numbers as digits (some clients send numeric ids), blank as missing.
    fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) if !text.trim().is_empty() => Some(text),
            Self::Number(number) => Some(Cow::Owned(number.to_string())),
            _ => None,
        }
    }
}

/// A JSON text: an event, or something else.
enum Json<'a> {
    Object(Box<Fields<'a>>),
    Other,
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EventVisitor)
    }
}

impl<'de> Deserialize<'de> for Field<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct EventVisitor;

impl<'de> Visitor<'de> for EventVisitor {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
        let mut fields = Box::<Fields<'de>>::default();
        while let Some((key, value)) = map.next_entry::<Field<'de>, Field<'de>>()? {
            if let Some(place) = key.as_str().and_then(|key| fields.place(key)) {
                *place = value;
            }
        }
        Ok(Json::Object(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Json<'de>, A::Error> {
        FieldVisitor.visit_seq(seq)?;
        Ok(Json::Other)
    }

    fn visit_unit<E>(self) -> Result<Json<'de>, E> {
        Ok(Json::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json<'de>, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json<'de>, E> {
        Ok(Json::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json<'de>, E> {
        Ok(Json::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json<'de>, E> {
        Ok(Json::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Json<'de>, E> {
        Ok(Json::Other)
    }
}

/// Reads a value to its end as strictly as a full parse does (depth, numbers, escapes), and keeps
/// only what [`Field`] has room for.
struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Field<'de>, E> {
        Ok(Field::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Field<'de>, E> {
        Ok(Field::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Field<'de>, E> {
        Ok(Number::from_f64(number).map_or(Field::Missing, Field::Number))
    }

    fn visit_unit<E>(self) -> Result<Field<'de>, E> {
        Ok(Field::Missing)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field<'de>, E> {
        Ok(Field::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field<'de>, A::Error> {
        while map.next_entry::<Field<'de>, Field<'de>>()?.is_some() {}
        Ok(Field::Object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field<'de>, A::Error> {
        while seq.next_element::<Field<'de>>()?.is_some() {}
        Ok(Field::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Event;
    use proptest::prelude::*;

    fn agree(body: &[u8], path_type: Option<EventType>) {
        let head = Head::of(body, path_type);
        match Event::parse(body, path_type, None) {
            Err(invalid) => assert_eq!(head.invalid, Some(invalid)),
            Ok(event) => {
                assert_eq!(head.invalid, None);
                assert_eq!(head.user_id.as_deref(), event.user_id.as_deref());
                assert_eq!(head.anonymous_id.as_deref(), event.anonymous_id.as_deref());
                let id = (!event.id_from_server).then_some(event.message_id.as_str());
                assert_eq!(head.message_id.as_deref(), id);
                assert_eq!(
                    head.sent_at.as_deref().and_then(timestamp::parse),
                    event.sent_at
                );
            }
        }
    }

    /// A value as a client might send it for a field that decides, odd ones included.
    fn value() -> impl Strategy<Value = String> {
        let odd = [
            "null",
            "true",
            "7",
            "-1",
            "1.5",
            "1e999",
            "\"\"",
            "\" \"",
            "\"u1\"",
            "\"track\"",
            "\"page\"",
            "\"a\\u00e9\\n\"",
            "\"\\ud800\"",
            "[]",
            "[1,{}]",
            "{}",
            "{\"a\":[{}]}",
            "{\"a\":1,}",
            "\"2026-01-01T00:00:00Z\"",
            "\"soon\"",
            "\"2026-01-01 00:00:00\"",
            "nul",
        ];
        let long =
            ["x".repeat(100), "ä".repeat(101), " ".repeat(101)].map(|id| format!("\"{id}\""));
        let deep = [120, 140].map(|depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
        let all = odd.map(str::to_owned).into_iter().chain(long).chain(deep);
        prop::sample::select(all.collect::<Vec<_>>())
    }

    fn key() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "type",
            "messageId",
            "userId",
            "user\\u0049d",
            "anonymousId",
            "event",
            "originalTimestamp",
            "timestamp",
            "sentAt",
            "properties",
            "context",
            "traits",
            "distinct_id",
            "uuid",
            "x",
        ])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn the_front_and_the_collector_come_to_one_verdict(
            entries in prop::collection::vec((key(), value()), 0..9),
            sound in prop::option::of(prop::sample::select(vec![Form::Segment, Form::PostHog])),
            path_type in prop::option::of(prop::sample::select(vec![EventType::Track, EventType::Alias])),
        ) {
            let mut entries: Vec<String> = entries
                .iter()
                .map(|(key, value)| format!("\"{key}\":{value}"))
                .collect();
            match sound {
                None => {}
                Some(Form::Segment) => {
                    entries.push(r#""type":"track","event":"E","userId":"u""#.to_owned());
                }
                Some(Form::PostHog) => {
                    entries.push(r#""event":"$pageview","distinct_id":"u","uuid":"1""#.to_owned());
                }
            }
            agree(format!("{{{}}}", entries.join(",")).as_bytes(), path_type);
        }
    }

    #[test]
    fn what_is_no_object_has_the_same_verdict() {
        for body in [
            b"".as_slice(),
            b"{",
            b"[1]",
            b"[1",
            b"7",
            b"-7",
            b"0.5",
            b"\"text\"",
            b"null",
            b"true",
            b"{} {}",
            b"\xff",
            b"{\"a\":\"\xff\"}",
            b"\xef\xbb\xbf{}",
        ] {
            agree(body, None);
        }
    }
}
