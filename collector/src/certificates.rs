//! The collector's certificate files, as they are on disk now, and whom they let in.
//!
//! Beside the path: [`crate::endpoint`] asks at each connection, [`crate::session`] once more when the
//! session is open. Promise: a set of files is taken up whole or not at all, without a restart; one that
//! cannot be used changes nothing. Whom new files do not accept has no session from then on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::ALPN;
use headwater_service::clock::SharedClock;
use headwater_service::tls::{self, MutualServer, Stamp, TlsError};
use parking_lot::RwLock;
use quinn::Connection;
use quinn::crypto::rustls::QuicServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::config::{Config, TlsConfig};
use crate::endpoint;
use crate::metrics as names;
use crate::sessions::{self, Sessions};

/// Why new files are kept out. Said once for as long as it stays the same, so the time is not in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum KeptOut {
    #[error("{0}")]
    Tls(String),
    #[error("certificate `{}` is valid from {from_s} to {until_s} (Unix time), and not now", path.display())]
    NotValidNow {
        path: PathBuf,
        from_s: i64,
        until_s: i64,
    },
}

impl From<TlsError> for KeptOut {
    fn from(error: TlsError) -> Self {
        Self::Tls(error.to_string())
    }
}

/// One set of files: what the collector shows, and whom it believes.
pub(crate) struct Trust {
    pub(crate) server: Arc<quinn::ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    not_before_s: i64,
    not_after_s: i64,
    revocations_end_s: Option<i64>,
    /// The files as they were before they were read.
    stamp: Stamp,
}

impl Trust {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    /// [`TlsError`] names the file that cannot be used.
    pub(crate) fn read(config: &Config) -> Result<Self, TlsError> {
        let stamp = stamp(&config.tls);
        let files = config.tls.files();
        tls::refuse_development_certificate(&files.certificate, config.quic.listen)?;
        let MutualServer {
            config: server,
            verifier,
            revocations_end_s,
        } = tls::mutual_server_with(&files, config.tls.revoked.as_deref(), ALPN)?;
        let crypto = QuicServerConfig::try_from(server).map_err(|error| TlsError::Unusable {
            path: files.certificate.clone(),
            source: rustls::Error::General(error.to_string()),
        })?;
        let leaf = tls::leaf(&files.certificate)?;
        Ok(Self {
            server: Arc::new(endpoint::server_config(crypto, config)),
            verifier,
            not_before_s: leaf.not_before_s,
            not_after_s: leaf.not_after_s,
            revocations_end_s,
            stamp,
        })
    }

    /// Says whether the peer of `connection` could connect now.
    fn accepts(&self, connection: &Connection, now: UnixTime) -> Result<(), rustls::Error> {
        let chain = peer_chain(connection).ok_or(rustls::Error::NoCertificatesPresented)?;
        let (leaf, issuers) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier.verify_client_cert(leaf, issuers, now)?;
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    fn show(&self) {
        metrics::gauge!(names::CERTIFICATE_EXPIRES).set(self.not_after_s as f64);
        metrics::gauge!(names::REVOCATIONS_EXPIRE)
            .set(self.revocations_end_s.unwrap_or_default() as f64);
    }
}

/// Returns the certificates that the peer has shown, its own first.
pub(crate) fn peer_chain(connection: &Connection) -> Option<Vec<CertificateDer<'static>>> {
    let chain = connection.peer_identity()?.downcast().ok()?;
    Some(*chain)
}

fn stamp(config: &TlsConfig) -> Stamp {
    let files = [&config.certificate, &config.key, &config.ca];
    let files = files.into_iter().chain(&config.revoked);
    Stamp::of(files.map(PathBuf::as_path))
}

/// The set in force.
pub(crate) struct Certificates {
    config: Config,
    clock: SharedClock,
    current: RwLock<Arc<Trust>>,
}

impl Certificates {
    /// Begins with the set that is on disk now.
    ///
    /// # Errors
    /// [`TlsError`] names the file that cannot be used.
    pub(crate) fn read(config: &Config, clock: SharedClock) -> Result<Arc<Self>, TlsError> {
        let trust = Trust::read(config)?;
        trust.show();
        Ok(Arc::new(Self {
            config: config.clone(),
            clock,
            current: RwLock::new(Arc::new(trust)),
        }))
    }

    /// Returns the set in force.
    pub(crate) fn current(&self) -> Arc<Trust> {
        Arc::clone(&self.current.read())
    }

    /// Says whether the peer of `connection`, which `then` let in, would be let in now. Cheap while the
    /// set is the same.
    pub(crate) fn still_accepts(
        &self,
        then: &Arc<Trust>,
        connection: &Connection,
    ) -> Result<(), rustls::Error> {
        let now = self.current();
        if Arc::ptr_eq(&now, then) {
            return Ok(());
        }
        now.accepts(connection, self.now())
    }

