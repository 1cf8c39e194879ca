//! Puts the parts together and takes them apart: start in the order of the path, stop from its
//! beginning, each step within a bound.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headwater_protocol::{AgentId, AgentIdError};
use headwater_service::admin::{self, ListenError};
use headwater_service::chance::SystemChance;
use headwater_service::clock::SharedClock;
use headwater_service::config::ConfigError;
use headwater_service::shutdown::within;
use headwater_service::tls::{self, TlsError};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::buffer::{Buffer, OpenError};
use crate::config::Config;
use crate::metrics::OLDEST_AGE_SECONDS;
use crate::reload::{Reloader, Settings};
use crate::sequencer::Sequencer;
use crate::shipper::{self, Credentials, Quic};
use crate::source::{Socket, SocketError, Source};
use crate::status::Status;
use crate::suppression::{ListError, Suppression};
use crate::window::Window;

/// Longest time that requests in progress get at a stop.
const HTTP_STOP: Duration = Duration::from_millis(1200);
/// Longest time for the sequencer's queue and the marks at a stop.
const SEQUENCER_STOP: Duration = Duration::from_millis(1500);

/// Why the agent cannot start. One line for the operator; a retry needs a change first.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Certificate, key or CA cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate names no agent.
    #[error(
        "certificate `{path}` has no common name that can be an agent id: {message}; issue one with `headwater certificates --agent NAME`"
    )]
    AgentName {
        /// The certificate file.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The buffer cannot be opened.
    #[error(transparent)]
    Buffer(#[from] OpenError),
    /// The list of suppressed subjects cannot be used.
    #[error(transparent)]
    Suppression(#[from] ListError),
    /// An address cannot be used.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The Unix socket cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The operating system gives no thread or address.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
}

/// Why a running agent ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A part of the agent ended by itself.
    #[error("{part} ended unexpectedly: {message}")]
    Ended {
        /// Which part.
        part: &'static str,
        /// Why, where known.
        message: String,
    },
}

/// A running agent.
#[derive(Debug)]
pub struct Running {
    /// Address of the ingest API, as bound.
    pub address: SocketAddr,
    /// Address of the admin endpoint, as bound.
    pub admin_address: SocketAddr,
    /// The agent's id, from its certificate.
    pub agent_id: AgentId,
    buffer: Buffer,
    reloader: Reloader,
    supervisor: JoinHandle<Result<(), RunError>>,
}

impl Running {
    /// Returns the number of events accepted and not yet acknowledged. Exact.
    pub fn buffered(&self) -> u64 {
        self.buffer.buffered()
    }

    /// Returns what puts other settings in force while the agent runs.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Resolves after the stop token was cancelled and every part ended within its bound (5 s in
    /// all), or when a part failed.
    ///
    /// # Errors
    /// [`RunError`] when a part ended by itself.
    pub async fn finished(self) -> Result<(), RunError> {
        self.supervisor.await.unwrap_or_else(|error| {
            Err(RunError::Ended {
                part: "supervisor",
                message: error.to_string(),
            })
        })
    }
}

/// Starts the agent: buffer first, then shipping, then the ingest API.
///
/// # Errors
/// See [`StartError`].
pub async fn start(
    config: Config,
    clock: SharedClock,
    stop: CancellationToken,
) -> Result<Running, StartError> {
    config.validate()?;
    admin::init_metrics();
    crate::metrics::describe();
    let agent_id = agent_id(&config)?;
    // Read once now, so that a wrong file is found at start and not at the first session.
    let credentials = Credentials::read(&config.tls)?;
    let suppression = Arc::new(Suppression::open(&config.suppression)?);
    let http = admin::listen(config.http.listen, "events (http.listen)").await?;
    let admin_listener = admin::listen(config.admin.listen, "admin (admin.listen)").await?;
    let path = &config.http.socket;
    let socket = match path.as_os_str().is_empty() {
        true => None,
        false => Some(Socket::open(path, config.http.socket_mode)?),
    };
    let (address, admin_address) = (http.local_addr()?, admin_listener.local_addr()?);

    let (buffer, appender, window) = {
        let (buffer_config, agent_id, clock) =
            (config.buffer.clone(), agent_id.clone(), clock.clone());
        let ids_max = config.dedup.ids_max;
        let open = move || -> Result<_, OpenError> {
            let (buffer, appender) = Buffer::open(&buffer_config, &agent_id, clock)?;
            let window = Window::open(
                &buffer_config.directory,
                ids_max,
                appender.epoch(),
                appender.next() - 1,
            );
            Ok((buffer, appender, window))
        };
        tokio::task::spawn_blocking(open)
            .await
            .map_err(|error| std::io::Error::other(error.to_string()))??
    };
    let (window, fingerprinter) = window.unzip();
    let collectors = config.collector.addresses.join(" ");
    let reloader = Reloader::new(config, agent_id.clone());
    let settings = reloader.settings();
    let (sequencer, sequencer_thread) = Sequencer::start(appender, window, settings.clone())?;
    let status = Arc::new(Status::new(
        agent_id.clone(),
        buffer.clone(),
        clock.clone(),
        settings.clone(),
    ));
    let shipper = shipper::Parts {
        buffer: buffer.clone(),
        agent_id: agent_id.clone(),
        settings: settings.clone(),
        credentials,
        network: Arc::new(Quic),
        clock: clock.clone(),
        chance: SystemChance::shared(),
    };
    let source = Source::new(
        settings.clone(),
        sequencer.clone(),
        fingerprinter,
        suppression.clone(),
        clock,
    );
    info!(%agent_id, %address, %admin_address, collectors, "agent runs");
    let parts = Parts {
        http,
        socket,
        admin_listener,
        settings: settings.clone(),
        source,
        sequencer,
        sequencer_thread,
        shipper,
        status,
    };
    // Ends with `stop`; an agent without it would only keep the list that it has.
    drop(tokio::spawn(suppression.follow(settings, stop.clone())));
    let supervisor = tokio::spawn(parts.run(stop));
    Ok(Running {
        address,
        admin_address,
        agent_id,
        buffer,
        reloader,
        supervisor,
    })
}

struct Parts {
    http: TcpListener,
    socket: Option<Socket>,
    admin_listener: TcpListener,
    settings: Settings,
    source: Source,
    sequencer: Sequencer,
    sequencer_thread: std::thread::JoinHandle<()>,
    shipper: shipper::Parts,
    status: Arc<Status>,
}

impl Parts {
    async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let ended = |part, message| Err(RunError::Ended { part, message });
        let admin_stop = CancellationToken::new();
        let admin = tokio::spawn(serve_admin(
            self.admin_listener,
            self.settings,
            self.status.clone(),
            admin_stop.clone(),
        ));
        let ager = tokio::spawn(show_age(self.status.clone()));
        let mut shipper = tokio::spawn(shipper::run(
            self.shipper,
            self.status.clone(),
            stop.clone(),
        ));
        let mut http = tokio::spawn(self.source.serve(self.http, self.socket, stop.clone()));
        let mut sequencer =
            tokio::task::spawn_blocking(move || self.sequencer_thread.join().is_ok());
        let outcome = tokio::select! {
            // First, because all parts end soon after it.
            biased;
            () = stop.cancelled() => Ok(()),
            _ = &mut shipper => ended("shipper", String::new()),
            result = &mut http => ended("source", format!("{result:?}")),
            _ = &mut sequencer => ended("sequencer", "see the log above".to_owned()),
        };
        stop.cancel();
        if !http.is_finished() && within(HTTP_STOP, &mut http).await.is_none() {
            warn!("requests in progress are cut off");
            http.abort();
        }
        // A connection that is cut off in the middle may live on for a moment; no append comes from it.
        self.sequencer.stop();
        if outcome.is_ok() && within(SEQUENCER_STOP, &mut sequencer).await.is_none() {
            warn!("the sequencer has not ended in time; what it answered is durable");
        }
        if !shipper.is_finished()
            && within(Duration::from_millis(1800), &mut shipper)
                .await
                .is_none()
        {
            shipper.abort();
        }
        ager.abort();
        admin_stop.cancel();
        if within(Duration::from_millis(200), admin).await.is_none() {
            warn!("the admin endpoint has not ended in time");
        }
        outcome
    }
}

