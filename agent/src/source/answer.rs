//! Every answer that the API can give, in one place.

use std::collections::BTreeMap;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Response, StatusCode, header};
use headwater_protocol::Invalid;
use serde::Serialize;

use super::memory::Reservation;
use super::prepared::Counts;
use crate::buffer::AppendError;
use crate::companies::Limited;

/// An answer up to this is not counted while the client reads it: about as much as its head.
const UNCOUNTED_BYTES_MAX: usize = 1024;

/// An event that is stored for quarantine instead of being accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rejected {
    /// Place in the request, from 0.
    pub(super) index: usize,
    /// The client's id of it, where it has one.
    pub(super) message_id: Option<String>,
    /// Class of the refusal, as in `raw.quarantine`.
    pub(super) code: &'static str,
    /// JSON path of the field at fault.
    pub(super) path: &'static str,
}

impl Rejected {
    pub(super) fn new(index: usize, message_id: Option<String>, invalid: &Invalid) -> Self {
        Self {
            index,
            message_id,
            code: invalid.failure.as_str(),
            path: invalid.path,
        }
    }
}

/// What becomes of one event: accepted, or the class of its refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) id: String,
    pub(super) refused: Option<&'static str>,
}

/// An answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// All events are durable.
    Stored {
        counts: Counts,
        /// By their places among the events.
        rejected: Vec<(usize, Rejected)>,
        /// What the answer takes.
        memory: Reservation,
    },
    /// All events are durable; for a client that wants to hear it of each by its id.
    StoredEach {
        verdicts: Vec<Verdict>,
        memory: Reservation,
    },
    /// No feature is on.
    Flags,
    /// The body was not read.
    Ignored,
    Preflight,
    Unreadable(&'static str),
    UnknownKey(&'static str),
    NotFound,
    MethodNotAllowed,
    Timeout,
    /// The body, or what it becomes in the buffer, is above what a setting allows.
    TooLarge {
        bytes_max: u64,
        setting: &'static str,
    },
    TooMany {
        events_max: usize,
    },
    Busy {
        retry_after_s: u32,
    },
    /// One company takes more than its part.
    CompanyBusy(Limited),
    Unavailable {
        retry_after_s: u32,
        message: String,
    },
    Stopping,
}

#[derive(Serialize)]
struct Stored<'a> {
    success: bool,
    accepted: u64,
    duplicates: u64,
    suppressed: u64,
    rejected: Vec<&'a Rejected>,
}

#[derive(Serialize)]
struct Refused<'a> {
    success: bool,
    code: &'a str,
    message: &'a str,
}

/// PostHog's v1 answer. Its clients keep nothing that is `ok`, and report what is `drop`.
#[derive(Serialize)]
struct Results<'a> {
    results: BTreeMap<&'a str, EventResult>,
}

#[derive(Serialize)]
struct EventResult {
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'static str>,
}

impl<'a> Results<'a> {
    fn of(verdicts: &'a [Verdict]) -> Self {
        let result = |verdict: &'a Verdict| {
            let result = EventResult {
                result: if verdict.refused.is_none() {
                    "ok"
                } else {
                    "drop"
                },
                details: verdict.refused,
            };
            (verdict.id.as_str(), result)
        };
        Self {
            results: verdicts.iter().map(result).collect(),
        }
    }
}

/// What PostHog's clients expect where no feature exists.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Flags {
    flags: BTreeMap<String, bool>,
    feature_flags: BTreeMap<String, bool>,
    feature_flag_payloads: BTreeMap<String, bool>,
    errors_while_computing_flags: bool,
}

