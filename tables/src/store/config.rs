//! The `[catalog.s3]` section, and what `catalog.warehouse` names: a directory, or a place in a bucket.
//!
//! Not on an event's path. Promise: a secret is never part of it, and is never printed, not even by
//! `Debug`, when somebody writes one into an address all the same.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use url::{Host, Url};

use crate::catalog::InvalidSetting;

const SCHEME: &str = "s3://";
/// The smallest part that S3 takes, except for the last one.
const PART_BYTES_MIN: u64 = 5 << 20;
/// The largest part that S3 takes.
const PART_BYTES_MAX: u64 = 5 << 30;

/// How the bucket of a warehouse `s3://BUCKET/PREFIX` is reached.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// Address of the service, such as `https://minio.internal:9000`. Default none: that of AWS in the
    /// region. Without the bucket's name, and never with a key or a secret.
    pub endpoint: Option<String>,
    /// The bucket's region, which requests are signed for. Default none: `AWS_REGION`, then
    /// `AWS_DEFAULT_REGION`, then `us-east-1`. A wrong one is answered with an error or a redirect.
    pub region: Option<String>,
    /// Whether the bucket's name is put before the host's (`BUCKET.HOST`) instead of into the path
    /// (`HOST/BUCKET`). Default false: what every service understands.
    pub virtual_hosted: bool,
    /// Whether an endpoint that begins with `http://` may be on another machine. Default false: what
    /// is stored, and who stores it, would be open to the network.
    pub allow_http: bool,
    /// Certificates of the authority that signed the endpoint's, PEM. Default none: those that the
    /// system trusts, which stay trusted in any case.
    pub ca_file: Option<PathBuf>,
    /// File with the key id on its first line and the secret on its second, a session token may be
    /// on its third; or a profile `[default]` as AWS writes it. Read at start. Default none:
    /// `AWS_ACCESS_KEY_ID` with `AWS_SECRET_ACCESS_KEY`, then what the environment says of web
    /// identities and containers, then the role of the machine.
    pub credentials_file: Option<PathBuf>,
    /// Longest wait for a connection, in milliseconds. Default 5000. Lower fails on a slow network,
    /// higher notices a dead service later.
    pub connect_timeout_ms: u64,
    /// Longest time that one try may take, its answer included, in milliseconds. Default 30000: 8 MiB
    /// at 2.5 Mbit/s. Lower gives up on slow networks, higher notices a silent service later.
    pub request_timeout_ms: u64,
    /// Times that a request is tried again after an error of the service or the network. Default 5.
    /// Fewer let a commit fail, which the collector tries again anyway; more make it wait longer.
    pub retries_max: usize,
    /// Time after which a request is not tried again, in milliseconds. Default 30000: together with
    /// one more try the longest that a request takes.
    pub retry_within_ms: u64,
    /// Most requests at once, of one program; more wait. Default 64. Fewer slow down queries, more
    /// open more connections.
    pub requests_max: usize,
    /// Bytes above which a file is sent in parts of this size. Default 8388608, at least 5242880. Smaller
    /// parts cost more requests, larger ones more memory: up to `part_bytes` times `parts_max` + 1
    /// of one file.
    pub part_bytes: u64,
    /// Parts of one file that are on their way at once. Default 4. Fewer slow down large files, more
    /// take more memory.
    pub parts_max: usize,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            virtual_hosted: false,
            allow_http: false,
            ca_file: None,
            credentials_file: None,
            connect_timeout_ms: 5_000,
            request_timeout_ms: 30_000,
            retries_max: 5,
            retry_within_ms: 30_000,
            requests_max: 64,
            part_bytes: 8 << 20,
            parts_max: 4,
        }
    }
}

impl fmt::Debug for S3Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.endpoint.as_deref().map(shown);
        formatter
            .debug_struct("S3Config")
            .field("endpoint", &endpoint)
            .field("region", &self.region)
            .field("virtual_hosted", &self.virtual_hosted)
            .field("allow_http", &self.allow_http)
            .field("ca_file", &self.ca_file)
            .field("credentials_file", &self.credentials_file)
            .field("connect_timeout_ms", &self.connect_timeout_ms)
            .field("request_timeout_ms", &self.request_timeout_ms)
            .field("retries_max", &self.retries_max)
            .field("retry_within_ms", &self.retry_within_ms)
            .field("requests_max", &self.requests_max)
            .field("part_bytes", &self.part_bytes)
            .field("parts_max", &self.parts_max)
            .finish()
    }
}

