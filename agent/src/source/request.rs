//! From the bytes of a request to records: write key, events, verdicts. Pure.
//!
//! An event that is not valid gets its record all the same: the collector quarantines it, and the
//! client hears which one it was.

use headwater_protocol::{EventType, Head, Record};

use super::answer::{Answer, Rejected};
use super::body::Body;
use super::body_form::{Limits, Parts, Refusal};
use super::endpoint::Endpoint;
use super::facts::{Facts, cut};
use crate::config::WriteKey;
use crate::reload::Live;

/// What is kept of a body that cannot be read, or of an event that is too large: as much as
/// `raw.quarantine` keeps.
const KEPT_BYTES: usize = 64 * 1024;

/// Bytes of a client's id that are given back to it; it may be the very thing that is wrong.
const ID_BYTES_MAX: usize = 400;

/// What is to be stored, and what the client hears then.
pub(super) struct Prepared {
    pub(super) records: Vec<Record>,
    pub(super) rejected: Vec<Rejected>,
    /// The client's id of every event in turn, where its answer names each.
    pub(super) named: Option<Vec<Option<String>>>,
    /// The body as a whole was unreadable: this is the answer, once its bytes are stored.
    pub(super) unreadable: Option<Answer>,
}

/// Turns a body into records and verdicts.
pub(super) fn prepare(
    live: &Live,
    endpoint: Endpoint,
    facts: &Facts,
    body: Body,
) -> Result<Prepared, Answer> {
    let header_key = match facts.write_key.as_deref() {
        Some(key) => Some(known_key(live, key)?),
        None => None,
    };
    let body = match body.inflate(live.http.inflated_bytes_max) {
        Err(Answer::Unreadable(message)) => return unreadable(facts, header_key, b"", message),
        other => other?,
    };
    let limits = Limits {
        events_max: live.http.request_events_max,
        bytes_max: live.http.inflated_bytes_max,
    };
    let parts = Parts::of(endpoint, facts.declared, &body.bytes, limits);
    let key = match (header_key, parts.write_key.as_deref()) {
        (Some(key), _) => Some(key),
        (None, Some(key)) => Some(known_key(live, key)?),
        (None, None) => None,
    };
    let events = match parts.events {
        Ok(events) => events,
        Err(Refusal::Unreadable(message)) => {
            return unreadable(facts, key, &body.bytes, message);
        }
        Err(Refusal::TooMany) => {
            return Err(Answer::TooMany {
                events_max: limits.events_max,
            });
        }
        Err(Refusal::TooLarge) => {
            return Err(Answer::TooLarge {
                bytes_max: limits.bytes_max,
            });
        }
    };
    let key = key.ok_or(Answer::UnknownKey(
        "there is no write key: use Basic authorization",
    ))?;
    let sent_at = parts.sent_at.as_deref().or(facts.sent_at.as_deref());
    let mut out = Preparation {
        facts,
        key,
        event_bytes_max: live.http.event_bytes_max,
        records: Vec::with_capacity(events.len()),
        rejected: Vec::new(),
        named: (endpoint == Endpoint::Capture).then(Vec::new),
    };
    for event in &events {
        match endpoint {
            Endpoint::Single(kind) => out.add(event, Some(kind), None),
            _ => out.add(event, None, sent_at),
        }
    }
    Ok(Prepared {
        records: out.records,
        rejected: out.rejected,
        named: out.named,
        unreadable: None,
    })
}

fn known_key<'a>(live: &'a Live, key: &str) -> Result<&'a WriteKey, Answer> {
    live.write_key(key)
        .ok_or(Answer::UnknownKey("the write key is not known"))
}

/// Keeps the beginning of a body that cannot be read, when it is known whose it is.
fn unreadable(
    facts: &Facts,
    key: Option<&WriteKey>,
    body: &[u8],
    message: &'static str,
) -> Result<Prepared, Answer> {
    let key = key.ok_or(Answer::Unreadable(message))?;
    if body.is_empty() {
        return Err(Answer::Unreadable(message));
    }
    let kept = &body[..body.len().min(KEPT_BYTES)];
    let rejected = Rejected {
        index: 0,
        message_id: None,
        code: "payload_format",
        path: "$",
    };
    Ok(Prepared {
        records: vec![facts.record(key, None, None, kept)],
        rejected: vec![rejected],
        named: None,
        unreadable: Some(Answer::Unreadable(message)),
    })
}

struct Preparation<'a> {
    facts: &'a Facts,
    key: &'a WriteKey,
    event_bytes_max: u64,
    records: Vec<Record>,
    rejected: Vec<Rejected>,
    named: Option<Vec<Option<String>>>,
}

impl Preparation<'_> {
    fn add(&mut self, event: &[u8], kind: Option<EventType>, sent_at: Option<&str>) {
        let index = self.records.len();
        let head = Head::of(event, kind);
        let message_id = || {
            let id = head.message_id.as_deref();
            id.map(|id| cut(id, ID_BYTES_MAX).to_owned())
        };
        // A cut event is no JSON any more, so the collector quarantines it.
        let is_too_large = event.len() as u64 > self.event_bytes_max;
        let kept = if is_too_large {
            self.rejected.push(Rejected {
                index,
                message_id: message_id(),
                code: "event_too_large",
                path: "$",
            });
            &event[..KEPT_BYTES.min(event.len() - 1)]
        } else {
            event
        };
        if let Some(invalid) = head.invalid.as_ref().filter(|_| !is_too_large) {
            self.rejected
                .push(Rejected::new(index, message_id(), invalid));
        }
        if let Some(named) = &mut self.named {
            named.push(message_id());
        }
        self.records
            .push(self.facts.record(self.key, kind, sent_at, kept));
    }
}
