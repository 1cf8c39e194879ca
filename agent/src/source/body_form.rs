//! The forms of a body, and how each is cut into its events. Pure.
//!
//! Each event keeps the bytes that the client sent; only MessagePack is rewritten, once, as JSON.

use std::borrow::Cow;
use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use super::endpoint::Endpoint;
use super::msgpack;

/// What the headers say about the body. Most clients say JSON whatever they send; only these two
/// declarations change how a body is read, and only on `/v1/events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Declared {
    /// MessagePack.
    MessagePack,
    /// One JSON object per line.
    Lines,
    /// Something else, or nothing: what it is shows in the body.
    Other,
}

impl Declared {
    pub(super) fn of(content_type: Option<&str>) -> Self {
        let essence = content_type.unwrap_or_default().split(';').next();
        match essence
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase()
            .as_str()
        {
            "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack" => {
                Self::MessagePack
            }
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Self::Lines,
            _ => Self::Other,
        }
    }
}

/// Memory of an event in a list, which has room for twice as many when it has just grown.
const LISTED_BYTES: u64 = 2 * size_of::<Cow<'_, [u8]>>() as u64;

/// Most bytes of JSON that a byte of MessagePack becomes: `false` and a comma, or a control character.
const JSON_PER_BYTE: u64 = 6;

/// Longest write key or time that a body is asked for, in bytes of JSON: either would be a copy.
const TEXT_BYTES_MAX: usize = 4096;

/// How much a body may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most events.
    pub(super) events_max: usize,
    /// Most bytes of JSON that MessagePack may become.
    pub(super) bytes_max: u64,
}

/// Why a body as a whole cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is not what the path takes.
    Unreadable(&'static str),
    /// It holds more events than allowed.
    TooMany,
    /// It becomes larger than allowed.
    TooLarge,
}

/// A body cut into its events.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    /// Write key of the body.
    pub(super) write_key: Option<String>,
    /// When the client sent the body.
    pub(super) sent_at: Option<String>,
    pub(super) events: Result<Vec<Cow<'a, [u8]>>, Refusal>,
}

impl<'a> Parts<'a> {
    fn anonymous(events: Result<Vec<Cow<'a, [u8]>>, Refusal>) -> Self {
        Self {
            write_key: None,
            sent_at: None,
            events,
        }
    }

    /// Returns the most memory that cutting a body of `length` bytes can take, in bytes, beside it.
    pub(super) fn bytes_max(
        endpoint: Endpoint,
        declared: Declared,
        length: usize,
        limits: Limits,
    ) -> u64 {
        let length = length as u64;
        if let Endpoint::Single(_) = endpoint {
            return LISTED_BYTES;
        }
        // An event and what parts it from the next one take two bytes; one too many is looked at.
        let listed = (length / 2 + 1).min(limits.events_max as u64 + 1) * LISTED_BYTES;
        let rewritten = match is_message_pack(endpoint, declared) {
            true => (length * JSON_PER_BYTE).min(limits.bytes_max),
            false => 0,
        };
        listed + rewritten
    }

    /// Cuts `body` as `endpoint` takes it.
    pub(super) fn of(
        endpoint: Endpoint,
        declared: Declared,
        body: &'a [u8],
        limits: Limits,
    ) -> Self {
        match (endpoint, declared) {
            _ if is_message_pack(endpoint, declared) => {
                let events = msgpack::events(body, limits);
                Self::anonymous(events.map(|events| events.into_iter().map(Cow::Owned).collect()))
            }
            (Endpoint::Events, Declared::Lines) => Self::anonymous(lines(body, limits)),
            (Endpoint::Events, Declared::Other) => Self::of_detected(body, limits),
            _ => Self::of_object(endpoint, body, limits),
        }
    }

