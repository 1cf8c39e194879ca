//! The certificate, key and CA in use, and the watch on their files.
//!
//! A set that was replaced on disk is taken up within about a second, but only when it is whole: key
//! and certificate fit, the certificate names this agent and is valid now. Anything else is kept out
//! with an error that names the file, and the set before it stays in use. What is taken up counts for
//! the next connection; the session then moves over (see `successor`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::{ALPN, AgentId};
use headwater_service::clock::SharedClock;
use headwater_service::tls::{self, Leaf, Stamp, TlsError, TlsFiles};
use metrics::{counter, gauge};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::sync::watch;
use tracing::{error, info};

use crate::metrics::{CERTIFICATE_EXPIRES, CERTIFICATE_RELOADS};
use crate::reload::Settings;

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Why a set of files is kept out. Said once for as long as it stays the same, so the time is not in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialsError {
    /// A file cannot be read, or they do not fit together.
    #[error("{0}")]
    Tls(String),
    /// It is somebody else's.
    #[error("certificate `{}` names `{}`, this is agent `{agent_id}`", path.display(), name.as_deref().unwrap_or("nobody"))]
    OtherAgent {
        path: PathBuf,
        name: Option<String>,
        agent_id: AgentId,
    },
    /// Its time is over or has not come.
    #[error("certificate `{}` is valid from {from_s} to {until_s} (Unix time), and not now", path.display())]
    NotValidNow {
        path: PathBuf,
        from_s: i64,
        until_s: i64,
    },
}

impl From<TlsError> for CredentialsError {
    fn from(error: TlsError) -> Self {
        Self::Tls(error.to_string())
    }
}

/// A set that can be used for connections.
pub struct Credentials {
    pub(super) client: Arc<QuicClientConfig>,
    leaf: Leaf,
    /// The files as they were before they were read.
    stamp: Stamp,
}

impl std::fmt::Debug for Credentials {
    /// Shows no key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("leaf", &self.leaf)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the files, whoever they name and whenever they are valid.
    ///
    /// # Errors
    /// [`TlsError`] names the file that cannot be used.
    pub fn read(files: &TlsFiles) -> Result<Arc<Self>, TlsError> {
        let found = stamp(files);
        let config = tls::mutual_client(files, ALPN)?;
        let client = QuicClientConfig::try_from(config).map_err(|error| TlsError::File {
            what: "certificate",
            path: files.certificate.clone(),
            message: error.to_string(),
        })?;
        let leaf = tls::leaf(&files.certificate)?;
        Ok(Arc::new(Self {
            client: Arc::new(client),
            leaf,
            stamp: found,
        }))
    }

    /// Says whether this agent can use the set now.
    fn check(
        &self,
        files: &TlsFiles,
        agent_id: &AgentId,
        now_s: i64,
    ) -> Result<(), CredentialsError> {
        let leaf = &self.leaf;
        if leaf.common_name.as_deref() != Some(agent_id.as_str()) {
            return Err(CredentialsError::OtherAgent {
                path: files.certificate.clone(),
                name: leaf.common_name.clone(),
                agent_id: agent_id.clone(),
            });
        }
        if !(leaf.not_before_s..=leaf.not_after_s).contains(&now_s) {
            return Err(CredentialsError::NotValidNow {
                path: files.certificate.clone(),
                from_s: leaf.not_before_s,
                until_s: leaf.not_after_s,
            });
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
    fn show(&self) {
        gauge!(CERTIFICATE_EXPIRES).set(self.leaf.not_after_s as f64);
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    Stamp::of([&*files.certificate, &*files.key, &*files.ca])
}

/// Watches the files that the settings name and puts whole new sets into `current`. Never returns.
pub(super) async fn watch(
    current: watch::Sender<Arc<Credentials>>,
    settings: Settings,
    agent_id: AgentId,
    clock: SharedClock,
) {
    current.borrow().show();
    let mut refused = None;
    let mut ticks = tokio::time::interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let files = settings.now().tls.clone();
        let (held, agent_id) = (current.borrow().clone(), agent_id.clone());
        let now_s = clock.now() / 1_000_000;
        let look = move || look(&held, &files, &agent_id, now_s);
        // Fails only when the runtime ends.
        let Ok(found) = tokio::task::spawn_blocking(look).await else {
            return;
        };
        match found {
            Found::Nothing => {}
            Found::Unusable(error) => {
                if refused.as_ref() != Some(&error) {
                    counter!(CERTIFICATE_RELOADS, "result" => "refused").increment(1);
                    error!(%error, "new certificate files are kept out; those before stay in use");
                    refused = Some(error);
                }
            }
            Found::New(credentials) => {
                counter!(CERTIFICATE_RELOADS, "result" => "taken").increment(1);
                info!(
                    serial = credentials.leaf.serial,
                    expires_s = credentials.leaf.not_after_s,
                    "new certificate files are taken up"
                );
                credentials.show();
                refused = None;
                current.send_replace(credentials);
            }
        }
    }
}

enum Found {
    /// The files are those in use, or are being written just now.
    Nothing,
    New(Arc<Credentials>),
    Unusable(CredentialsError),
}

/// Looks at the files once. A set that is kept out is looked at again each time: it may only have to
/// become valid.
fn look(held: &Credentials, files: &TlsFiles, agent_id: &AgentId, now_s: i64) -> Found {
    let found = stamp(files);
    if found == held.stamp {
        return Found::Nothing;
    }
    let read = Credentials::read(files).map_err(CredentialsError::from);
    if stamp(files) != found {
        return Found::Nothing;
    }
    let checked = read.and_then(|new| {
        new.check(files, agent_id, now_s)?;
        Ok(new)
    });
    match checked {
        Ok(new) => Found::New(new),
        Err(error) => Found::Unusable(error),
    }
}
