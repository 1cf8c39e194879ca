//! Who we are: the bearer token of every request.
//!
//! Place on the event's path: before each request to a REST catalog. Promise: a token or secret is
//! never shown, not even by `Debug`; a token that has ended is replaced once per request, not more.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::Mutex;
use url::Url;
use url::form_urlencoded::Serializer;

use super::error::RestError;
use super::http::Http;
use super::settings::RestConfig;
use crate::catalog::config::InvalidSetting;
use crate::catalog::error::CatalogError;
use crate::metrics;

const ACTION: &str = "give a token";
/// Environment variable of a token.
const TOKEN_VARIABLE: &str = "ICEBERG_REST_TOKEN";
/// Time before its end at which a token is replaced, at most: clocks differ, and requests take time.
const RENEW_BEFORE_MAX: Duration = Duration::from_secs(60);

/// Text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(hidden)")
    }
}

/// Where tokens come from.
#[derive(Debug)]
enum Source {
    /// Nowhere: the server asks for none.
    Nobody,
    /// The environment.
    Given(Secret),
    /// A file, which somebody else keeps fresh.
    File(PathBuf),
    /// An OAuth 2 server.
    Exchange {
        url: Url,
        file: PathBuf,
        scope: String,
    },
}

/// A token and when to replace it.
#[derive(Debug)]
struct Held {
    token: Secret,
    renew_at: Option<Instant>,
}

/// The present token.
#[derive(Debug)]
pub(super) struct Auth {
    source: Source,
    held: Mutex<Option<Held>>,
}

impl Auth {
    /// Decides where tokens come from; `exchange` is where the catalog itself gives them.
    pub(super) fn new(config: &RestConfig, exchange: Url) -> Result<Self, InvalidSetting> {
        let source = match (&config.credential_file, &config.token_file) {
            (Some(file), _) => Source::Exchange {
                url: match &config.oauth2_server_uri {
                    Some(address) => Url::parse(address).map_err(|error| InvalidSetting {
                        key: "catalog.rest.oauth2_server_uri",
                        message: error.to_string(),
                    })?,
                    None => exchange,
                },
                file: file.clone(),
                scope: config.scope.clone(),
            },
            (None, Some(file)) => Source::File(file.clone()),
            (None, None) => match std::env::var(TOKEN_VARIABLE) {
                Ok(token) => Source::Given(Secret(token.trim().to_owned())),
                Err(_) => Source::Nobody,
            },
        };
        Ok(Self {
            source,
            held: Mutex::default(),
        })
    }

    /// Returns the token to send, `None` when none is asked for.
    pub(super) async fn token(&self, http: &Http) -> Result<Option<Secret>, CatalogError> {
        match &self.source {
            Source::Nobody => Ok(None),
            Source::Given(token) => Ok(Some(token.clone())),
            _ => self.held_or_fetched(http, |held| !held.is_due()).await,
        }
    }

    /// Returns another token than `stale`, which the server does not take any more; `None` when there
    /// is no other one to be had.
    pub(super) async fn renew(
        &self,
        http: &Http,
        stale: &Secret,
    ) -> Result<Option<Secret>, CatalogError> {
        match &self.source {
            Source::Nobody | Source::Given(_) => Ok(None),
            // Another request may have replaced it meanwhile.
            _ => {
                self.held_or_fetched(http, |held| held.token != *stale)
                    .await
            }
        }
    }

    /// Returns the token that was sent last, so that no message repeats it.
    pub(super) async fn present(&self) -> Option<Secret> {
        match &self.source {
            Source::Given(token) => Some(token.clone()),
            _ => Some(self.held.lock().await.as_ref()?.token.clone()),
        }
    }

    async fn held_or_fetched(
        &self,
        http: &Http,
        is_good: impl Fn(&Held) -> bool,
    ) -> Result<Option<Secret>, CatalogError> {
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| is_good(held)) {
            return Ok(Some(held.token.clone()));
        }
        let fetched = self.fetch(http).await?;
        metrics::catalog_token_fetched();
        let token = fetched.token.clone();
        *held = Some(fetched);
        Ok(Some(token))
    }

    async fn fetch(&self, http: &Http) -> Result<Held, CatalogError> {
        match &self.source {
            Source::Exchange { url, file, scope } => exchange(http, url, file, scope).await,
            Source::File(file) => Ok(Held::forever(read(file).await?)),
            // Never asked: these have one token or none.
            Source::Given(token) => Ok(Held::forever(token.clone())),
            Source::Nobody => Ok(Held::forever(Secret(String::new()))),
        }
    }
}

impl Held {
    /// A token of which nothing says when it ends.
    fn forever(token: Secret) -> Self {
        Self {
            token,
            renew_at: None,
        }
    }

    fn is_due(&self) -> bool {
        self.renew_at.is_some_and(|at| at <= Instant::now())
    }
}

async fn read(path: &Path) -> Result<Secret, CatalogError> {
    let text = tokio::fs::read_to_string(path).await;
    let text = text.map_err(|source| CatalogError::Path {
        path: path.to_owned(),
        source,
    })?;
    Ok(Secret(text.trim().to_owned()))
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    expires_in: Option<u64>,
}

/// Exchanges client id and secret for a token.
async fn exchange(http: &Http, url: &Url, file: &Path, scope: &str) -> Result<Held, CatalogError> {
    let credential = read(file).await?;
    let Some((id, secret)) = credential.reveal().split_once(':') else {
        return Err(CatalogError::Setting(InvalidSetting {
            key: "catalog.rest.credential_file",
            message: "must hold `CLIENT_ID:SECRET`".to_owned(),
        }));
    };
    let form = Serializer::new(String::new())
        .append_pair("grant_type", "client_credentials")
        .append_pair("client_id", id)
        .append_pair("client_secret", secret)
        .append_pair("scope", scope)
        .finish();
    let request = http
        .request(reqwest::Method::POST, url.clone())
        .header("content-type", "application/x-www-form-urlencoded")
        .body(form);
    let answer = http.send(ACTION, request).await?;
    let error = |source| CatalogError::Rest {
        action: ACTION,
        source,
    };
    if !answer.is_success() {
        let refused = RestError::refused(answer.status, &answer.body, Some(secret));
        return Err(error(refused));
    }
    let answer: TokenAnswer = answer.json().map_err(error)?;
    Ok(Held {
        token: Secret(answer.access_token),
        renew_at: answer.expires_in.map(renew_at),
    })
}

/// Returns when to replace a token that lives so long.
fn renew_at(expires_in_s: u64) -> Instant {
    // A day is long enough, and cannot overflow.
    let lives = Duration::from_secs(expires_in_s.min(86_400));
    Instant::now() + lives - (lives / 5).min(RENEW_BEFORE_MAX)
}