    /// An array, one object, or else lines.
    fn of_detected(body: &'a [u8], limits: Limits) -> Self {
        let text = body.trim_ascii();
        if text.starts_with(b"[") {
            let array = serde_json::Deserializer::from_slice(text);
            return Self::anonymous(items(array, limits, "the body is not a JSON array"));
        }
        if serde_json::from_slice::<Fields<'_>>(text).is_ok() {
            return Self::of_object(Endpoint::Events, text, limits);
        }
        Self::anonymous(lines(text, limits))
    }

    /// One JSON object: an event, or a batch around events.
    fn of_object(endpoint: Endpoint, body: &'a [u8], limits: Limits) -> Self {
        let Ok(fields) = serde_json::from_slice::<Fields<'_>>(body) else {
            let refusal = Refusal::Unreadable("the body is not a JSON object");
            return Self::anonymous(Err(refusal));
        };
        let text = |field: Option<&RawValue>| -> Option<String> {
            let field = field.filter(|field| field.get().len() <= TEXT_BYTES_MAX)?;
            serde_json::from_str(field.get()).ok()
        };
        let is_batch = matches!(endpoint, Endpoint::Batch | Endpoint::Capture);
        let one = || Ok(vec![Cow::Borrowed(body.trim_ascii())]);
        let events = match fields.batch {
            _ if !is_batch => one(),
            Some(batch) => {
                let array = serde_json::Deserializer::from_str(batch.get());
                items(array, limits, "`batch` is not an array")
            }
            None if fields.has_type => one(),
            None => Err(Refusal::Unreadable("there is no `batch`")),
        };
        Self {
            write_key: text(fields.write_key).or_else(|| text(fields.api_key)),
            // One event says it itself.
            sent_at: text(fields.sent_at)
                .or_else(|| text(fields.sent_at_of_posthog))
                .filter(|_| is_batch),
            events,
        }
    }
}

fn is_message_pack(endpoint: Endpoint, declared: Declared) -> bool {
    endpoint == Endpoint::Events && declared == Declared::MessagePack
}

/// The fields of an event or a batch that the agent itself reads; others are not held.
#[derive(Default)]
struct Fields<'a> {
    has_type: bool,
    batch: Option<&'a RawValue>,
    write_key: Option<&'a RawValue>,
    api_key: Option<&'a RawValue>,
    sent_at: Option<&'a RawValue>,
    sent_at_of_posthog: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some(Key(key)) = map.next_key()? {
                    let field = match &*key {
                        "batch" => &mut fields.batch,
                        "writeKey" => &mut fields.write_key,
                        "api_key" => &mut fields.api_key,
                        "sentAt" => &mut fields.sent_at,
                        "sent_at" => &mut fields.sent_at_of_posthog,
                        other => {
                            fields.has_type |= other == "type";
                            // Text in it that is none makes the body unreadable.
                            map.next_value::<&RawValue>()?;
                            continue;
                        }
                    };
                    *field = Some(map.next_value()?);
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// A key, borrowed where nothing in it is escaped.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Cuts lines, each an event. A bad one is a bad event; when all are, the body is no such thing.
fn lines(body: &[u8], limits: Limits) -> Result<Vec<Cow<'_, [u8]>>, Refusal> {
    let lines = body
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty());
    let mut events = Vec::new();
    let mut any_is_json = false;
    for line in lines {
        if events.len() == limits.events_max {
            return Err(Refusal::TooMany);
        }
        any_is_json = any_is_json || serde_json::from_slice::<IgnoredAny>(line).is_ok();
        events.push(Cow::Borrowed(line));
    }
    if any_is_json || events.is_empty() {
        Ok(events)
    } else {
        Err(Refusal::Unreadable("no line of the body is JSON"))
    }
}

/// Cuts a JSON array, of which one item too many is held at most: a small body must not become a large
/// list.
fn items<'a>(
    mut array: serde_json::Deserializer<impl serde_json::de::Read<'a>>,
    limits: Limits,
    otherwise: &'static str,
) -> Result<Vec<Cow<'a, [u8]>>, Refusal> {
    let length_max = limits.events_max + 1;
    let items = Items { length_max }.deserialize(&mut array);
    let items = items.and_then(|items| array.end().map(|()| items));
    match items {
        Err(_) => Err(Refusal::Unreadable(otherwise)),
        Ok(items) if items.len() == length_max => Err(Refusal::TooMany),
        Ok(items) => Ok(items),
    }
}

struct Items {
    length_max: usize,
}

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<Cow<'de, [u8]>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<Cow<'de, [u8]>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut held = Vec::new();
        while held.len() < self.length_max
            && let Some(item) = items.next_element::<&RawValue>()?
        {
            held.push(Cow::Borrowed(item.get().as_bytes()));
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(held)
    }
}
