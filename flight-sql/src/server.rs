//! The running server: listeners, threads for queries, readiness, graceful stop.
//!
//! Place on the event's path: around the service. Promise: addresses are bound when [`start`]
//! returns; at a stop new calls are refused, running results get their time and then end with an
//! error; everything has ended when [`Running::finished`] returns.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use headwater_service::admin::{self, ListenError, Pages, Readiness};
use headwater_service::clock::SharedClock;
use headwater_service::config::ConfigError;
use headwater_service::tls::{TlsError, refuse_development_certificate};
use headwater_tables::{Catalog, CatalogError};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use crate::auth::Authenticator;
use crate::config::{Config, LimitsConfig, THREADS_MAX, TlsConfig};
use crate::metadata::Metadata;
use crate::metrics;
use crate::queries::Queries;
use crate::service::FlightSql;

/// Bytes of headers a call may have: JDBC sends every unknown URL key as a header.
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// Calls one connection may have open at a time.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Silence after which a connection is checked.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Time that cancelled queries get to say so at a stop.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used: change it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address cannot be listened on: free it or set another.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The certificate or key cannot be read: check the path and its permissions.
    #[error("cannot read {what} from `{}`: {source}; check the [tls] section", path.display())]
    TlsFile {
        /// `certificate` or `private key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// Certificate and key cannot be used together.
    #[error("certificate and key of the [tls] section cannot be used: {0}")]
    Tls(#[source] tonic::transport::Error),
    /// The certificate cannot be read, or is a development one on a public address.
    #[error(transparent)]
    Certificate(#[from] TlsError),
    /// The catalog cannot be opened.
    #[error("cannot open the [catalog]: {0}")]
    Catalog(#[from] CatalogError),
    /// The threads for queries cannot be started.
    #[error("cannot start threads for queries: {0}")]
    Threads(#[source] std::io::Error),
    /// A bug: the static answers cannot be built.
    #[error("cannot build the server's metadata: {0}")]
    Metadata(#[from] arrow_flight::error::FlightError),
}

/// Why the server ended before it was told to, or not cleanly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The Flight SQL listener failed.
    #[error("the Flight SQL listener failed: {0}")]
    Flight(#[source] tonic::transport::Error),
    /// The admin listener failed.
    #[error("the admin listener failed: {0}")]
    Admin(#[source] std::io::Error),
    /// A bug: a task panicked.
    #[error("a task of the server panicked: {0}")]
    Panicked(#[source] tokio::task::JoinError),
}

/// A server that serves.
#[derive(Debug)]
pub struct Running {
    /// Address of the Flight SQL server.
    pub address: SocketAddr,
    /// Address of the admin endpoint.
    pub admin_address: SocketAddr,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Waits until the server has been stopped and everything has ended.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn finished(self) -> Result<(), RunError> {
        self.task.await.map_err(RunError::Panicked)?
    }
}

/// Starts the server; it serves until `stop` is cancelled.
///
/// # Errors
/// See [`StartError`]; nothing is left running.
pub async fn start(
    config: Config,
    clock: SharedClock,
    stop: CancellationToken,
) -> Result<Running, StartError> {
    config.validate()?;
    admin::init_metrics();
    metrics::describe();
    if let Some(files) = &config.tls {
        refuse_development_certificate(&files.certificate, config.flight.listen)?;
    }
    let tls = config.tls.as_ref().map(identity).transpose()?;
    let catalog = Catalog::open(&config.catalog).await?;
    let probe = Arc::new(Probe {
        catalog: catalog.clone(),
        is_readable: AtomicBool::new(false),
    });
    probe.check().await;

    let listener = admin::listen(config.flight.listen, "Flight SQL").await?;
    let admin_listener = admin::listen(config.admin.listen, "the admin endpoint").await?;
    let address = local_address(&listener, config.flight.listen, "Flight SQL")?;
    let admin_address = local_address(&admin_listener, config.admin.listen, "the admin endpoint")?;

    let threads = QueryThreads::start(&config.limits)?;
    let kill = CancellationToken::new();
    let service = FlightSql {
        auth: Arc::new(Authenticator::new(
            &config.users,
            &config.limits,
            Arc::clone(&clock),
        )),
        queries: Arc::new(Queries::new(
            catalog,
            config.limits.clone(),
            clock,
            threads.handle(),
            kill.clone(),
        )),
        metadata: Arc::new(Metadata::new(&config.limits)?),
        limits: config.limits.clone(),
    };
    let mut server = builder();
    if let Some(identity) = tls {
        let tls = ServerTlsConfig::new().identity(identity);
        server = server.tls_config(tls).map_err(StartError::Tls)?;
    }
    let flight = FlightServiceServer::new(service.clone())
        .max_decoding_message_size(config.limits.message_bytes_max)
        .max_encoding_message_size(usize::MAX);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = server
        .add_service(flight)
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());

    let tasks = Tasks {
        flight: tokio::spawn(serving),
        admin: tokio::spawn(admin::serve(
            admin_listener,
            config.admin.bounds(),
            Pages::of(readiness(Arc::clone(&probe), stop.clone())),
            stop.clone(),
        )),
        chores: tokio::spawn(chores(probe, service, config.limits.clone(), stop.clone())),
        threads,
        kill,
    };
    tracing::info!(%address, %admin_address, tls = config.tls.is_some(), "serving Flight SQL");
    let grace = Duration::from_millis(config.limits.stop_ms);
    Ok(Running {
        address,
        admin_address,
        task: tokio::spawn(tasks.run(stop, grace)),
    })
}

fn builder() -> Server {
    Server::builder()
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .initial_connection_window_size(8 << 20)
        .initial_stream_window_size(4 << 20)
}

fn identity(files: &TlsConfig) -> Result<Identity, StartError> {
    let read = |what: &'static str, path: &PathBuf| {
        std::fs::read(path).map_err(|source| StartError::TlsFile {
            what,
            path: path.clone(),
            source,
        })
    };
    Ok(Identity::from_pem(
        read("certificate", &files.certificate)?,
        read("private key", &files.key)?,
    ))
}

fn local_address(
    listener: &tokio::net::TcpListener,
    asked: SocketAddr,
    purpose: &'static str,
) -> Result<SocketAddr, ListenError> {
    listener.local_addr().map_err(|source| ListenError {
        address: asked,
        purpose,
        source,
    })
}

/// Knows whether the catalog can be read.
struct Probe {
    catalog: Catalog,
    is_readable: AtomicBool,
}

impl Probe {
    async fn check(&self) {
        let is_readable = match self.catalog.heads().await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "catalog cannot be read");
                false
            }
        };
        self.is_readable.store(is_readable, Ordering::SeqCst);
        ::metrics::gauge!(metrics::CATALOG_READABLE).set(f64::from(u8::from(is_readable)));
    }
}

fn readiness(probe: Arc<Probe>, stop: CancellationToken) -> Readiness {
    Arc::new(move || {
        if stop.is_cancelled() {
            return Err("the server is stopping".to_owned());
        }
        if !probe.is_readable.load(Ordering::SeqCst) {
            return Err("the catalog cannot be read; see the log".to_owned());
        }
        Ok(())
    })
}

/// Reads the catalog for readiness and forgets what has expired, until `stop`.
async fn chores(
    probe: Arc<Probe>,
    service: FlightSql,
    limits: LimitsConfig,
    stop: CancellationToken,
) {
    let mut tick = tokio::time::interval(Duration::from_millis(limits.probe_interval_ms));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {
                probe.check().await;
                service.auth.sweep();
                service.queries.sweep();
            }
        }
    }
}

