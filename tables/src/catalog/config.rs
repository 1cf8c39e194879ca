//! The `[catalog]` section: where the catalog and the tables are. The same for every program of an
//! installation.
//!
//! Not on an event's path. Promise: a password is never part of it, and is never printed, not even by
//! `Debug`, when somebody writes one into the address all the same.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::rest::RestConfig;

use crate::store::{self, S3Config, Warehouse};

const SQLITE: &str = "sqlite://";
const POSTGRES: [&str; 2] = ["postgresql://", "postgres://"];
/// Before the `http://` or `https://` of a server.
const REST: &str = "rest+";

/// Where the catalog and the tables are.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CatalogConfig {
    /// The catalog database. `sqlite://` and a path, absolute or relative to the current directory,
    /// which is made when it is missing; or `postgresql://USER@HOST:PORT/DATABASE`, where `sslmode`,
    /// `sslrootcert` and the other parameters of libpq follow a `?`; or `rest+https://HOST:PORT/PATH`
    /// of an Iceberg REST catalog, without its `v1`. Never with a password. Default
    /// `sqlite://headwater-data/catalog.db`.
    pub uri: String,
    /// Where table data and metadata are: a directory, which is made when it is missing, or
    /// `s3://BUCKET/PREFIX`. Tables remember absolute places, so moving it later means rewriting
    /// them. Default `headwater-data/warehouse`.
    pub warehouse: String,
    /// File that holds the password of the catalog's database and nothing else; read at start.
    /// Default none: `PGPASSWORD`, or the file that `PGPASSFILE` names.
    pub password_file: Option<PathBuf>,
    /// Longest wait for a connection to the catalog, in milliseconds. Default 5000. Lower fails on a
    /// busy server; higher notices a dead one later.
    pub connect_timeout_ms: u64,
    /// Longest wait for an answer of the catalog, in milliseconds, locks of others included. A commit
    /// that takes longer counts as unknown and is resolved by reading. Default 10000. Lower makes more
    /// commits unknown; higher notices a dead server later.
    pub timeout_ms: u64,
    /// Most connections to the catalog. Default 4: reads run beside the one that commits. More help
    /// Flight SQL when many queries start at once.
    pub connections_max: u32,
    /// How the bucket is reached when `warehouse` is in one.
    pub s3: S3Config,
    /// What only a REST catalog has to be told.
    pub rest: RestConfig,
}

impl Default for CatalogConfig {
    fn default() -> Self {
        Self {
            uri: format!("{SQLITE}headwater-data/catalog.db"),
            warehouse: "headwater-data/warehouse".into(),
            password_file: None,
            connect_timeout_ms: 5_000,
            timeout_ms: 10_000,
            connections_max: 4,
            s3: S3Config::default(),
            rest: RestConfig::default(),
        }
    }
}

impl fmt::Debug for CatalogConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("CatalogConfig")
            .field("uri", &shown(&self.uri))
            .field("warehouse", &store::shown(&self.warehouse))
            .field("password_file", &self.password_file)
            .field("connect_timeout_ms", &self.connect_timeout_ms)
            .field("timeout_ms", &self.timeout_ms)
            .field("connections_max", &self.connections_max)
            .field("s3", &self.s3)
            .field("rest", &self.rest)
            .finish()
    }
}

/// A setting of the catalog cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct InvalidSetting {
    /// Dotted name of the key.
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Which kind of catalog an address means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// A SQLite file at this path.
    Sqlite(&'a str),
    /// A PostgreSQL database.
    Postgres,
    /// An Iceberg REST server at this address.
    Rest(Url),
}