impl S3Config {
    /// Checks what can be checked without a request.
    pub(crate) fn validate(&self) -> Result<(), InvalidSetting> {
        self.endpoint_url()?;
        let day_ms = 86_400_000;
        let whole = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let bounds = [
            (
                "catalog.s3.connect_timeout_ms",
                self.connect_timeout_ms,
                1,
                day_ms,
            ),
            (
                "catalog.s3.request_timeout_ms",
                self.request_timeout_ms,
                1,
                day_ms,
            ),
            ("catalog.s3.retries_max", whole(self.retries_max), 0, 100),
            // A request is signed once, and its signature is good for fifteen minutes.
            (
                "catalog.s3.retry_within_ms",
                self.retry_within_ms,
                0,
                600_000,
            ),
            (
                "catalog.s3.requests_max",
                whole(self.requests_max),
                1,
                10_000,
            ),
            (
                "catalog.s3.part_bytes",
                self.part_bytes,
                PART_BYTES_MIN,
                PART_BYTES_MAX,
            ),
            ("catalog.s3.parts_max", whole(self.parts_max), 1, 1_000),
        ];
        for (key, value, least, most) in bounds {
            if !(least..=most).contains(&value) {
                return Err(invalid(key, format!("must be from {least} to {most}")));
            }
        }
        Ok(())
    }

    /// Returns the endpoint, `None` for AWS.
    pub(crate) fn endpoint_url(&self) -> Result<Option<Url>, InvalidSetting> {
        const KEY: &str = "catalog.s3.endpoint";
        let Some(text) = &self.endpoint else {
            return Ok(None);
        };
        let wrong = || {
            let form = "write `https://HOST` or `https://HOST:PORT`";
            invalid(KEY, format!("`{}` cannot be used: {form}", shown(text)))
        };
        let url = Url::parse(text).map_err(|_| wrong())?;
        if !url.username().is_empty() || url.password().is_some() {
            let message = "holds a user or a secret, which logs would show: name a file with both in catalog.s3.credentials_file, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
            return Err(invalid(KEY, message.to_owned()));
        }
        let is_bare = url.query().is_none() && url.fragment().is_none() && url.path() == "/";
        match (url.scheme(), is_bare, url.host()) {
            ("https", true, Some(_)) => Ok(Some(url)),
            ("http", true, Some(host)) if self.allow_http || is_loopback(&host) => Ok(Some(url)),
            ("http", true, Some(_)) => {
                let message = format!(
                    "`{}` is not encrypted and is not this machine: write `https://`, or set catalog.s3.allow_http = true in a network that nobody else can read",
                    shown(text)
                );
                Err(invalid(KEY, message))
            }
            _ => Err(wrong()),
        }
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout_ms)
    }

    pub(crate) fn retry_within(&self) -> Duration {
        Duration::from_millis(self.retry_within_ms)
    }
}

fn invalid(key: &'static str, message: String) -> InvalidSetting {
    InvalidSetting { key, message }
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => *name == "localhost",
        Host::Ipv4(address) => IpAddr::from(*address).is_loopback(),
        Host::Ipv6(address) => IpAddr::from(*address).is_loopback(),
    }
}

/// Where the tables are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Warehouse<'a> {
    /// A directory of this machine.
    Local(&'a Path),
    /// A place in a bucket.
    S3 {
        bucket: &'a str,
        /// What the keys begin with, without a slash at either end; may be empty.
        prefix: &'a str,
    },
}

