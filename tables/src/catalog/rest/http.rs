//! One request over HTTP, with a bound on its time and on the size of its answer.
//!
//! Place on the event's path: below every question to a REST catalog. Promise: nothing is sent twice
//! and no redirect is followed, so that one commit is one request; the answer comes whole, or not at
//! all.

use std::time::Duration;

use reqwest::{Certificate, RequestBuilder};
use tokio::time::timeout;
use url::Url;

use super::error::RestError;
use crate::catalog::config::{CatalogConfig, InvalidSetting};
use crate::catalog::error::CatalogError;
use crate::metrics;

/// Time after which a connection that nobody uses is closed: before servers and what is between close
/// it, at which a request may be just on its way.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// Sends requests.
pub(super) struct Http {
    client: reqwest::Client,
    timeout: Duration,
    answer_bytes_max: u64,
}

/// A whole answer, whatever it says.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Reads the answer as `T`.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, RestError> {
        serde_json::from_slice(&self.body).map_err(RestError::Unreadable)
    }
}

impl Http {
    pub(super) fn new(config: &CatalogConfig) -> Result<Self, CatalogError> {
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(config.connections_max as usize);
        for certificate in authorities(config)? {
            builder = builder.add_root_certificate(certificate);
        }
        let client = builder.build().map_err(|error| InvalidSetting {
            key: "catalog.rest.ca_file",
            message: format!("TLS cannot be set up: {error}"),
        })?;
        Ok(Self {
            client,
            timeout: config.timeout(),
            answer_bytes_max: config.rest.answer_bytes_max,
        })
    }

    pub(super) fn request(&self, method: reqwest::Method, url: Url) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends the request and waits for the whole answer.
    pub(super) async fn send(
        &self,
        action: &'static str,
        request: RequestBuilder,
    ) -> Result<Answer, CatalogError> {
        match timeout(self.timeout, self.exchange(request)).await {
            Ok(answer) => answer.map_err(|source| CatalogError::Rest { action, source }),
            Err(_) => {
                metrics::catalog_unanswered();
                Err(CatalogError::Unanswered {
                    action,
                    waited_ms: self.timeout.as_millis(),
                })
            }
        }
    }

    async fn exchange(&self, request: RequestBuilder) -> Result<Answer, RestError> {
        let network = |error: reqwest::Error| RestError::Network(error.without_url());
        let mut response = request.send().await.map_err(network)?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(network)? {
            if (body.len() + chunk.len()) as u64 > self.answer_bytes_max {
                metrics::catalog_answer_too_large();
                return Err(RestError::TooLarge {
                    max: self.answer_bytes_max,
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body })
    }
}

/// Reads the certificate authorities that are trusted beside those of the machine.
fn authorities(config: &CatalogConfig) -> Result<Vec<Certificate>, CatalogError> {
    let Some(path) = &config.rest.ca_file else {
        return Ok(Vec::new());
    };
    let pem = std::fs::read(path).map_err(|source| CatalogError::Path {
        path: path.clone(),
        source,
    })?;
    let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
    if certificates.is_empty() {
        return Err(CatalogError::Setting(InvalidSetting {
            key: "catalog.rest.ca_file",
            message: "holds no PEM certificate".to_owned(),
        }));
    }
    Ok(certificates)
}
