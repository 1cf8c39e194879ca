//! What can go wrong with a store, each in one line that says what to do.
//!
//! Place on the event's path: returned when a program starts, and the reason inside every error of a
//! file that is read or written. Promise: no text holds a secret, a line break or a page of XML.

use object_store::Error;

/// Longest reason that is shown, in characters.
const REASON_MAX: usize = 300;
/// Where a machine of AWS asks for its role; asked when nothing else says who we are.
const MACHINE_ROLE: &str = "latest/api/token";

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such bucket. Make it, or name another one.
    #[error(
        "there is no bucket of `{place}`{at}: make it, or correct catalog.warehouse or catalog.s3.endpoint ({reason})"
    )]
    NoBucket {
        /// The warehouse.
        place: String,
        /// The endpoint.
        at: String,
        /// What the service said.
        reason: String,
    },
    /// The service does not let us in. Check credentials, region and rights.
    #[error(
        "`{place}`{at} is refused: check the credentials, catalog.s3.region and the rights that docs/catalogs.md lists ({reason})"
    )]
    Denied {
        /// The warehouse.
        place: String,
        /// The endpoint.
        at: String,
        /// What the service said.
        reason: String,
    },
    /// Nobody says who we are. Give credentials.
    #[error(
        "there are no credentials for `{place}`{at}: name a file with them in catalog.s3.credentials_file, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({reason})"
    )]
    NoCredentials {
        /// The warehouse.
        place: String,
        /// The endpoint.
        at: String,
        /// What was tried.
        reason: String,
    },
    /// The service gives no answer, or one that is none. Check the address, the network and the
    /// certificates.
    #[error(
        "`{place}`{at} cannot be reached: check catalog.s3.endpoint, the network and the certificates ({reason})"
    )]
    Unreachable {
        /// The warehouse.
        place: String,
        /// The endpoint.
        at: String,
        /// What went wrong.
        reason: String,
    },
    /// The settings do not make a client.
    #[error("no client for `{place}` can be made: {reason}")]
    Client {
        /// The warehouse.
        place: String,
        /// What does not fit.
        reason: String,
    },
}

impl StoreError {
    /// Tells what the first answer of the store means.
    pub(crate) fn opening(place: String, endpoint: Option<&str>, error: &Error) -> Self {
        let at = endpoint.map_or_else(String::new, |endpoint| format!(" at `{endpoint}`"));
        let (text, reason) = (error.to_string(), explain(error));
        // A list that fails is of one kind, whatever the answer was.
        match status(&text) {
            _ if text.contains(MACHINE_ROLE) => Self::NoCredentials { place, at, reason },
            Some(404) => Self::NoBucket { place, at, reason },
            Some(400 | 401 | 403) => Self::Denied { place, at, reason },
            _ => Self::Unreachable { place, at, reason },
        }
    }
}

/// Returns what went wrong in one line: what the service said, or the first cause.
pub(crate) fn explain(error: &Error) -> String {
    let text = error.to_string();
    let said = tag(&text, "Code").map(|code| match tag(&text, "Message") {
        Some(message) => format!("{code}: {message}"),
        None => code.to_owned(),
    });
    let reason = said.unwrap_or_else(|| first_cause(error));
    let reason = match tries(&text) {
        Some(tries) => format!("{reason} {tries}"),
        None => reason,
    };
    let words: Vec<&str> = reason.split_whitespace().collect();
    words.join(" ").chars().take(REASON_MAX).collect()
}

fn first_cause(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = cause.to_string();
    // What a proxy or a wrong host answers is a page that helps nobody.
    let text = text.split('<').next().unwrap_or_default();
    text.trim_end_matches([':', ' ']).to_owned()
}

/// Returns what is between the tags of this name.
fn tag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    Some(rest.split_once('<')?.0)
}

/// Returns the status that the service answered with.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// Returns how often it was tried again.
fn tries(text: &str) -> Option<String> {
    let (_, rest) = text.split_once(", after ")?;
    let (retries, _) = rest.split_once(" retries")?;
    Some(format!("(tried again {retries} times)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> Error {
        Error::Generic {
            store: "S3",
            source: text.to_owned().into(),
        }
    }

    #[test]
    fn a_reason_is_one_short_line() {
        let xml = "Error performing PUT http://h/b in 1.5s, after 5 retries, max_retries: 5, retry_timeout: 30s  - Server returned non-2xx status code: 503 Service Unavailable: <?xml version=\"1.0\"?>\n<Error><Code>SlowDown</Code><Message>Reduce\n your rate</Message></Error>";
        assert_eq!(
            explain(&generic(xml)),
            "SlowDown: Reduce your rate (tried again 5 times)"
        );
        assert_eq!(
            explain(&generic("status code: 502 Bad Gateway: <html>\n<body>")),
            "status code: 502 Bad Gateway"
        );
        assert_eq!(
            explain(&generic("connection refused")),
            "connection refused"
        );
        assert_eq!(explain(&generic(&"x".repeat(9_000))).len(), REASON_MAX);
    }

    #[test]
    fn what_is_answered_at_start_tells_what_to_do() {
        let cases = [
            ("status code: 404 Not Found", "make it"),
            ("status code: 403 Forbidden", "credentials"),
            ("status code: 400 Bad Request", "region"),
            ("status code: 503 Slow Down", "cannot be reached"),
            ("connection refused", "cannot be reached"),
        ];
        for (answer, advice) in cases {
            let place = "s3://lake/a".to_owned();
            let error = StoreError::opening(place, Some("https://h"), &generic(answer));
            let text = error.to_string();
            assert!(
                text.contains(advice) && text.contains("`s3://lake/a` at `https://h`"),
                "{text}"
            );
        }
    }

    #[test]
    fn who_is_nobody_is_told_how_to_become_somebody() {
        let asked = "Error performing PUT http://169.254.169.254/latest/api/token in 1s - connect";
        let error = StoreError::opening("s3://lake".to_owned(), None, &generic(asked));
        assert!(error.to_string().contains("credentials_file"), "{error}");
    }
}
