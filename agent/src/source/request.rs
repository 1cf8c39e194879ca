//! From the bytes of a request to records: write key, events, verdicts. Pure.
//!
//! An event that is not valid gets its record all the same: the collector quarantines it, and the
//! client hears which one it was.

use std::borrow::Cow;
use std::sync::Arc;

use headwater_protocol::{EventType, Head, Record, SourceKind, timestamp};

use super::Shared;
use super::answer::{Answer, Rejected, Verdict};
use super::body::Body;
use super::body_form::{Limits, Parts, Refusal};
use super::endpoint::Endpoint;
use super::facts::{Facts, cut};
use super::privacy;
use super::scan::{self, Place};
use super::skew::Observation;
use crate::config::WriteKey;
use crate::reload::Live;
use crate::suppression::List;
use crate::window::Fingerprint;

/// What is kept of a body that cannot be read, or of an event that is too large: as much as
/// `raw.quarantine` keeps.
const KEPT_BYTES: usize = 64 * 1024;

/// Bytes of a client's id that are given back to it; it may be the very thing that is wrong.
const ID_BYTES_MAX: usize = 400;

/// Longest text that may be a time, in bytes. Every event of a batch gets a copy.
const TIME_BYTES_MAX: usize = 64;

/// One event on its way to the buffer.
pub(super) struct Item {
    pub(super) record: Record,
    /// `None` when the event has no id by which a retry could be told from another event.
    pub(super) fingerprint: Option<Fingerprint>,
    /// What the client hears when the event is stored for quarantine.
    rejected: Option<Rejected>,
}

/// What is to be stored, and what the client hears then.
#[derive(Default)]
pub(super) struct Prepared {
    pub(super) items: Vec<Item>,
    /// Events of suppressed subjects, of which nothing is kept.
    suppressed: u64,
    /// What becomes of every event that has an id, where the answer names each.
    verdicts: Option<Vec<Verdict>>,
    /// The body as a whole was unreadable: this is the answer, once its bytes are stored.
    unreadable: Option<Answer>,
}

/// What became of the events of a request; the sum is what was received (C-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) accepted: u64,
    pub(super) rejected: u64,
    pub(super) duplicates: u64,
    pub(super) suppressed: u64,
}

impl Prepared {
    /// Counts the events, once it is known which items, by their place, were duplicates.
    pub(super) fn counts(&self, duplicates: &[usize]) -> Counts {
        let all = self.items.len() as u64;
        let rejected = self.rejected(duplicates).count() as u64;
        let duplicates = duplicates.len() as u64;
        Counts {
            accepted: all - rejected - duplicates,
            rejected,
            duplicates,
            suppressed: self.suppressed,
        }
    }

    /// Returns what was stored for quarantine now; of a duplicate that was told before.
    fn rejected<'a>(&'a self, duplicates: &'a [usize]) -> impl Iterator<Item = &'a Rejected> {
        let items = self.items.iter().enumerate();
        // The places are in order.
        let stored = items.filter(|(place, _)| duplicates.binary_search(place).is_err());
        stored.filter_map(|(_, item)| item.rejected.as_ref())
    }

    /// Returns the answer, once the events are durable.
    pub(super) fn into_answer(self, duplicates: &[usize], counts: Counts) -> Answer {
        let rejected = self.rejected(duplicates).cloned().collect();
        match (self.unreadable, self.verdicts) {
            (Some(answer), _) => answer,
            (None, Some(verdicts)) => Answer::StoredEach(verdicts),
            (None, None) => Answer::Stored { counts, rejected },
        }
    }
}

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
    let body = match body.inflate(live.http.inflated_bytes_max) {
        Err(Answer::Unreadable(message)) => {
            return unreadable(shared, facts, header_key, b"", message);
        }
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
            return unreadable(shared, facts, key, &body.bytes, message);
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
    let mut out = Preparation {
        shared,
        facts,
        key,
        suppressed: shared.suppression.now(),
        event_bytes_max: live.http.event_bytes_max,
        out: Prepared {
            items: Vec::with_capacity(events.len()),
            verdicts: (endpoint == Endpoint::Capture).then(Vec::new),
            ..Prepared::default()
        },
    };
    for (index, event) in events.iter().enumerate() {
        match endpoint {
            Endpoint::Single(kind) => out.add(index, event, Some(kind), None),
            _ => out.add(index, event, None, sent_at),
        }
    }
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
) -> Result<Prepared, Answer> {
    let answer = Answer::Unreadable(message);
    let Some(key) = key.filter(|_| !body.is_empty()) else {
        return Err(answer);
    };
    if shared.suppression.now().concerns(&key.company) {
        return Ok(Prepared {
            suppressed: 1,
            unreadable: Some(answer),
            ..Prepared::default()
        });
    }
    let body = privacy::cut_addresses(body);
    let kept = &body[..body.len().min(KEPT_BYTES)];
    let rejected = Rejected {
        index: 0,
        message_id: None,
        code: "payload_format",
        path: "$",
    };
    Ok(Prepared {
        items: vec![Item {
            record: facts.record(key, None, None, kept),
            fingerprint: None,
            rejected: Some(rejected),
        }],
        unreadable: Some(answer),
        ..Prepared::default()
    })
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
    fn add(&mut self, index: usize, event: &[u8], kind: Option<EventType>, sent_at: Option<&str>) {
        let head = Head::of(event, kind);
        let id = head.message_id.as_deref();
        let id = || id.map(|id| cut(id, ID_BYTES_MAX).to_owned());
        if self.suppressed.holds(&self.key.company, event) {
            self.out.suppressed += 1;
            self.out.tell(id(), Some("suppressed"));
            return;
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
        // A cut event is no JSON any more, so the collector quarantines it.
        let kept = if is_whole {
            &event[..]
        } else {
            &event[..KEPT_BYTES.min(event.len() - 1)]
        };
        let mut record = self.facts.record(self.key, kind, sent_at, kept);
        record.skew_ms = self.skew_ms(&head, &event, sent_at);
        let fingerprinter = self.shared.fingerprinter.as_ref();
        let fingerprinter = fingerprinter.filter(|_| is_whole && head.message_id.is_some());
        let code = rejected.as_ref().map(|rejected| rejected.code);
        self.out.tell(id(), code);
        self.out.items.push(Item {
            fingerprint: fingerprinter.map(|it| it.fingerprint(&record)),
            record,
            rejected,
        });
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

impl Prepared {
    fn tell(&mut self, id: Option<String>, refused: Option<&'static str>) {
        if let (Some(verdicts), Some(id)) = (&mut self.verdicts, id) {
            verdicts.push(Verdict { id, refused });
        }
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