impl Answer {
    pub(super) fn of_append_error(error: &AppendError, retry_after_s: u32) -> Self {
        match error {
            AppendError::Overload => Self::Busy { retry_after_s: 1 },
            AppendError::Stopped => Self::Stopping,
            other => Self::Unavailable {
                retry_after_s,
                message: other.to_string(),
            },
        }
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let (status, retry_after_s) = self.status();
        let is_preflight = matches!(self, Self::Preflight);
        let mut response = Response::new(self.into_body());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            HeaderValue::from_static("*"),
        );
        // Otherwise a page cannot see it, and its SDK comes back at once.
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("retry-after"),
        );
        if let Some(seconds) = retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if is_preflight {
            for (name, value) in [
                (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, OPTIONS"),
                (
                    header::ACCESS_CONTROL_ALLOW_HEADERS,
                    "authorization, content-type, content-encoding, x-write-key, x-retry-count, \
                     x-enable-debug, x-ip-policy",
                ),
                (header::ACCESS_CONTROL_MAX_AGE, "86400"),
            ] {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
        response
    }

    fn into_body(self) -> Body {
        let json = self.json();
        match self {
            Self::Stored { memory, .. } | Self::StoredEach { memory, .. }
                if json.len() > UNCOUNTED_BYTES_MAX =>
            {
                Body::from(Bytes::from_owner(Counted::new(json, memory)))
            }
            _ => Body::from(json),
        }
    }

    fn status(&self) -> (StatusCode, Option<u32>) {
        match self {
            Self::Stored { .. }
            | Self::StoredEach { .. }
            | Self::Flags
            | Self::Ignored
            | Self::Preflight => (StatusCode::OK, None),
            Self::Unreadable(_) => (StatusCode::BAD_REQUEST, None),
            Self::UnknownKey(_) => (StatusCode::UNAUTHORIZED, None),
            Self::NotFound => (StatusCode::NOT_FOUND, None),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, None),
            Self::Timeout => (StatusCode::REQUEST_TIMEOUT, None),
            Self::TooLarge { .. } | Self::TooMany { .. } => (StatusCode::PAYLOAD_TOO_LARGE, None),
            Self::Busy { retry_after_s } | Self::CompanyBusy(Limited::Rate(retry_after_s)) => {
                (StatusCode::TOO_MANY_REQUESTS, Some(*retry_after_s))
            }
            Self::CompanyBusy(Limited::Queue) => (StatusCode::TOO_MANY_REQUESTS, Some(1)),
            Self::Unavailable { retry_after_s, .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, Some(*retry_after_s))
            }
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, Some(1)),
        }
    }

    pub(super) fn json(&self) -> Vec<u8> {
        let refused = |code: &str, message: &str| {
            to_json(&Refused {
                success: false,
                code,
                message,
            })
        };
        match self {
            Self::Stored {
                counts, rejected, ..
            } => to_json(&Stored {
                success: true,
                accepted: counts.accepted,
                duplicates: counts.duplicates,
                suppressed: counts.suppressed,
                rejected: rejected.iter().map(|(_, rejected)| rejected).collect(),
            }),
            Self::StoredEach { verdicts, .. } => to_json(&Results::of(verdicts)),
            Self::Flags => to_json(&Flags::default()),
            Self::Ignored => br#"{"success":true}"#.to_vec(),
            Self::Preflight => b"{}".to_vec(),
            Self::Unreadable(message) => refused("unreadable", message),
            Self::UnknownKey(message) => refused("unknown_write_key", message),
            Self::NotFound => refused(
                "not_found",
                "no such path; events go to /v1/batch or /v1/track",
            ),
            Self::MethodNotAllowed => refused("method_not_allowed", "events are sent with POST"),
            Self::Timeout => refused("timeout", "the body did not arrive in time"),
            Self::TooLarge { bytes_max, setting } => refused(
                "too_large",
                &format!(
                    "the body takes more than the {bytes_max} bytes that `{setting}` allows; send it in parts"
                ),
            ),
            Self::TooMany { events_max } => refused(
                "too_many_events",
                &format!(
                    "the body holds more than the {events_max} events that `http.request_events_max` allows; send it in parts"
                ),
            ),
            Self::Busy { .. } => refused("busy", "too much is waiting; send again later"),
            Self::CompanyBusy(Limited::Queue) => refused(
                "company_busy",
                "too much of this company is waiting; send again later",
            ),
            Self::CompanyBusy(Limited::Rate(_)) => refused(
                "company_busy",
                "this company sends more events than `company.events_per_s` allows; send again later",
            ),
            Self::Unavailable { message, .. } => refused("unavailable", message),
            Self::Stopping => refused("unavailable", "the agent is stopping"),
        }
    }
}

/// The bytes of an answer, which take memory until the client has read them.
struct Counted {
    json: Vec<u8>,
    _memory: Reservation,
}

impl Counted {
    fn new(json: Vec<u8>, mut memory: Reservation) -> Self {
        memory.shrink(json.len() as u64);
        Self {
            json,
            _memory: memory,
        }
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.json
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers always serialise")
}
