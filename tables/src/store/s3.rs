//! The client of a bucket: one per catalog, with bounds on every wait.
//!
//! Place on the event's path: made when a program starts, before the first event. Promise: an answer
//! or an error within `retry_within_ms` and one more try; each try is counted.

use std::sync::Arc;

use async_trait::async_trait;
use object_store::aws::AmazonS3Builder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::config::S3Config;
use super::credentials;
use super::error::{StoreError, explain};
use crate::catalog::{CatalogError, InvalidSetting};
use crate::metrics;

/// Makes the client of the bucket; nothing is asked yet.
pub(super) fn client(
    config: &S3Config,
    bucket: &str,
) -> Result<Arc<dyn ObjectStore>, CatalogError> {
    let environment = |name: &str| std::env::var(name).ok();
    let builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(config.virtual_hosted)
        .with_client_options(options(config)?)
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: config.retries_max,
            retry_timeout: config.retry_within(),
        })
        .with_http_connector(Counting);
    let mut builder = credentials::add(builder, config, environment)?;
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = config.endpoint_url()? {
        builder = builder.with_endpoint(address(&endpoint, config.virtual_hosted, bucket));
    }
    let client = builder.build().map_err(|error| StoreError::Client {
        place: format!("s3://{bucket}"),
        reason: explain(&error),
    })?;
    Ok(Arc::new(client))
}

/// Returns the endpoint as the client wants it: with the bucket in the host's name where it is to be.
fn address(endpoint: &Url, virtual_hosted: bool, bucket: &str) -> String {
    let text = endpoint.as_str().trim_end_matches('/');
    match text.split_once("://") {
        Some((scheme, host)) if virtual_hosted => format!("{scheme}://{bucket}.{host}"),
        _ => text.to_owned(),
    }
}

fn options(config: &S3Config) -> Result<ClientOptions, CatalogError> {
    let is_plain = |url: &Url| url.scheme() == "http";
    let mut options = ClientOptions::new()
        .with_connect_timeout(config.connect_timeout())
        .with_timeout(config.request_timeout())
        .with_pool_max_idle_per_host(config.requests_max)
        .with_allow_http(config.endpoint_url()?.as_ref().is_some_and(is_plain));
    let Some(path) = &config.ca_file else {
        return Ok(options);
    };
    let pem = std::fs::read(path).map_err(|source| CatalogError::Path {
        path: path.clone(),
        source,
    })?;
    let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
    if certificates.is_empty() {
        return Err(CatalogError::Setting(InvalidSetting {
            key: "catalog.s3.ca_file",
            message: format!("`{}` holds no PEM certificates", path.display()),
        }));
    }
    for certificate in certificates {
        options = options.with_root_certificate(certificate);
    }
    Ok(options)
}

/// Makes clients whose tries are counted.
#[derive(Debug)]
struct Counting;

impl HttpConnector for Counting {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Counted(client)))
    }
}

/// A client whose tries are counted.
#[derive(Debug)]
struct Counted(HttpClient);

#[async_trait]
impl HttpService for Counted {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.0.execute(request).await;
        metrics::store_tried(match &answer {
            Ok(answer) => said(answer.status().as_u16()),
            Err(error) => silence(error.kind()),
        });
        answer
    }
}

fn said(status: u16) -> &'static str {
    match status {
        408 | 429 | 500.. => "busy",
        400.. => "refused",
        _ => "answered",
    }
}

fn silence(kind: HttpErrorKind) -> &'static str {
    match kind {
        HttpErrorKind::Connect => "unreachable",
        HttpErrorKind::Timeout => "silent",
        _ => "cut",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_is_in_the_path_or_in_the_host() {
        let endpoint = Url::parse("https://s3.internal:9000").unwrap();
        assert_eq!(
            address(&endpoint, false, "lake"),
            "https://s3.internal:9000"
        );
        assert_eq!(
            address(&endpoint, true, "lake"),
            "https://lake.s3.internal:9000"
        );
    }

    #[test]
    fn what_a_try_ended_with_is_told_apart() {
        let found = [200, 206, 304, 403, 404, 408, 412, 429, 500, 503].map(said);
        let answered = ["answered"; 3];
        assert_eq!(found[..3], answered);
        assert_eq!(
            found[3..],
            [
                "refused", "refused", "busy", "refused", "busy", "busy", "busy"
            ]
        );
    }
}
