//! The collector: receives batches from agents over QUIC and commits them to Iceberg exactly once.
//!
//! An event's path through this crate, file by file:
//!
//! ```text
//! endpoint   QUIC, mutual TLS, who may try
//!   certificates  whom the files on disk let in
//! session    Hello → Welcome
//!  stream      one QUIC stream per batch: bytes in, answer out
//! engine     everything below, without a socket: what a simulation drives
//! intake     one batch: header, turn, body, answer
//!  admission   new, duplicate, overlap or gap (pure)
//!  room        for staged bytes, and each agent's share of it
//!  ledger      how far each agent has come; early batches wait here for their turn
//! plan       the tracking plan: what events are judged by
//! staging    records → events → Arrow rows of raw.events and raw.quarantine
//! commit     everything staged → one snapshot with rows and watermarks → read back → acks
//! ```
//!
//! Beside the path, `quarantine` lists, shows and replays what could not be accepted.
//!
//! Promise: the collector keeps nothing on disk. An ack means "committed to Iceberg and read back"
//! (EO-2), so a collector that dies loses nothing and any other can take over at any moment.

pub mod admission;
mod certificates;
pub mod commit;
pub mod config;
mod endpoint;
pub mod engine;
pub mod intake;
mod ledger;
pub mod metrics;
pub mod plan;
pub mod quarantine;
mod readiness;
mod refusal;
mod room;
mod series;
mod session;
mod sessions;
pub mod staging;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::close;
use headwater_service::admin::{self, ListenError, Pages};
use headwater_service::chance::SystemChance;
use headwater_service::clock::SharedClock;
use headwater_service::tls::TlsError;
use headwater_tables::{Catalog, CatalogError, schema};
use quinn::Endpoint;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use certificates::Certificates;
use commit::{CommitHook, Committer, Killed, NoHook};
pub use config::Config;
use engine::{Engine, EngineParts};
use plan::PlanError;
use plan::live::LivePlan;

/// Longest wait for peers to learn of the close.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Why the collector cannot start. None is worth a retry before something is changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificates or keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The catalog or its tables.
    #[error("cannot open the [catalog] `{uri}`: {source}")]
    Catalog {
        /// Where the catalog is.
        uri: String,
        /// What it said.
        #[source]
        source: CatalogError,
    },
    /// `raw.quarantine` has columns of other types.
    #[error("{source}; {advice}", advice = quarantine::OTHER_VERSION)]
    OtherVersion {
        /// What differs.
        source: CatalogError,
    },
    /// The tracking plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// An address is taken or not allowed.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Why a running collector ended other than by its stop token, or not as it should then. Nothing that was