async fn serve_admin(
    listener: TcpListener,
    settings: Settings,
    status: Arc<Status>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let (readiness, reported, inspected) = (status.clone(), status.clone(), status);
    let documents: Vec<(&'static str, admin::Document)> = vec![
        ("/status", Arc::new(move || reported.report().to_json())),
        ("/inspect", Arc::new(move || inspected.inspect())),
    ];
    let pages = admin::Pages {
        documents,
        ..admin::Pages::of(Arc::new(move || readiness.ready()))
    };
    let bounds = move || settings.now().admin.bounds();
    admin::serve_with(listener, bounds, pages, stop).await
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
async fn show_age(status: Arc<Status>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(2));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let status = status.clone();
        if let Ok(age) = tokio::task::spawn_blocking(move || status.observe()).await {
            metrics::gauge!(OLDEST_AGE_SECONDS).set(age as f64);
        }
    }
}

/// Returns the common name of the agent's certificate as its id.
pub(crate) fn agent_id(config: &Config) -> Result<AgentId, StartError> {
    let path = &config.tls.certificate;
    let failed = |message: String| StartError::AgentName {
        path: path.display().to_string(),
        message,
    };
    let chain = tls::certificates("certificate", path)?;
    let leaf = chain
        .first()
        .ok_or_else(|| failed("the file is empty".to_owned()))?;
    let (_, certificate) =
        x509_parser::parse_x509_certificate(leaf).map_err(|error| failed(error.to_string()))?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .ok_or_else(|| failed("it has no common name".to_owned()))?;
    name.parse()
        .map_err(|error: AgentIdError| failed(error.to_string()))
}
