//! The forms of a body, and how each is cut into its events. Pure.
//!
//! Each event keeps the bytes that the client sent; only MessagePack is rewritten, once, as JSON.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};
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

    /// Cuts `body` as `endpoint` takes it.
    pub(super) fn of(
        endpoint: Endpoint,
        declared: Declared,
        body: &'a [u8],
        limits: Limits,
    ) -> Self {
        match (endpoint, declared) {
            (Endpoint::Events, Declared::MessagePack) => {
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
            let events = serde_json::from_slice::<Bounded<'_>>(text)
                .map_err(|_| Refusal::Unreadable("the body is not a JSON array"));
            return Self::anonymous(events.and_then(|events| events.within(limits)));
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
        let text =
            |name: &str| -> Option<String> { serde_json::from_str(fields.get(name)?.get()).ok() };
        let is_batch = matches!(endpoint, Endpoint::Batch | Endpoint::Capture);
        let one = || Ok(vec![Cow::Borrowed(body.trim_ascii())]);
        let events = match fields.get("batch") {
            _ if !is_batch => one(),
            Some(batch) => serde_json::from_str::<Bounded<'_>>(batch.get())
                .map_err(|_| Refusal::Unreadable("`batch` is not an array"))
                .and_then(|events| events.within(limits)),
            None if fields.contains_key("type") => one(),
            None => Err(Refusal::Unreadable("there is no `batch`")),
        };
        Self {
            write_key: text("writeKey").or_else(|| text("api_key")),
            // One event says it itself.
            sent_at: text("sentAt")
                .or_else(|| text("sent_at"))
                .filter(|_| is_batch),
            events,
        }
    }
}

/// The fields of an event or a batch that the agent itself reads.
type Fields<'a> = HashMap<Cow<'a, str>, &'a RawValue>;

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

/// An array of JSON values of which no more than [`Bounded::LENGTH_MAX`] are held: a small body must
/// not become a large list.
struct Bounded<'a>(Vec<&'a RawValue>);

impl Bounded<'_> {
    /// Above every `http.request_events_max` that can be configured.
    const LENGTH_MAX: usize = crate::config::REQUEST_EVENTS_MAX + 1;
}

impl<'a> Bounded<'a> {
    fn within(self, limits: Limits) -> Result<Vec<Cow<'a, [u8]>>, Refusal> {
        if self.0.len() > limits.events_max {
            return Err(Refusal::TooMany);
        }
        let events = self.0.into_iter();
        Ok(events
            .map(|event| Cow::Borrowed(event.get().as_bytes()))
            .collect())
    }
}

impl<'de> Deserialize<'de> for Bounded<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;

        impl<'de> Visitor<'de> for Items {
            type Value = Bounded<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut held = Vec::new();
                while held.len() < Bounded::LENGTH_MAX
                    && let Some(item) = items.next_element()?
                {
                    held.push(item);
                }
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Bounded(held))
            }
        }

        deserializer.deserialize_seq(Items)
    }
}
