//! What a request says besides its body: who sends, from where, at which attempt.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use headwater_protocol::{EventType, FORM_BYTES_MAX, Record};
use headwater_service::clock::Micros;
use serde_bytes::ByteBuf;

use super::body_form::Declared;
use super::privacy::network;
use crate::config::WriteKey;

const USER_AGENT_BYTES_MAX: usize = 512;

/// What the request says besides its body.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) received_at: Micros,
    path: String,
    /// Write key of the headers.
    pub(super) write_key: Option<String>,
    /// What the headers say about the body.
    pub(super) declared: Declared,
    /// When the client sent this request, where a header says so; a body may say it too.
    pub(super) sent_at: Option<String>,
    pub(super) attempt: Option<u32>,
    ip: Option<String>,
    user_agent: Option<String>,
    content_type: Option<String>,
    encoding: Option<String>,
}

impl Facts {
    /// Reads the head of `request`; `peer` is `None` for a client on the Unix socket.
    pub(super) fn of(
        request: &Request,
        peer: Option<IpAddr>,
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
            declared: Declared::of(text("content-type")),
            sent_at: text("posthog-request-timestamp").map(str::to_owned),
            attempt: attempt(text("x-retry-count"), text("posthog-attempt")),
            ip: forwarded.or(peer).map(|ip| network(ip).to_string()),
            user_agent: text("user-agent").map(|text| cut(text, USER_AGENT_BYTES_MAX).to_owned()),
            content_type: text("content-type").and_then(content_type),
            encoding: text("content-encoding").and_then(encoding),
        }
    }

    /// Returns the record of one event of the request.
    pub(super) fn record(
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
            ip: self.ip.clone(),
            user_agent: self.user_agent.clone(),
            body: ByteBuf::from(body),
            skew_ms: None,
            content_type: self.content_type.clone(),
            encoding: self.encoding.clone(),
            cut: None,
        }
    }
}

/// Returns what a record keeps of a `Content-Type`: nothing of plain JSON, so that what nearly everybody
/// sends takes no byte.
fn content_type(text: &str) -> Option<String> {
    let mut parts = text.split(';').map(str::trim);
    let is_json = parts.next()?.eq_ignore_ascii_case("application/json");
    let is_utf8 = |part: &str| part.is_empty() || part.eq_ignore_ascii_case("charset=utf-8");
    kept(text, is_json && parts.all(is_utf8))
}

/// Returns what a record keeps of a `Content-Encoding`.
fn encoding(text: &str) -> Option<String> {
    kept(text, text.trim().eq_ignore_ascii_case("identity"))
}

fn kept(text: &str, is_usual: bool) -> Option<String> {
    let text = text.trim();
    (!is_usual && !text.is_empty()).then(|| cut(text, FORM_BYTES_MAX).to_owned())
}

/// Returns how often the client had tried before: Segment counts retries, PostHog attempts.
fn attempt(retries: Option<&str>, attempts: Option<&str>) -> Option<u32> {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let retries = retries.and_then(number);
    retries.or_else(|| attempts.and_then(number)?.checked_sub(1))
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

/// Returns at most `bytes_max` bytes of `text`, cut between characters.
pub(super) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_and_retries_are_one_count() {
        assert_eq!(attempt(Some("2"), None), Some(2));
        assert_eq!(attempt(None, Some("1")), Some(0));
        assert_eq!(attempt(None, Some("3")), Some(2));
        assert_eq!(attempt(None, Some("0")), None);
        assert_eq!(attempt(Some("many"), None), None);
    }

    #[test]
    fn the_form_of_a_request_is_kept_where_it_is_not_plain_json() {
        for plain in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;",
            " ",
        ] {
            assert_eq!(content_type(plain), None, "{plain}");
        }
        let long = format!("multipart/form-data; boundary={}", "x".repeat(100));
        for (sent, kept) in [
            ("text/plain", "text/plain"),
            (" text/plain ", "text/plain"),
            (
                "application/json; charset=latin1",
                "application/json; charset=latin1",
            ),
            ("application/jsonl", "application/jsonl"),
            (&long, &long[..FORM_BYTES_MAX]),
        ] {
            assert_eq!(content_type(sent).as_deref(), Some(kept), "{sent}");
        }
        assert_eq!(encoding("gzip").as_deref(), Some("gzip"));
        assert_eq!(encoding(&long).unwrap().len(), FORM_BYTES_MAX);
        assert_eq!(encoding("Identity"), None);
        assert_eq!(encoding(""), None);
    }
}