impl<'a> Warehouse<'a> {
    /// Reads `catalog.warehouse`.
    pub(crate) fn parse(text: &'a str) -> Result<Self, InvalidSetting> {
        let wrong = |reason: &str| {
            let form = "write a directory, or `s3://BUCKET/PREFIX`";
            let message = format!("`{}` {reason}: {form}", shown(text));
            invalid("catalog.warehouse", message)
        };
        let Some(place) = text.strip_prefix(SCHEME) else {
            return match text {
                "" => Err(wrong("names nothing")),
                _ if text.contains("://") => Err(wrong("is not supported")),
                _ => Ok(Self::Local(Path::new(text))),
            };
        };
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if !is_bucket(bucket) {
            return Err(wrong("names no bucket"));
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if !prefix.is_empty() && !prefix.split('/').all(is_segment) {
            let reason = "has a prefix of other characters than letters, digits and `-_.=` between single slashes";
            return Err(wrong(reason));
        }
        Ok(Self::S3 { bucket, prefix })
    }
}

fn is_bucket(name: &str) -> bool {
    let is_character =
        |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || b"-.".contains(&it);
    (3..=63).contains(&name.len()) && name.bytes().all(is_character)
}

fn is_segment(text: &str) -> bool {
    let is_character = |it: u8| it.is_ascii_alphanumeric() || b"-_.=".contains(&it);
    !["", ".", ".."].contains(&text) && text.bytes().all(is_character)
}

/// Returns an address without what may be secret in it: user, query and all behind them.
pub(crate) fn shown(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else {
        return address.to_owned();
    };
    let (user, place) = rest.rsplit_once('@').unwrap_or(("", rest));
    let hidden = if user.is_empty() { "" } else { "(hidden)@" };
    let place = place.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{hidden}{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warehouse_is_a_directory_or_a_place_in_a_bucket() {
        let s3 = |bucket, prefix| Warehouse::S3 { bucket, prefix };
        let cases = [
            ("a/b", Warehouse::Local(Path::new("a/b"))),
            ("/srv/w", Warehouse::Local(Path::new("/srv/w"))),
            ("s3://lake", s3("lake", "")),
            ("s3://lake/", s3("lake", "")),
            ("s3://my.lake-1/a/b=c/", s3("my.lake-1", "a/b=c")),
        ];
        for (text, place) in cases {
            assert_eq!(Warehouse::parse(text), Ok(place), "{text}");
        }
        for text in [
            "",
            "s3://",
            "s3:///a",
            "s3://Lake/a",
            "s3://la/a",
            "s3://lake//a",
            "s3://lake/../a",
            "s3://lake/a b",
            "s3://lake/a?b",
            "s3://me:hunter2@lake/a",
            "gs://lake/a",
            "s3a://lake",
            "file:///srv",
        ] {
            let error = Warehouse::parse(text).unwrap_err();
            assert_eq!(error.key, "catalog.warehouse", "{text}");
            assert!(error.message.contains("s3://BUCKET/PREFIX"), "{error}");
            assert!(!error.message.contains("hunter2"), "{error}");
        }
    }

    fn endpoint(text: &str, allow_http: bool) -> Result<(), InvalidSetting> {
        let config = S3Config {
            endpoint: Some(text.to_owned()),
            allow_http,
            ..S3Config::default()
        };
        config.validate()
    }

    #[test]
    fn an_endpoint_is_encrypted_or_on_this_machine_unless_told_otherwise() {
        for text in [
            "https://s3.internal",
            "https://s3.internal:9000/",
            "http://127.0.0.1:9000",
            "http://[::1]:9000",
            "http://localhost:9000",
        ] {
            assert_eq!(endpoint(text, false), Ok(()), "{text}");
        }
        for text in [
            "http://s3.internal",
            "http://10.0.0.1:9000",
            "http://127.0.0.1.example",
        ] {
            let error = endpoint(text, false).unwrap_err();
            assert!(error.message.contains("allow_http"), "{error}");
            assert_eq!(endpoint(text, true), Ok(()), "{text}");
        }
        for text in [
            "s3.internal",
            "ftp://x",
            "https://",
            "https://x/bucket",
            "https://x?a=b",
        ] {
            let error = endpoint(text, true).unwrap_err();
            assert_eq!(error.key, "catalog.s3.endpoint", "{text}");
        }
    }

    #[test]
    fn a_secret_in_an_address_is_refused_and_never_shown() {
        for text in [
            "https://AKIA:hunter2@s3.internal",
            "https://hunter2@s3.internal",
            "https://AKIA:hunter2@s3.internal:port",
            "https://AKIA:a@hunter2@s3.internal",
            "http://AKIA:hunter2@s3.internal",
            "https://s3.internal?secret=hunter2",
        ] {
            let config = S3Config {
                endpoint: Some(text.to_owned()),
                ..S3Config::default()
            };
            let error = config.validate().unwrap_err();
            for shown in [
                format!("{config:?}"),
                format!("{error:?}"),
                error.to_string(),
            ] {
                assert!(!shown.contains("hunter2"), "{text}: {shown}");
            }
        }
    }

    #[test]
    fn bounds_that_bound_nothing_are_named() {
        type Spoil = fn(&mut S3Config);
        let cases: [(&str, Spoil); 8] = [
            ("catalog.s3.connect_timeout_ms", |it| {
                it.connect_timeout_ms = 0
            }),
            ("catalog.s3.request_timeout_ms", |it| {
                it.request_timeout_ms = u64::MAX
            }),
            ("catalog.s3.retries_max", |it| it.retries_max = 101),
            ("catalog.s3.retry_within_ms", |it| {
                it.retry_within_ms = 900_000
            }),
            ("catalog.s3.requests_max", |it| it.requests_max = 0),
            ("catalog.s3.part_bytes", |it| it.part_bytes = 1 << 20),
            ("catalog.s3.part_bytes", |it| it.part_bytes = 6 << 30),
            ("catalog.s3.parts_max", |it| it.parts_max = 0),
        ];
        for (key, spoil) in cases {
            let mut config = S3Config::default();
            assert_eq!(config.validate(), Ok(()));
            spoil(&mut config);
            assert_eq!(config.validate().unwrap_err().key, key);
        }
    }
}