/// The threads that plan and run queries.
struct QueryThreads(Option<tokio::runtime::Runtime>);

impl QueryThreads {
    fn start(limits: &LimitsConfig) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("query")
            .worker_threads(threads(limits))
            .enable_all()
            .build()
            .map_err(StartError::Threads)?;
        Ok(Self(Some(runtime)))
    }

    fn handle(&self) -> tokio::runtime::Handle {
        self.0
            .as_ref()
            .expect("the runtime is taken only when this value is dropped")
            .handle()
            .clone()
    }
}

impl Drop for QueryThreads {
    fn drop(&mut self) {
        // Waiting for its threads would block the runtime that drops it.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A query occupies at most one thread per core. Two more than all queries can occupy keep planning
/// alive beside operators that compute for long without a pause.
fn threads(limits: &LimitsConfig) -> usize {
    if limits.query_threads > 0 {
        return limits.query_threads;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (limits.queries_max * cores + 2).min(THREADS_MAX)
}

struct Tasks {
    flight: JoinHandle<Result<(), tonic::transport::Error>>,
    admin: JoinHandle<std::io::Result<()>>,
    chores: JoinHandle<()>,
    threads: QueryThreads,
    /// Ends all running queries.
    kill: CancellationToken,
}

impl Tasks {
    async fn run(mut self, stop: CancellationToken, grace: Duration) -> Result<(), RunError> {
        let failed = tokio::select! {
            () = stop.cancelled() => None,
            ended = &mut self.flight => Some(flight_outcome(ended)),
            ended = &mut self.admin => Some(admin_outcome(ended)),
        };
        stop.cancel();
        self.chores.abort();
        if let Some(outcome) = failed {
            self.flight.abort();
            self.admin.abort();
            return outcome;
        }
        let outcome = self.end_flight(grace).await;
        self.admin.abort();
        drop(self.threads);
        tracing::info!("stopped");
        outcome
    }

    /// Lets running results end within `grace`, then cancels them.
    async fn end_flight(&mut self, grace: Duration) -> Result<(), RunError> {
        if let Ok(ended) = tokio::time::timeout(grace, &mut self.flight).await {
            return flight_outcome(ended);
        }
        self.kill.cancel();
        if let Ok(ended) = tokio::time::timeout(LAST_WORDS, &mut self.flight).await {
            return flight_outcome(ended);
        }
        self.flight.abort();
        Ok(())
    }
}

fn flight_outcome(
    ended: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>,
) -> Result<(), RunError> {
    ended.map_err(RunError::Panicked)?.map_err(RunError::Flight)
}

fn admin_outcome(
    ended: Result<std::io::Result<()>, tokio::task::JoinError>,
) -> Result<(), RunError> {
    ended.map_err(RunError::Panicked)?.map_err(RunError::Admin)
}