impl CatalogConfig {
    /// Returns a catalog in a SQLite file with its tables beside it, both below `directory`.
    pub fn local(directory: &Path) -> Self {
        Self {
            uri: format!("{SQLITE}{}", directory.join("catalog.db").display()),
            warehouse: directory.join("warehouse").display().to_string(),
            ..Self::default()
        }
    }

    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// [`InvalidSetting`] names the first key at fault and what would be right.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        self.kind()?;
        Warehouse::parse(&self.warehouse)?;
        self.s3.validate()?;
        let bounds = [
            ("catalog.connect_timeout_ms", self.connect_timeout_ms),
            ("catalog.timeout_ms", self.timeout_ms),
            ("catalog.connections_max", self.connections_max.into()),
        ];
        for (key, value) in bounds {
            // The bound is PostgreSQL's: its timeouts are 31 bits.
            if value == 0 || i32::try_from(value).is_err() {
                let message = "must be from 1 to 2147483647".to_owned();
                return Err(InvalidSetting { key, message });
            }
        }
        Ok(())
    }

    /// Returns which kind of catalog `uri` means.
    pub(crate) fn kind(&self) -> Result<Kind<'_>, InvalidSetting> {
        let invalid = |message: String| InvalidSetting {
            key: "catalog.uri",
            message,
        };
        if let Some(path) = self.uri.strip_prefix(SQLITE)
            && !path.is_empty()
        {
            return Ok(Kind::Sqlite(path));
        }
        if let Some(address) = self.uri.strip_prefix(REST) {
            return self.rest.validate(address).map(Kind::Rest);
        }
        if !POSTGRES.iter().any(|scheme| self.uri.starts_with(scheme)) {
            return Err(invalid(format!(
                "`{}` is not supported: write `sqlite://PATH`, such as `sqlite://headwater-data/catalog.db`, `postgresql://USER@HOST:PORT/DATABASE` or `rest+https://HOST:PORT/PATH`",
                shown(&self.uri)
            )));
        }
        let url = Url::parse(&self.uri)
            .map_err(|error| invalid(format!("`{}` cannot be read: {error}", shown(&self.uri))))?;
        if url.password().is_some() || url.query_pairs().any(|(key, _)| key == "password") {
            return Err(invalid(
                "holds a password, which logs and process lists would show: write it into a file and name that in catalog.password_file, or set PGPASSWORD".to_owned(),
            ));
        }
        Ok(Kind::Postgres)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// Returns an address without what may be secret in it, also when it is none.
fn shown(uri: &str) -> String {
    if uri.starts_with(SQLITE) {
        return uri.to_owned();
    }
    let Some((scheme, rest)) = uri.split_once("://") else {
        return "(hidden)".to_owned();
    };
    let (user, place) = rest.rsplit_once('@').unwrap_or(("", rest));
    // A database has users with names; before a REST server it can only be a token.
    let user = if uri.starts_with(REST) { "" } else { user };
    let user = user.split([':', '/', '?']).next().unwrap_or_default();
    let place = place.split('?').next().unwrap_or_default();
    let at = if user.is_empty() { "" } else { "@" };
    format!("{scheme}://{user}{at}{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(uri: &str) -> CatalogConfig {
        CatalogConfig {
            uri: uri.to_owned(),
            ..CatalogConfig::default()
        }
    }

    #[test]
    fn addresses_name_their_kind() {
        let cases = [
            ("sqlite://a/b.db", Kind::Sqlite("a/b.db")),
            (
                "postgresql://me@host:5432/db?sslmode=verify-full",
                Kind::Postgres,
            ),
            ("postgres:///db?host=/run/postgresql", Kind::Postgres),
        ];
        for (uri, kind) in cases {
            assert_eq!(config(uri).kind().as_ref(), Ok(&kind), "{uri}");
        }
        let rest = config("rest+https://host/iceberg");
        let address = Url::parse("https://host/iceberg").unwrap();
        assert_eq!(rest.kind(), Ok(Kind::Rest(address)));
        for uri in ["mysql://localhost/x", "sqlite://", "x", ""] {
            let error = config(uri).validate().unwrap_err();
            assert_eq!(error.key, "catalog.uri");
            assert!(error.message.contains("not supported"), "{error}");
        }
    }

    #[test]
    fn a_password_is_refused_and_never_shown() {
        for uri in [
            "postgresql://me:hunter2@host/db",
            "postgresql://me:a@hunter2@host/db",
            "postgresql://me:a?hunter2@host/db",
            "postgresql://me:a/hunter2@host/db",
            "postgresql://host/db?password=hunter2",
            "postgresql://host/db?password=hunter2@x",
            "postgres://me:hunter2@:port/db",
            "mysql://me:hunter2@host/db",
            "me:hunter2@host",
            "rest+https://me:hunter2@host/path",
            "rest+https://hunter2@host",
            "rest+https://host/path?token=hunter2",
            "rest+me:hunter2@host",
        ] {
            let config = config(uri);
            let error = config.validate().unwrap_err();
            for text in [
                format!("{config:?}"),
                error.to_string(),
                format!("{error:?}"),
            ] {
                assert!(!text.contains("hunter2"), "{uri}: {text}");
            }
        }
    }

    #[test]
    fn bounds_that_bound_nothing_are_named() {
        let mut config = CatalogConfig::default();
        assert_eq!(config.validate(), Ok(()));
        config.connections_max = 0;
        assert_eq!(
            config.validate().unwrap_err().key,
            "catalog.connections_max"
        );
        config.timeout_ms = u64::MAX;
        assert_eq!(config.validate().unwrap_err().key, "catalog.timeout_ms");
    }
}
