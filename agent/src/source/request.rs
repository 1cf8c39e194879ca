//! From the bytes of a request to records: write key, events, verdicts. Pure.
//!
//! An event that is not valid gets its record all the same: the collector quarantines it, and the
//! client hears which one it was.

use std::borrow::Cow;
use std::sync::Arc;

use headwater_protocol::{Cut, EventType, Head, SourceKind, timestamp};

use super::Shared;
use super::answer::{Answer, Rejected};
use super::body::Body;
use super::body_form::{Limits, Parts, Refusal};
use super::endpoint::Endpoint;
use super::facts::{Facts, cut};
use super::memory::{ENTRY_BYTES, Need, Reservation};
use super::prepared::Prepared;
use super::privacy;
use super::scan::{self, Place};
use super::skew::Observation;
use crate::config::WriteKey;
use crate::reload::Live;
use crate::suppression::List;

/// What is kept of a body that cannot be read, or of an event that is too large: as much as
/// `raw.quarantine` keeps.
pub(super) const KEPT_BYTES: usize = 64 * 1024;

/// Bytes of a client's id that are given back to it; it may be the very thing that is wrong.
const ID_BYTES_MAX: usize = 400;

/// Longest text that may be a time, in bytes. Every event of a batch gets a copy.
const TIME_BYTES_MAX: usize = 64;

/// Turns a body into records and verdicts.
pub(super) fn prepare(
    shared: &Shared,
    live: &Live,
    endpoint: Endpoint,
    facts: &Facts,
    body: Body,
) -> Result<Prepared, Answer> {
    let header_key = match facts.write_key.as_deref() {
        Some(key) => Some(known_key(live, key)?),
        None => None,
    };
    // Nothing is left of a body whose gzip is damaged.
    let Body { bytes, mut memory } = body.inflate(live.http.inflated_bytes_max)?;
    let limits = Limits {
        events_max: live.http.request_events_max,
        bytes_max: live.http.inflated_bytes_max,
    };
    memory.grow(Parts::bytes_max(
        endpoint,
        facts.declared,
        bytes.len(),
        limits,
    ))?;
    let parts = Parts::of(endpoint, facts.declared, &bytes, limits);
    let key = match (header_key, parts.write_key.as_deref()) {
        (Some(key), _) => Some(key),
        (None, Some(key)) => Some(known_key(live, key)?),
        (None, None) => None,
    };
    let events = match parts.events {
        Ok(events) => events,
        Err(Refusal::Unreadable(message)) => {
            return unreadable(shared, facts, key, &bytes, message, memory);
        }
        Err(Refusal::TooMany) => {
            return Err(Answer::TooMany {
                events_max: limits.events_max,
            });
        }
        Err(Refusal::TooLarge) => {
            return Err(Answer::TooLarge {
                bytes_max: limits.bytes_max,
                setting: "http.inflated_bytes_max",
            });
        }
    };
    let key = key.ok_or(Answer::UnknownKey(
        "there is no write key: use Basic authorization",
    ))?;
    let sent_at = parts.sent_at.as_deref().or(facts.sent_at.as_deref());
    let sent_at = sent_at.filter(|text| text.len() <= TIME_BYTES_MAX);
    let head_bytes = facts.record(key, None, sent_at, b"").encoded_bytes_max();
    let event_bytes_max = live.http.event_bytes_max;
    let need = Need::of(&events, head_bytes as u64, event_bytes_max);
    memory.hold(bytes.len() as u64 + need.events + need.entries)?;
    let mut out = Preparation {
        shared,
        facts,
        key,
        suppressed: shared.suppression.now(),
        event_bytes_max,
        out: Prepared::new(&key.company, memory, events.len()),
    };
    if endpoint == Endpoint::Capture {
        out.out.verdicts = Some(Vec::new());
    }
    for (index, event) in events.iter().enumerate() {
        match endpoint {
            Endpoint::Single(kind) => out.add(index, event, Some(kind), None)?,
            _ => out.add(index, event, None, sent_at)?,
        }
    }
    drop(events);
    drop(bytes);
    out.out.release_all_but(need.entries);
    Ok(out.out)
}

fn known_key<'a>(live: &'a Live, key: &str) -> Result<&'a WriteKey, Answer> {
    live.write_key(key)
        .ok_or(Answer::UnknownKey("the write key is not known"))
}

