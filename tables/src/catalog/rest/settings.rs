//! The `[catalog.rest]` section: what only a REST catalog has to be told.
//!
//! Not on an event's path. Promise: tokens and secrets are in files or in the environment, never in
//! these settings, and they do not travel unencrypted unless somebody says so.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use url::{Host, Url};

use crate::catalog::config::InvalidSetting;

/// How to speak to a REST catalog. Read only when `catalog.uri` names one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestConfig {
    /// What the server calls the catalog or warehouse that is meant, for servers that have several.
    /// Default none. It names no directory: that is `catalog.warehouse`.
    pub warehouse: Option<String>,
    /// File that holds a bearer token and nothing else. Read at start, and again when the server
    /// says that the token is no longer good. Default none: `ICEBERG_REST_TOKEN`, or no token.
    pub token_file: Option<PathBuf>,
    /// File that holds `CLIENT_ID:SECRET`, which are exchanged for a token (OAuth 2 client
    /// credentials) at start and whenever the token ends. Default none.
    pub credential_file: Option<PathBuf>,
    /// Where they are exchanged. Default none: `v1/oauth/tokens` of the catalog itself.
    pub oauth2_server_uri: Option<String>,
    /// The scope that is asked for. Default `catalog`, as other clients of REST catalogs do.
    pub scope: String,
    /// PEM file of the certificate authorities of the servers, beside those that the machine trusts.
    /// Default none.
    pub ca_file: Option<PathBuf>,
    /// Speaks without TLS to other machines too. Default false: tokens, and what is committed, can
    /// be read and changed on the way.
    pub allow_plain_http: bool,
    /// Longest answer that is read, in bytes. Default 64 MiB: the metadata of a table with a
    /// thousand snapshots and ten thousand agents takes 2 MB. Lower refuses large tables; higher
    /// lets a broken server take more memory, once per connection.
    pub answer_bytes_max: u64,
}

impl Default for RestConfig {
    fn default() -> Self {
        Self {
            warehouse: None,
            token_file: None,
            credential_file: None,
            oauth2_server_uri: None,
            scope: "catalog".to_owned(),
            ca_file: None,
            allow_plain_http: false,
            answer_bytes_max: 64 << 20,
        }
    }
}

impl RestConfig {
    /// Checks the settings of the catalog at `address`, and returns that address.
    pub(in crate::catalog) fn validate(&self, address: &str) -> Result<Url, InvalidSetting> {
        let url = self.checked("catalog.uri", address)?;
        if let Some(address) = &self.oauth2_server_uri {
            self.checked("catalog.rest.oauth2_server_uri", address)?;
        }
        if self.token_file.is_some() && self.credential_file.is_some() {
            let message = "cannot be used together with catalog.rest.credential_file: name one";
            return Err(invalid("catalog.rest.token_file", message));
        }
        if self.answer_bytes_max == 0 {
            return Err(invalid("catalog.rest.answer_bytes_max", "must be above 0"));
        }
        Ok(url)
    }

    /// Reads an address that secrets are sent to. Errors do not repeat it.
    fn checked(&self, key: &'static str, address: &str) -> Result<Url, InvalidSetting> {
        let url = Url::parse(address)
            .map_err(|error| invalid(key, format!("cannot be read: {error}")))?;
        if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
            return Err(invalid(
                key,
                "must be the http or https address of a server",
            ));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(invalid(
                key,
                "holds a user, a password or parameters, which logs and process lists would show: name files in catalog.rest.token_file or catalog.rest.credential_file",
            ));
        }
        if url.scheme() == "http" && !is_loopback(&url) && !self.allow_plain_http {
            return Err(invalid(
                key,
                "speaks to another machine without TLS: write https, or set catalog.rest.allow_plain_http",
            ));
        }
        Ok(url)
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn invalid(key: &'static str, message: impl fmt::Display) -> InvalidSetting {
    InvalidSetting {
        key,
        message: message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: &RestConfig, address: &str) -> InvalidSetting {
        config.validate(address).unwrap_err()
    }

    #[test]
    fn secrets_do_not_travel_in_addresses_or_in_the_clear() {
        let config = RestConfig::default();
        for address in [
            "https://catalog.internal/iceberg",
            "http://localhost:8181",
            "http://127.0.0.1:8181/",
            "http://[::1]:8181",
        ] {
            assert!(config.validate(address).is_ok(), "{address}");
        }
        for (address, reason) in [
            ("https://me:hunter2@host", "password"),
            ("https://hunter2@host", "password"),
            ("https://host?token=hunter2", "parameters"),
            ("http://catalog.internal", "without TLS"),
            ("ftp://host", "http or https"),
            ("https://", "cannot be read"),
        ] {
            let error = refused(&config, address);
            assert_eq!(error.key, "catalog.uri");
            assert!(error.message.contains(reason), "{address}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let plain = RestConfig {
            allow_plain_http: true,
            ..RestConfig::default()
        };
        assert!(plain.validate("http://catalog.internal").is_ok());
    }

    #[test]
    fn settings_that_contradict_each_other_are_named() {
        let mut config = RestConfig {
            token_file: Some("token".into()),
            credential_file: Some("credential".into()),
            ..RestConfig::default()
        };
        let address = "https://host";
        assert_eq!(refused(&config, address).key, "catalog.rest.token_file");
        config.token_file = None;
        config.oauth2_server_uri = Some("http://elsewhere/token".to_owned());
        assert_eq!(
            refused(&config, address).key,
            "catalog.rest.oauth2_server_uri"
        );
        config.oauth2_server_uri = None;
        config.answer_bytes_max = 0;
        assert_eq!(
            refused(&config, address).key,
            "catalog.rest.answer_bytes_max"
        );
    }
}
