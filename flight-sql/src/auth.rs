//! Who is asking: Basic credentials or a bearer token in the `authorization` header of every call.
//!
//! Place on the event's path: the first thing each RPC does. Promise: no call is answered without a
//! valid credential; passwords are compared in constant time and never logged; Basic on any call is
//! answered with a bearer token in the initial headers, as JDBC and ADBC expect.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_flight::BasicAuth;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use headwater_service::clock::SharedClock;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Response, Status};

use crate::config::{LimitsConfig, UserConfig};
use crate::handle::{Bounds, Handles};
use crate::metrics;
use crate::session::Session;

const HEADER: &str = "authorization";
/// Longest header or handshake payload looked at; longer ones are refused unread.
const CREDENTIAL_BYTES_MAX: usize = 8192;

/// A password as it is kept: salted and hashed, never readable.
#[derive(Clone)]
pub(crate) struct Secret {
    salt: Vec<u8>,
    hash: [u8; 32],
}

impl Secret {
    /// Reads a configured password: plain, or `sha256:SALT:HEX`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix("sha256:") else {
            return Ok(Self::of(text));
        };
        let wrong = || "must be plain or `sha256:SALT:HEX` with 64 hexadecimal digits".to_owned();
        let (salt, hex) = rest.split_once(':').ok_or_else(wrong)?;
        let mut hash = [0_u8; 32];
        if hex.len() != 64 || !hex.is_ascii() {
            return Err(wrong());
        }
        for (index, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[index * 2..index * 2 + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self {
            salt: salt.as_bytes().to_vec(),
            hash,
        })
    }

    fn of(password: &str) -> Self {
        let salt = rand::random::<[u8; 16]>().to_vec();
        let hash = salted(&salt, password);
        Self { salt, hash }
    }

    /// Says whether `password` is the one, in time that does not depend on where they differ.
    fn matches(&self, password: &str) -> bool {
        let given = salted(&self.salt, password);
        let difference = given
            .iter()
            .zip(&self.hash)
            .fold(0_u8, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

fn salted(salt: &[u8], password: &str) -> [u8; 32] {
    Sha256::new()
        .chain_update(salt)
        .chain_update(password.as_bytes())
        .finalize()
        .into()
}

/// The authenticated end of one call.
pub(crate) struct Caller {
    /// The session the call belongs to.
    pub(crate) session: Arc<Session>,
    /// The bearer token of the session.
    token: String,
    /// Whether the client does not know its token yet.
    is_new: bool,
}

impl Caller {
    /// Returns the name of the user.
    pub(crate) fn principal(&self) -> &Arc<str> {
        &self.session.principal
    }

    /// Returns the bearer token of the session.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Wraps an answer; a new token goes into its initial headers.
    pub(crate) fn answer<T>(&self, body: T) -> Response<T> {
        let mut response = Response::new(body);
        if self.is_new {
            self.show_token(response.metadata_mut());
        }
        response
    }

    /// Wraps the answer of a handshake, which always carries the token.
    pub(crate) fn answer_handshake<T>(&self, body: T) -> Response<T> {
        let mut response = Response::new(body);
        self.show_token(response.metadata_mut());
        response
    }

    fn show_token(&self, metadata: &mut MetadataMap) {
        if let Ok(value) = MetadataValue::try_from(format!("Bearer {}", self.token)) {
            metadata.insert(HEADER, value);
        }
    }
}

/// Knows the users and their sessions.
pub(crate) struct Authenticator {
    users: HashMap<String, Secret>,
    /// Compared with when the user is unknown, so that the answer takes as long.
    nobody: Secret,
    sessions: Handles<Session>,
}

impl Authenticator {
    /// Makes an authenticator for `users`.
    pub(crate) fn new(users: &[UserConfig], limits: &LimitsConfig, clock: SharedClock) -> Self {
        let users = users
            .iter()
            .filter_map(|user| Some((user.name.clone(), Secret::parse(&user.password).ok()?)))
            .collect();
        let bounds = Bounds {
            total_max: limits.sessions_max,
            per_owner_max: limits.sessions_per_user_max,
            idle_ms: limits.session_ttl_ms,
        };
        Self {
            users,
            nobody: Secret::of("nobody"),
            sessions: Handles::new(bounds, clock, metrics::SESSIONS, metrics::SESSIONS_EVICTED),
        }
    }

    /// Authenticates one call by its headers.
    pub(crate) fn authenticate(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let header = metadata
            .get(HEADER)
            .ok_or_else(|| refused("no credentials; send a user and password, or a bearer token"))?
            .to_str()
            .map_err(|_| refused("the authorization header is not text"))?;
        if header.len() > CREDENTIAL_BYTES_MAX {
            return Err(refused("the authorization header is too long"));
        }
        let (scheme, value) = header.trim().split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            self.bearer(value.trim())
        } else if scheme.eq_ignore_ascii_case("basic") {
            let (user, password) = decode_basic(value.trim())?;
            self.basic(&user, &password, user_agent(metadata))
        } else {
            Err(refused("the authorization scheme must be Basic or Bearer"))
        }
    }

    /// Authenticates the payload of an old-style handshake (`BasicAuth` in protobuf).
    pub(crate) fn authenticate_payload(
        &self,
        payload: &[u8],
        metadata: &MetadataMap,
    ) -> Result<Caller, Status> {
        if payload.is_empty() || payload.len() > CREDENTIAL_BYTES_MAX {
            return Err(refused(
                "no credentials; send a user and password, or a bearer token",
            ));
        }
        let auth =
            BasicAuth::decode(payload).map_err(|_| refused("the handshake cannot be read"))?;
        self.basic(&auth.username, &auth.password, user_agent(metadata))
    }

    /// Ends the session of `caller`.
    pub(crate) fn close(&self, caller: &Caller) {
        self.sessions
            .remove_owned(caller.token.as_bytes(), caller.principal());
    }

    /// Forgets expired sessions.
    pub(crate) fn sweep(&self) {
        self.sessions.sweep();
    }

    fn bearer(&self, token: &str) -> Result<Caller, Status> {
        let session = self
            .sessions
            .get(token.as_bytes())
            .ok_or_else(|| refused("the bearer token is unknown or has expired; connect again"))?;
        Ok(Caller {
            session,
            token: token.to_owned(),
            is_new: false,
        })
    }

    fn basic(&self, user: &str, password: &str, user_agent: &str) -> Result<Caller, Status> {
        let known = self.users.get(user);
        let is_right = known.unwrap_or(&self.nobody).matches(password);
        if known.is_none() || !is_right {
            return Err(refused("user or password is wrong"));
        }
        let principal: Arc<str> = user.into();
        let session = Arc::new(Session::new(Arc::clone(&principal), user_agent));
        tracing::debug!(user, user_agent, "session opened");
        let token = self.sessions.insert(principal, Arc::clone(&session));
        Ok(Caller {
            session,
            token,
            is_new: true,
        })
    }
}

fn user_agent(metadata: &MetadataMap) -> &str {
    metadata
        .get("user-agent")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

fn decode_basic(value: &str) -> Result<(String, String), Status> {
    let wrong = || refused("the Basic credentials cannot be read");
    let bytes = STANDARD
        .decode(value)
        .or_else(|_| STANDARD_NO_PAD.decode(value))
        .map_err(|_| wrong())?;
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    let (user, password) = text.split_once(':').ok_or_else(wrong)?;
    Ok((user.to_owned(), password.to_owned()))
}

fn refused(message: &'static str) -> Status {
    ::metrics::counter!(metrics::AUTH_REFUSED).increment(1);
    Status::unauthenticated(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_and_plain_passwords_match_only_themselves() {
        let hash = salted(b"pepper", "open sesame");
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let hashed = Secret::parse(&format!("sha256:pepper:{hex}")).unwrap();
        assert!(hashed.matches("open sesame"));
        assert!(!hashed.matches("open sesam"));
        let plain = Secret::parse("open sesame").unwrap();
        assert!(plain.matches("open sesame"));
        assert!(!plain.matches(""));
        assert!(Secret::parse("sha256:pepper:12").is_err());
    }

    #[test]
    fn password_may_hold_a_colon() {
        let (user, password) = decode_basic(&STANDARD.encode("demo:a:b")).unwrap();
        assert_eq!((user.as_str(), password.as_str()), ("demo", "a:b"));
    }
}
