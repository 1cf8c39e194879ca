//! Questions to a REST catalog: addresses, tokens, and a bound on how many are open.
//!
//! Place on the event's path: below [`RestHeads`](super::RestHeads). Promise: a question ends within
//! its bounds, and is sent again in one case only, with a new token after a 401, which says that
//! nothing was done.

use std::collections::HashMap;
use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use url::Url;

use super::auth::{Auth, Secret};
use super::error::RestError;
use super::http::{Answer, Http};
use crate::catalog::config::CatalogConfig;
use crate::catalog::error::CatalogError;
use crate::metrics;

/// A question.
#[derive(Clone)]
pub(super) struct Question<'a> {
    /// What is asked, for messages.
    pub(super) action: &'static str,
    pub(super) method: Method,
    /// Below the catalog's prefix.
    pub(super) path: &'a [&'a str],
    pub(super) query: &'a [(&'a str, &'a str)],
    /// JSON.
    pub(super) body: Option<Vec<u8>>,
    /// Unique to this question, so that a server that knows it does it once.
    pub(super) idempotency_key: Option<&'a str>,
}

impl<'a> Question<'a> {
    pub(super) fn get(action: &'static str, path: &'a [&'a str]) -> Self {
        Self {
            action,
            method: Method::GET,
            path,
            query: &[],
            body: None,
            idempotency_key: None,
        }
    }

    pub(super) fn post(action: &'static str, path: &'a [&'a str], body: Vec<u8>) -> Self {
        Self {
            method: Method::POST,
            body: Some(body),
            ..Self::get(action, path)
        }
    }
}

/// A REST catalog.
pub(super) struct Client {
    http: Http,
    auth: Auth,
    base: Url,
    /// Path of this catalog among those of the server.
    prefix: Vec<String>,
    places: Semaphore,
    max: usize,
    connect_timeout: Duration,
}

#[derive(Deserialize)]
struct ConfigAnswer {
    #[serde(default)]
    defaults: HashMap<String, String>,
    #[serde(default)]
    overrides: HashMap<String, String>,
}

impl Client {
    /// Connects, and asks the server for the prefix of the catalog.
    pub(super) async fn open(config: &CatalogConfig, base: Url) -> Result<Self, CatalogError> {
        let http = Http::new(config)?;
        let auth = Auth::new(&config.rest, below(&base, &["v1", "oauth", "tokens"]))?;
        let max = config.connections_max as usize;
        let mut client = Self {
            http,
            auth,
            base,
            prefix: Vec::new(),
            places: Semaphore::new(max),
            max,
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
        };
        client.prefix = client
            .asked_prefix(config.rest.warehouse.as_deref())
            .await?;
        Ok(client)
    }

    async fn asked_prefix(&self, warehouse: Option<&str>) -> Result<Vec<String>, CatalogError> {
        let query: Vec<(&str, &str)> = warehouse
            .map(|name| ("warehouse", name))
            .into_iter()
            .collect();
        let question = Question {
            query: &query,
            ..Question::get("tell its settings", &["config"])
        };
        let mut answer: ConfigAnswer = self.asked(&question).await?;
        let prefix = answer.overrides.remove("prefix");
        let prefix = prefix.or_else(|| answer.defaults.remove("prefix"));
        let prefix = prefix.unwrap_or_default();
        let parts = prefix.split('/').filter(|part| !part.is_empty());
        Ok(parts.map(str::to_owned).collect())
    }

    /// Returns how many questions may be open.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Asks, and reads a successful answer as `T`; anything else is an error.
    pub(super) async fn asked<T: serde::de::DeserializeOwned>(
        &self,
        question: &Question<'_>,
    ) -> Result<T, CatalogError> {
        let answer = self.ask(question).await?;
        let source = match answer.is_success() {
            true => match answer.json() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            },
            false => self.refused(&answer).await,
        };
        Err(CatalogError::Rest {
            action: question.action,
            source,
        })
    }

    /// Returns what the server said against it.
    pub(super) async fn refused(&self, answer: &Answer) -> RestError {
        let token = self.auth.present().await;
        let token = token.as_ref().map(Secret::reveal);
        RestError::refused(answer.status, &answer.body, token)
    }

    /// Asks, as soon as there is a place, and returns the answer whatever it says.
    pub(super) async fn ask(&self, question: &Question<'_>) -> Result<Answer, CatalogError> {
        let place = timeout(self.connect_timeout, self.places.acquire()).await;
        let Ok(Ok(place)) = place else {
            metrics::catalog_unanswered();
            return Err(CatalogError::Unanswered {
                action: question.action,
                waited_ms: self.connect_timeout.as_millis(),
            });
        };
        self.count_open();
        let answer = self.ask_at_once(question).await;
        drop(place);
        self.count_open();
        answer
    }

    fn count_open(&self) {
        metrics::catalog_connections(self.max - self.places.available_permits());
    }

    async fn ask_at_once(&self, question: &Question<'_>) -> Result<Answer, CatalogError> {
        let token = self.auth.token(&self.http).await?;
        let answer = self.send(question, token.as_ref()).await?;
        let (401, Some(stale)) = (answer.status, &token) else {
            return Ok(answer);
        };
        match self.auth.renew(&self.http, stale).await? {
            Some(fresh) => self.send(question, Some(&fresh)).await,
            None => Ok(answer),
        }
    }

    async fn send(
        &self,
        question: &Question<'_>,
        token: Option<&Secret>,
    ) -> Result<Answer, CatalogError> {
        let mut request = self
            .http
            .request(question.method.clone(), self.url(question));
        if let Some(token) = token {
            request = request.bearer_auth(token.reveal());
        }
        if let Some(key) = question.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let Some(body) = &question.body {
            request = request
                .header("content-type", "application/json")
                .body(body.clone());
        }
        self.http.send(question.action, request).await
    }

    fn url(&self, question: &Question<'_>) -> Url {
        let mut path = vec!["v1"];
        path.extend(self.prefix.iter().map(String::as_str));
        path.extend(question.path);
        let mut url = below(&self.base, &path);
        if !question.query.is_empty() {
            url.query_pairs_mut().extend_pairs(question.query);
        }
        url
    }
}

/// Returns the address below `base`, each part as one segment whatever is in it.
fn below(base: &Url, path: &[&str]) -> Url {
    let mut url = base.clone();
    url.path_segments_mut()
        .expect("an http address has a path")
        .pop_if_empty()
        .extend(path);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_an_address_stays_one_part() {
        let base = Url::parse("https://host/iceberg/").unwrap();
        let url = below(&base, &["v1", "a b/../c", "tables"]);
        assert_eq!(
            url.as_str(),
            "https://host/iceberg/v1/a%20b%2F..%2Fc/tables"
        );
    }
}
