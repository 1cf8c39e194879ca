//! The fields of an event that the rules ask for, read without keeping the rest.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

use crate::json::{self, Value};

/// The fields that decide. A key that comes twice counts as its last.
#[derive(Debug, Default)]
pub(crate) struct Fields<'a> {
    pub(super) kind: Field<'a>,
    pub(super) message_id: Field<'a>,
    pub(super) user_id: Field<'a>,
    pub(super) anonymous_id: Field<'a>,
    pub(super) event: Field<'a>,
    pub(super) original_timestamp: Field<'a>,
    pub(super) timestamp: Field<'a>,
    pub(super) sent_at: Field<'a>,
    pub(super) properties: Field<'a>,
    pub(super) context: Field<'a>,
    pub(super) traits: Field<'a>,
    pub(super) distinct_id: Field<'a>,
    pub(super) uuid: Field<'a>,
}

impl<'a> Fields<'a> {
    /// Takes them from a parsed event.
    pub(crate) fn of(object: &'a json::Object<'_>) -> Self {
        let mut fields = Self::default();
        for (key, value) in object.iter() {
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
pub(super) enum Field<'a> {
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
    fn of(value: &'a Value<'_>) -> Self {
        match value {
            Value::Null => Self::Missing,
            Value::Text(text) => Self::Text(Cow::Borrowed(text)),
            Value::Number(number) => Self::Number(number.clone()),
            Value::Object(_) => Self::Object,
            Value::Array(_) | Value::Bool(_) => Self::Other,
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_text(&self) -> bool {
        match self {
            Self::Text(text) => !text.trim().is_empty(),
            Self::Number(_) => true,
            _ => false,
        }
    }

    /// Returns an id: numbers as digits (some clients send numeric ids), blank as missing.
    pub(super) fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) if !text.trim().is_empty() => Some(text),
            Self::Number(number) => Some(Cow::Owned(number.to_string())),
            _ => None,
        }
    }
}

/// A JSON text: an event, or something else.
pub(super) enum Json<'a> {
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