    fn now(&self) -> UnixTime {
        let micros = u64::try_from(self.clock.now()).unwrap_or_default();
        UnixTime::since_unix_epoch(Duration::from_micros(micros))
    }

    /// Looks at the files every `tls.reload_interval_ms`, and whenever `asked`. Never returns.
    pub(crate) async fn watch(self: Arc<Self>, sessions: &Sessions, asked: &Notify) {
        let mut kept_out = None;
        let interval = Duration::from_millis(self.config.tls.reload_interval_ms);
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = asked.notified() => {}
            }
            let looking = Arc::clone(&self);
            // Fails only when the runtime ends.
            let Ok(found) = tokio::task::spawn_blocking(move || looking.look()).await else {
                return;
            };
            match found {
                Ok(None) => {}
                Ok(Some(trust)) => {
                    kept_out = None;
                    self.take_up(trust, sessions).await;
                }
                Err(error) if kept_out.as_ref() == Some(&error) => {}
                Err(error) => {
                    metrics::counter!(names::CERTIFICATE_RELOADS, "result" => "refused")
                        .increment(1);
                    tracing::error!(%error, "new certificate files are kept out; those before stay in force");
                    kept_out = Some(error);
                }
            }
        }
    }

    /// Returns a set that differs from the one in force and can be used. Blocks.
    fn look(&self) -> Result<Option<Trust>, KeptOut> {
        let found = stamp(&self.config.tls);
        if found == self.current().stamp {
            return Ok(None);
        }
        let read = Trust::read(&self.config);
        if stamp(&self.config.tls) != found {
            // They are being written just now.
            return Ok(None);
        }
        let trust = read?;
        let now_s = self.clock.now() / 1_000_000;
        if !(trust.not_before_s..=trust.not_after_s).contains(&now_s) {
            return Err(KeptOut::NotValidNow {
                path: self.config.tls.certificate.clone(),
                from_s: trust.not_before_s,
                until_s: trust.not_after_s,
            });
        }
        Ok(Some(trust))
    }

    /// Puts `trust` in force and closes the sessions of those whom it does not accept.
    async fn take_up(&self, trust: Trust, sessions: &Sessions) {
        metrics::counter!(names::CERTIFICATE_RELOADS, "result" => "taken").increment(1);
        trust.show();
        tracing::info!(
            expires_s = trust.not_after_s,
            revocations_end_s = trust.revocations_end_s,
            "new certificate files are in force"
        );
        let trust = Arc::new(trust);
        // First: who opens a session from here on asks this one.
        *self.current.write() = Arc::clone(&trust);
        let now = self.now();
        for (agent, connection) in sessions.open() {
            if let Err(error) = trust.accepts(&connection, now) {
                sessions::close_untrusted(&agent, &connection, &error);
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Shows every result with 0.
pub(crate) fn show_all() {
    for result in ["taken", "refused"] {
        metrics::counter!(names::CERTIFICATE_RELOADS, "result" => result).increment(0);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use headwater_protocol::timestamp;
    use headwater_service::clock::ManualClock;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// Puts a certificate, its key and what stands for its CA in the place of those before.
    fn issue(directory: &Path, from_year: i32) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let files = [
            ("collector.pem", &certificate),
            ("collector.key", &key.serialize_pem()),
            ("ca.pem", &certificate),
        ];
        for (name, text) in files {
            let new = directory.join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, directory.join(name)).unwrap();
        }
    }

    #[test]
    fn a_certificate_whose_time_has_not_come_is_kept_out_for_one_reason_until_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let text = format!(
            "[tls]\ncertificate = {:?}\nkey = {:?}\nca = {:?}\n",
            path("collector.pem"),
            path("collector.key"),
            path("ca.pem")
        );
        let config: Config = toml::from_str(&text).unwrap();
        issue(directory.path(), 2020);
        let at = |time: &str| timestamp::parse(time).unwrap();
        let clock = ManualClock::at(at("2026-11-01T00:00:00Z"));
        let certificates = Certificates::read(&config, clock.clone()).unwrap();
        assert!(certificates.look().is_ok_and(|found| found.is_none()));
        issue(directory.path(), 2030);
        let first = certificates.look().err();
        assert!(
            matches!(first, Some(KeptOut::NotValidNow { .. })),
            "{first:?}"
        );
        clock.set(at("2026-11-01T00:00:09Z"));
        assert_eq!(certificates.look().err(), first);
        clock.set(at("2030-01-01T00:00:00Z"));
        assert!(certificates.look().is_ok_and(|found| found.is_some()));
    }
}
