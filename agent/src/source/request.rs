//! From the bytes of a request to records: write key, batch or single event, verdicts. Pure.
//!
//! Each event's bytes are kept exactly as the client sent them. An event that is not valid gets its
//! record all the same: the collector quarantines it, and the client hears which one it was.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use headwater_protocol::{EventType, Head, Record};
use headwater_service::clock::Micros;
use serde::Deserialize;
use serde_bytes::ByteBuf;
use serde_json::value::RawValue;

use super::answer::{Answer, Rejected};
use super::body::Body;
use crate::config::WriteKey;
use crate::reload::Live;

/// What is kept of a body that cannot be read, or of an event that is too large: as much as
/// `raw.quarantine` keeps.
const KEPT_BYTES: usize = 64 * 1024;

const USER_AGENT_BYTES_MAX: usize = 512;

/// What a path takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// A batch; each event says its type.
    Batch,
    /// One event of this type.
    Single(EventType),
}

impl Endpoint {
    /// Returns what `path` takes, with or without a slash at its end.
    pub(super) fn of(path: &str) -> Option<Self> {
        let endpoint = match path.strip_suffix('/').unwrap_or(path) {
            "/v1/batch" | "/v1/import" | "/v1/b" | "/batch" => Self::Batch,
            "/v1/t" => Self::Single(EventType::Track),
            "/v1/i" => Self::Single(EventType::Identify),
            "/v1/p" => Self::Single(EventType::Page),
            "/v1/s" => Self::Single(EventType::Screen),
            "/v1/g" => Self::Single(EventType::Group),
            "/v1/a" => Self::Single(EventType::Alias),
            other => Self::Single(EventType::parse(other.strip_prefix("/v1/")?)?),
        };
        Some(endpoint)
    }
}

/// What the request says besides its body.
#[derive(Debug)]
pub(super) struct Facts {
    received_at: Micros,
    path: String,
    write_key: Option<String>,
    attempt: Option<u32>,
    ip: String,
    user_agent: Option<String>,
}

impl Facts {
    pub(super) fn of(
        request: &Request,
        peer: SocketAddr,
        trust_forwarded_for: bool,
        now: Micros,
    ) -> Self {
        let headers = request.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let forwarded = text("x-forwarded-for")
            .filter(|_| trust_forwarded_for)
            .and_then(|list| list.rsplit(',').next()?.trim().parse().ok());
        Self {
            received_at: now,
            path: request.uri().path().to_owned(),
            write_key: header_key(headers),
            attempt: text("x-retry-count").and_then(|text| text.trim().parse().ok()),
            ip: truncate_ip(forwarded.unwrap_or_else(|| peer.ip())),
            user_agent: text("user-agent").map(|text| cut(text, USER_AGENT_BYTES_MAX).to_owned()),
        }
    }

    fn record(
        &self,
        key: &WriteKey,
        kind: Option<EventType>,
        sent_at: Option<&str>,
        body: &[u8],
    ) -> Record {
        Record {
            received_at: self.received_at,
            company_id: key.company.clone(),
            source_id: key.source.clone(),
            source_kind: key.kind,
            path: self.path.clone(),
            event_type: kind,
            sent_at: sent_at.map(str::to_owned),
            attempt: self.attempt,
            ip: Some(self.ip.clone()),
            user_agent: self.user_agent.clone(),
            body: ByteBuf::from(body),
            skew_ms: None,
        }
    }
}

/// Returns the write key of the headers: Basic user, Bearer token or `X-Write-Key`.
fn header_key(headers: &HeaderMap) -> Option<String> {
    let own = headers
        .get("x-write-key")
        .and_then(|value| value.to_str().ok());
    if let Some(key) = own.map(str::trim).filter(|key| !key.is_empty()) {
        return Some(key.to_owned());
    }
    let (scheme, value) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    let user = decoded
        .split_once(':')
        .map_or(decoded.as_str(), |(user, _)| user);
    (!user.is_empty()).then(|| user.to_owned())
}

/// Returns the network of an address: /24 for IPv4, /48 for IPv6. The rest never reaches the disk.
fn truncate_ip(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            IpAddr::from([a, b, c, 0]).to_string()
        }
        IpAddr::V6(ip) => {
            let [a, b, c, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).to_string()
        }
    }
}

/// Returns at most `bytes_max` bytes of `text`, cut between characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// What is to be stored, and what the client hears then.
pub(super) struct Prepared {
    pub(super) records: Vec<Record>,
    pub(super) rejected: Vec<Rejected>,
    /// The body as a whole was unreadable: this is the answer, once its bytes are stored.
    pub(super) unreadable: Option<Answer>,
}