/// Keeps the beginning of a body that cannot be read, when it is known whose it is, and that nobody is
/// in it whose events must not be kept.
fn unreadable(
    shared: &Shared,
    facts: &Facts,
    key: Option<&WriteKey>,
    body: &[u8],
    message: &'static str,
    mut memory: Reservation,
) -> Result<Prepared, Answer> {
    let answer = Answer::Unreadable(message);
    let Some(key) = key.filter(|_| !body.is_empty()) else {
        return Err(answer);
    };
    if shared.suppression.now().concerns(&key.company) {
        let mut out = Prepared::new(&key.company, memory, 0);
        out.suppressed = 1;
        out.unreadable = Some(answer);
        return Ok(out);
    }
    // With its addresses cut, in its record, and encoded.
    memory.hold(2 * body.len() as u64 + 3 * KEPT_BYTES as u64)?;
    let body = privacy::cut_addresses(body);
    let kept = &body[..body.len().min(KEPT_BYTES)];
    let rejected = Rejected {
        index: 0,
        message_id: None,
        code: "payload_format",
        path: "$",
    };
    let mut record = facts.record(key, None, None, kept);
    record.cut = (kept.len() < body.len()).then_some(Cut {
        sent_bytes: body.len() as u64,
        allowed_bytes: None,
    });
    let record = record.encode();
    memory.shrink(record.len() as u64 + ENTRY_BYTES);
    let mut out = Prepared::new(&key.company, memory, 1);
    out.unreadable = Some(answer);
    out.reject(rejected)?;
    out.add(record, None);
    Ok(out)
}

struct Preparation<'a> {
    shared: &'a Shared,
    facts: &'a Facts,
    key: &'a WriteKey,
    suppressed: Arc<List>,
    event_bytes_max: u64,
    out: Prepared,
}

impl Preparation<'_> {
    /// Adds what stands for the event at `index` of the request.
    ///
    /// # Errors
    /// As [`Reservation::hold`]: nothing of the request is stored then.
    fn add(
        &mut self,
        index: usize,
        event: &[u8],
        kind: Option<EventType>,
        sent_at: Option<&str>,
    ) -> Result<(), Answer> {
        let head = Head::of(event, kind);
        let id = head.message_id.as_deref();
        let id = || id.map(|id| cut(id, ID_BYTES_MAX).to_owned());
        if self.suppressed.holds(&self.key.company, event) {
            self.out.suppressed += 1;
            return self.out.tell(id(), Some("suppressed"));
        }
        let event = privacy::cut_addresses(event);
        let is_whole = event.len() as u64 <= self.event_bytes_max;
        let rejected = match &head.invalid {
            _ if !is_whole => Some(Rejected {
                index,
                message_id: id(),
                code: "event_too_large",
                path: "$",
            }),
            Some(invalid) => Some(Rejected::new(index, id(), invalid)),
            None => None,
        };
        // The record says that it is cut, so the collector quarantines it.
        let kept = if is_whole {
            &event[..]
        } else {
            &event[..KEPT_BYTES.min(event.len() - 1)]
        };
        let mut record = self.facts.record(self.key, kind, sent_at, kept);
        record.skew_ms = self.skew_ms(&head, &event, sent_at);
        record.cut = (!is_whole).then_some(Cut {
            sent_bytes: event.len() as u64,
            allowed_bytes: Some(self.event_bytes_max),
        });
        let fingerprinter = self.shared.fingerprinter.as_ref();
        let fingerprinter = fingerprinter.filter(|_| is_whole && head.message_id.is_some());
        let fingerprint = fingerprinter.map(|it| it.fingerprint(&record));
        let code = rejected.as_ref().map(|rejected| rejected.code);
        self.out.tell(id(), code)?;
        if let Some(rejected) = rejected {
            self.out.reject(rejected)?;
        }
        self.out.add(record.encode(), fingerprint);
        Ok(())
    }

    /// Notes what the event says about the clock of its device and returns what is known of it.
    fn skew_ms(&self, head: &Head<'_>, event: &[u8], sent_at: Option<&str>) -> Option<i64> {
        if self.key.kind == SourceKind::Server {
            return None;
        }
        let sent_at = timestamp::parse(head.sent_at.as_deref().or(sent_at)?)?;
        let device = match &head.anonymous_id {
            Some(id) => id.clone(),
            None => device_id(event)?.into(),
        };
        self.shared.skews.observe(Observation {
            company: &self.key.company,
            device: &device,
            received_at: self.facts.received_at,
            sent_at,
            attempt: self.facts.attempt,
        })
    }
}

/// Returns `context.device.id`.
fn device_id(event: &[u8]) -> Option<String> {
    let mut id = None;
    scan::visit(event, |place, key, value| {
        if place == Place::Device && key == "id" {
            id = scan::text(&event[value]).map(Cow::into_owned);
        }
    });
    id.filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests;
