//! What can go wrong with a REST catalog.
//!
//! Place on the event's path: inside [`CatalogError`](crate::CatalogError). Promise: no text of it
//! holds a token or a secret: what a server says is cut short and cleaned of them.

use std::error::Error;
use std::fmt;

use serde::Deserialize;

/// Longest message of a server that is repeated, in characters.
const MESSAGE_CHARS_MAX: usize = 300;

/// Why a REST catalog did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// The server cannot be reached, or the connection broke. Check the address and the network.
    #[error("{}", chain(.0))]
    Network(reqwest::Error),
    /// The server refused, or something between it and us did.
    #[error("it answered {status}{}", said(.kind, .message))]
    Refused {
        /// HTTP status.
        status: u16,
        /// The kind of error, where the server names it.
        kind: String,
        /// What the server said.
        message: String,
    },
    /// The answer is none of a REST catalog. Check the address.
    #[error("its answer is none of an Iceberg REST catalog ({0}): check catalog.uri")]
    Unreadable(#[source] serde_json::Error),
    /// The answer is larger than it may be. Raise `catalog.rest.answer_bytes_max`, or look at the
    /// table.
    #[error("its answer is larger than catalog.rest.answer_bytes_max, {max} bytes")]
    TooLarge {
        /// The bound.
        max: u64,
    },
    /// The table has no metadata file that could be read.
    #[error("it names no metadata file of the table")]
    NoLocation,
    /// The tables changed faster than they could be read twice. Retry, or raise
    /// `catalog.timeout_ms`.
    #[error(
        "the tables changed between each two of {reads} reads, so that no two of them agree: raise catalog.timeout_ms, or commit less often"
    )]
    Unsettled {
        /// How often everything was read.
        reads: usize,
    },
    /// The server makes no table from a metadata file. Use another one.
    #[error(
        "it answered {status}, so it has no `register`, which Headwater makes its tables with: use a server that has it"
    )]
    NoRegister {
        /// HTTP status.
        status: u16,
    },
    /// The server reported a commit that is not there. Retry; then look at what stands between.
    #[error("it reported success and keeps the old head")]
    Untrue,
}

impl RestError {
    /// Reads a refusal. `secret` is what must not be repeated.
    pub(super) fn refused(status: u16, body: &[u8], secret: Option<&str>) -> Self {
        let (kind, message) = match serde_json::from_slice::<ErrorBody>(body) {
            Ok(ErrorBody { error }) => (error.kind, error.message),
            Err(_) => (String::new(), String::new()),
        };
        Self::Refused {
            status,
            kind: shortened(&kind, secret),
            message: shortened(&message, secret),
        }
    }

    /// Returns whether the body is an error as REST catalogs write them: a 404 of anything else says
    /// nothing about a table.
    pub(super) fn is_of_catalog(body: &[u8]) -> bool {
        serde_json::from_slice::<ErrorBody>(body).is_ok()
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorFields,
}

#[derive(Deserialize)]
struct ErrorFields {
    #[serde(default)]
    message: String,
    #[serde(default, rename = "type")]
    kind: String,
}

fn shortened(text: &str, secret: Option<&str>) -> String {
    let clean = match secret.filter(|secret| !secret.is_empty()) {
        Some(secret) => text.replace(secret, "(hidden)"),
        None => text.to_owned(),
    };
    let one_line = clean.chars().map(|c| if c.is_control() { ' ' } else { c });
    one_line.take(MESSAGE_CHARS_MAX).collect()
}

fn said(kind: &str, message: &str) -> String {
    match (kind, message) {
        ("", "") => String::new(),
        (kind, "") => format!(" ({kind})"),
        ("", message) => format!(": {message}"),
        (kind, message) => format!(" ({kind}): {message}"),
    }
}

/// The whole chain of causes in one line: the first one alone says only "error sending request".
fn chain(error: &reqwest::Error) -> impl fmt::Display {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_shown_without_the_secret_and_in_one_line() {
        let body = br#"{"error":{"message":"bad token hunter2\nhunter2","type":"NotAuthorized","code":401}}"#;
        let error = RestError::refused(401, body, Some("hunter2"));
        assert_eq!(
            error.to_string(),
            "it answered 401 (NotAuthorized): bad token (hidden) (hidden)"
        );
        assert!(!format!("{error:?}").contains("hunter2"));
        let page = RestError::refused(502, b"<html>hunter2</html>", Some("hunter2"));
        assert_eq!(page.to_string(), "it answered 502");
        assert!(RestError::is_of_catalog(body));
        for other in [
            &b"<html>404</html>"[..],
            b"",
            b"{}",
            br#"{"error":"Not Found"}"#,
        ] {
            assert!(!RestError::is_of_catalog(other));
        }
        let long = format!(r#"{{"error":{{"message":"{}"}}}}"#, "x".repeat(10_000));
        assert!(
            RestError::refused(500, long.as_bytes(), None)
                .to_string()
                .len()
                < 400
        );
    }
}