/// The fields of an event or a batch that the agent itself reads.
type Fields<'a> = HashMap<Cow<'a, str>, &'a RawValue>;

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
    let Ok(fields) = serde_json::from_slice::<Fields<'_>>(&body.bytes) else {
        return unreadable(
            facts,
            header_key,
            &body.bytes,
            "the body is not a JSON object",
        );
    };
    let key = match header_key {
        Some(key) => key,
        None => {
            let key = text_field(&fields, "writeKey").or_else(|| text_field(&fields, "api_key"));
            let missing = Answer::UnknownKey("there is no write key: use Basic authorization");
            known_key(live, &key.ok_or(missing)?)?
        }
    };
    let mut out = Preparation {
        live,
        facts,
        key,
        records: Vec::new(),
        rejected: Vec::new(),
    };
    match (endpoint, fields.get("batch")) {
        (Endpoint::Single(kind), _) => out.add(&body.bytes, Some(kind), None),
        (Endpoint::Batch, Some(batch)) => {
            let Ok(events) = serde_json::from_str::<Vec<&RawValue>>(batch.get()) else {
                return unreadable(facts, Some(key), &body.bytes, "`batch` is not an array");
            };
            let sent_at = text_field(&fields, "sentAt").or_else(|| text_field(&fields, "sent_at"));
            for event in events {
                out.add(event.get().as_bytes(), None, sent_at.as_deref());
            }
        }
        (Endpoint::Batch, None) if fields.contains_key("type") => out.add(&body.bytes, None, None),
        (Endpoint::Batch, None) => {
            return unreadable(facts, Some(key), &body.bytes, "there is no `batch`");
        }
    }
    Ok(Prepared {
        records: out.records,
        rejected: out.rejected,
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
        unreadable: Some(Answer::Unreadable(message)),
    })
}

fn text_field(fields: &Fields<'_>, name: &str) -> Option<String> {
    serde_json::from_str(fields.get(name)?.get()).ok()
}

struct Preparation<'a> {
    live: &'a Live,
    facts: &'a Facts,
    key: &'a WriteKey,
    records: Vec<Record>,
    rejected: Vec<Rejected>,
}

impl Preparation<'_> {
    fn add(&mut self, event: &[u8], kind: Option<EventType>, sent_at: Option<&str>) {
        let index = self.records.len();
        // A cut event is no JSON any more, so the collector quarantines it.
        let kept = if event.len() as u64 > self.live.http.event_bytes_max {
            self.reject(index, event, "event_too_large", "$");
            &event[..KEPT_BYTES.min(event.len() - 1)]
        } else {
            event
        };
        if kept.len() == event.len() {
            let head = Head::of(event, kind);
            if let Some(invalid) = head.invalid {
                let message_id = head.message_id.map(|id| cut(&id, 400).to_owned());
                self.rejected
                    .push(Rejected::new(index, message_id, &invalid));
            }
        }
        self.records
            .push(self.facts.record(self.key, kind, sent_at, kept));
    }

    fn reject(&mut self, index: usize, event: &[u8], code: &'static str, path: &'static str) {
        self.rejected.push(Rejected {
            index,
            message_id: message_id(event),
            code,
            path,
        });
    }
}

fn message_id(event: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Id<'a> {
        #[serde(rename = "messageId", borrow)]
        id: Option<&'a RawValue>,
    }
    let id = serde_json::from_slice::<Id<'_>>(event).ok()?.id?;
    let text: String = serde_json::from_str(id.get()).ok()?;
    Some(cut(&text, 400).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_cut_to_their_network() {
        for (ip, expected) in [
            ("203.0.113.77", "203.0.113.0"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
            ("::ffff:203.0.113.77", "203.0.113.0"),
        ] {
            assert_eq!(truncate_ip(ip.parse().unwrap()), expected);
        }
    }

    #[test]
    fn paths_of_every_client_are_known() {
        for path in ["/v1/batch", "/v1/import/", "/v1/b", "/batch/"] {
            assert_eq!(Endpoint::of(path), Some(Endpoint::Batch), "{path}");
        }
        for (path, kind) in [
            ("/v1/track", EventType::Track),
            ("/v1/a", EventType::Alias),
            ("/v1/page/", EventType::Page),
        ] {
            assert_eq!(Endpoint::of(path), Some(Endpoint::Single(kind)), "{path}");
        }
        for path in ["/", "/v1/", "/v1/tracks", "/v2/batch", "/batch/x"] {
            assert_eq!(Endpoint::of(path), None, "{path}");
        }
    }
}