/// acked is lost.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A fault hook ended it.
    #[error(transparent)]
    Killed(#[from] Killed),
    /// A task died.
    #[error("the {task} task died: {source}; restart the collector")]
    Died {
        /// Which one.
        task: &'static str,
        /// How.
        #[source]
        source: tokio::task::JoinError,
    },
    /// A task ended although nobody asked it to.
    #[error("the {task} task ended by itself; restart the collector")]
    Ended {
        /// Which one.
        task: &'static str,
    },
    /// The admin endpoint failed.
    #[error("the admin endpoint failed: {0}")]
    Admin(#[source] std::io::Error),
}

/// A collector at work.
#[derive(Debug)]
pub struct Running {
    /// The UDP address that agents connect to.
    pub address: SocketAddr,
    /// The TCP address of `/metrics`, `/healthz` and `/readyz`.
    pub admin_address: SocketAddr,
    /// Told when the certificate files should be looked at now, as at SIGHUP.
    pub reload: Arc<Notify>,
    plan: LivePlan,
    catalog: Catalog,
    supervisor: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Returns the plan in force and the catalog, with which it can be read again while the collector
    /// runs.
    pub fn plan(&self) -> (LivePlan, Catalog) {
        (self.plan.clone(), self.catalog.clone())
    }

    /// Waits until the stop token was cancelled and everything ended within its bound.
    ///
    /// # Errors
    /// [`RunError`] when the collector ended for another reason.
    pub async fn finished(self) -> Result<(), RunError> {
        self.supervisor.await.map_err(|source| RunError::Died {
            task: "supervisor",
            source,
        })?
    }
}

/// Starts a collector; it runs until `stop` is cancelled.
///
/// # Errors
/// See [`StartError`].
pub async fn start(
    config: Config,
    clock: SharedClock,
    stop: CancellationToken,
) -> Result<Running, StartError> {
    start_with(config, clock, stop, Arc::new(NoHook)).await
}

/// As [`start`], with faults injected around commits by `hook`.
///
/// # Errors
/// See [`StartError`].
pub async fn start_with(
    config: Config,
    clock: SharedClock,
    stop: CancellationToken,
    hook: Arc<dyn CommitHook>,
) -> Result<Running, StartError> {
    admin::init_metrics();
    metrics::describe();
    refusal::show_all();
    sessions::show_all();
    certificates::show_all();
    headwater_tables::metrics::describe();
    let certificates = Certificates::read(&config, clock.clone())?;
    let plan = LivePlan::open(config.plan.directory())?;
    let catalog = open_catalog(&config).await?;
    plan.now().ensure_columns(&catalog).await?;
    let admin_listener = admin::listen(config.admin.listen, "the admin endpoint").await?;
    let tls = quinn::ServerConfig::clone(&certificates.current().server);
    let endpoint = listen(tls, config.quic.listen)?;
    let address = bound(endpoint.local_addr(), config.quic.listen)?;
    let admin_address = bound(admin_listener.local_addr(), config.admin.listen)?;

    let parts = EngineParts {
        config,
        catalog: catalog.clone(),
        clock,
        chance: SystemChance::shared(),
        hook,
        plan: plan.clone(),
    };
    let (engine, committer) = parts.assemble(&stop);
    tracing::info!(%address, %admin_address, "collector started");
    let reload = Arc::new(Notify::new());
    let parts = Parts {
        engine,
        endpoint,
        certificates,
        reload: Arc::clone(&reload),
    };
    let supervisor = tokio::spawn(parts.supervise(committer, admin_listener));
    Ok(Running {
        address,
        admin_address,
        reload,
        plan,
        catalog,
        supervisor,
    })
}

async fn open_catalog(config: &Config) -> Result<Catalog, StartError> {
    let failed = |source| StartError::Catalog {
        uri: config.catalog.uri.clone(),
        source,
    };
    let catalog = Catalog::open(&config.catalog).await.map_err(failed)?;
    match catalog.ensure(&schema::raw_quarantine()).await {
        Ok(_) => Ok(catalog),
        Err(source @ CatalogError::Incompatible { .. }) => Err(StartError::OtherVersion { source }),
        Err(error) => Err(failed(error)),
    }
}

const PURPOSE: &str = "agents (QUIC)";

fn listen(config: quinn::ServerConfig, address: SocketAddr) -> Result<Endpoint, ListenError> {
    Endpoint::server(config, address).map_err(|source| ListenError {
        address,
        purpose: PURPOSE,
        source,
    })
}

fn bound(
    bound: std::io::Result<SocketAddr>,
    address: SocketAddr,
) -> Result<SocketAddr, ListenError> {
    bound.map_err(|source| ListenError {
        address,
        purpose: PURPOSE,
        source,
    })
}

/// What the supervisor holds together.
struct Parts {
    engine: Engine,
    endpoint: Endpoint,
    certificates: Arc<Certificates>,
    reload: Arc<Notify>,
}

impl Parts {
    /// Runs all tasks; when one ends or the stop token is cancelled, ends the others.
    async fn supervise(self, committer: Committer, admin: TcpListener) -> Result<(), RunError> {
        let (readiness, shown) = (Arc::clone(&self.engine.readiness), self.engine.clone());
        let mut pages = Pages::of(Arc::new(move || readiness.check()));
        pages.series = Some(Arc::new(move || shown.series()));
        let admin_stop = CancellationToken::new();
        let mut admin = tokio::spawn(admin::serve(
            admin,
            self.engine.shared.config.admin.bounds(),
            pages,
            admin_stop.clone(),
        ));
        let mut committer = tokio::spawn(committer.run());
        let mut accept = tokio::spawn(endpoint::accept(
            self.engine.clone(),
            self.endpoint.clone(),
            Arc::clone(&self.certificates),
        ));
        let shared = &self.engine.shared;
        let look = readiness::watch(
            &self.engine.readiness,
            &shared.catalog,
            Duration::from_millis(shared.config.commit.look_interval_ms),
        );
        let watch =
            Arc::clone(&self.certificates).watch(&self.engine.shared.sessions, &self.reload);
        let ended = tokio::select! {
            () = self.engine.shared.stopping.cancelled() => Ok(()),
            () = watch => Err(RunError::Ended { task: "certificates" }),
            () = look => Err(RunError::Ended { task: "readiness" }),
            ended = &mut committer => ended_early("committer", ended.map(|it| it.map_err(RunError::from))),
            ended = &mut admin => ended_early("admin", ended.map(|it| it.map_err(RunError::Admin))),
            // Its socket is dead, unless it was told to end.
            ended = &mut accept => match shared.stopping.is_cancelled() {
                true => Ok(()),
                false => ended_early("accept", ended.map(Ok)),
            },
        };
        let result = match ended {
            Ok(()) => self.drain(committer).await,
            Err(error) => {
                self.abort();
                Err(error)
            }
        };
        if let Err(error) = &result {
            tracing::error!(error = error as &dyn std::error::Error, "collector ends");
        }
        accept.abort();
        // Peers that do not answer the close must not hold up the stop.
        timeout(CLOSE_WAIT, self.endpoint.wait_idle()).await.ok();
        admin_stop.cancel();
        admin.abort();
        tracing::info!("collector stopped");
        result
    }

    /// Graceful stop: takes nothing new, commits what is staged, answers, closes.
    ///
    /// # Errors
    /// When the committer dies of it; being late is none.
    async fn drain(&self, mut committer: JoinHandle<Result<(), Killed>>) -> Result<(), RunError> {
        let bound = Duration::from_millis(self.engine.shared.config.commit.stop_within_ms);
        let deadline = Instant::now() + bound;
        self.engine.readiness.stopping();
        self.engine.shared.admitting.close();
        let admitted = timeout_at(deadline, self.engine.shared.admitting.wait()).await;
        self.engine.drain.cancel();
        let committed = timeout_at(deadline, &mut committer).await;
        if admitted.is_err() || committed.is_err() {
            tracing::warn!(
                within_ms = self.engine.shared.config.commit.stop_within_ms,
                "not everything was committed in time; the agents will send it again"
            );
        }
        self.engine.shared.abandoned.cancel();
        self.engine.shared.streams.close();
        let answers = deadline.max(Instant::now() + CLOSE_WAIT);
        timeout_at(answers, self.engine.shared.streams.wait())
            .await
            .ok();
        committer.abort();
        self.endpoint.close(close::STOPPING.into(), b"stopping");
        match committed {
            Ok(Ok(ended)) => ended.map_err(RunError::from),
            Ok(Err(source)) => Err(RunError::Died {
                task: "committer",
                source,
            }),
            Err(_) => Ok(()),
        }
    }

    /// Ends without a word.
    fn abort(&self) {
        self.engine.shared.killed.cancel();
        self.engine.shared.stopping.cancel();
        self.endpoint.close(close::FAILED.into(), b"");
    }
}

/// A task that ends before the stop is an error, whatever it says.
fn ended_early(
    task: &'static str,
    ended: Result<Result<(), RunError>, tokio::task::JoinError>,
) -> Result<(), RunError> {
    match ended {
        Ok(Ok(())) => Err(RunError::Ended { task }),
        Ok(Err(error)) => Err(error),
        Err(source) => Err(RunError::Died { task, source }),
    }
}
