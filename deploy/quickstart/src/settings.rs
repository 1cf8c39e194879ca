//! Settings of the quickstart: a data directory, a seed and ports. Everything listens on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use headwater_service::config::ConfigError;
use headwater_service::logging::LogConfig;
use serde::Deserialize;

use crate::world;

/// The configuration file of `headwater`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Directory of everything that is kept. Default `headwater-data`.
    pub data_dir: PathBuf,
    /// Seed of the sample. Default 20261120. Used when the data directory is new.
    pub seed: u64,
    /// Ports on 127.0.0.1.
    pub ports: Ports,
    /// Log lines on standard error. Default level `warn`: the screen is for the sample.
    pub log: LogConfig,
}

/// The `[ports]` section; 0 takes any free port.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    /// Ingest API of the agent (TCP). Default 7070.
    pub http: u16,
    /// Admin endpoint of the agent (TCP). Default 7071.
    pub http_admin: u16,
    /// Collector (UDP). Default 7080.
    pub quic: u16,
    /// Admin endpoint of the collector (TCP). Default 7081.
    pub quic_admin: u16,
    /// Flight SQL (TCP). Default 7090.
    pub sql: u16,
    /// Admin endpoint of the SQL server (TCP). Default 7091.
    pub sql_admin: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            http: 7070,
            http_admin: 7071,
            quic: 7080,
            quic_admin: 7081,
            sql: 7090,
            sql_admin: 7091,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("headwater-data"),
            seed: world::SEED,
            ports: Ports::default(),
            log: LogConfig {
                level: "warn".to_owned(),
                ..LogConfig::default()
            },
        }
    }
}

/// Returns `port` on loopback: the quickstart is never reachable from elsewhere.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

impl Settings {
    /// Checks that the values fit together.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the key at fault.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Ports {
            http,
            http_admin,
            quic: _,
            quic_admin,
            sql,
            sql_admin,
        } = self.ports;
        let mut tcp: Vec<u16> = [http, http_admin, quic_admin, sql, sql_admin]
            .into_iter()
            .filter(|port| *port != 0)
            .collect();
        tcp.sort_unstable();
        if let Some(twice) = tcp.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigError::Value {
                key: "ports",
                message: format!("port `{}` stands twice; give each its own", twice[0]),
            });
        }
        if self.data_dir.as_os_str().is_empty() {
            return Err(ConfigError::Value {
                key: "data_dir",
                message: "is empty; name a directory".to_owned(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_for_two_listeners_is_refused() {
        let mut settings = Settings::default();
        settings.validate().unwrap();
        settings.ports.sql = 7070;
        let error = settings.validate().unwrap_err().to_string();
        assert!(error.contains("7070"), "{error}");
    }
}
