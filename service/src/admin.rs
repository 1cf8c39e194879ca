//! The admin endpoint: `/metrics` (Prometheus), `/healthz` (the process runs), `/readyz` (it does its
//! work) and what else a program tells about itself as JSON.
//!
//! Its connections are bounded in number, time and size, because nobody may be kept from looking at a
//! program by clients that open connections and forget them.

use std::convert::Infallible;
use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Deserializer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::ConfigError;
use crate::connections::{self, Connections, Patience, Shown};
use crate::places::Places;

/// Open connections of the admin endpoint; bounded by `admin.connections_max`.
pub const CONNECTIONS: &str = "admin_connections_open";

/// Connections of the admin endpoint that were closed at a bound, label `reason`: `timeout`,
/// `request_bytes`, `gave_way` (silent while another one needed a place).
pub const CONNECTIONS_CLOSED: &str = "admin_connections_closed_total";

/// The `[admin]` section, with the port of the default address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig<const PORT: u16> {
    /// TCP address of `/metrics`, `/healthz` and `/readyz`. Default `127.0.0.1:PORT`.
    pub listen: SocketAddr,
    /// As [`Bounds::connections_max`].
    pub connections_max: usize,
    /// As [`Bounds::timeout_ms`].
    pub timeout_ms: u64,
    /// As [`Bounds::request_bytes_max`].
    pub request_bytes_max: u64,
}

impl<const PORT: u16> Default for AdminConfig<PORT> {
    fn default() -> Self {
        let bounds = Bounds::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], PORT)),
            connections_max: bounds.connections_max,
            timeout_ms: bounds.timeout_ms,
            request_bytes_max: bounds.request_bytes_max,
        }
    }
}

// By hand, because serde's derive panics on a const parameter beside `default`.
impl<'de, const PORT: u16> Deserialize<'de> for AdminConfig<PORT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Given {
            listen: Option<SocketAddr>,
            connections_max: Option<usize>,
            timeout_ms: Option<u64>,
            request_bytes_max: Option<u64>,
        }
        let given = Given::deserialize(deserializer)?;
        let default = Self::default();
        Ok(Self {
            listen: given.listen.unwrap_or(default.listen),
            connections_max: given.connections_max.unwrap_or(default.connections_max),
            timeout_ms: given.timeout_ms.unwrap_or(default.timeout_ms),
            request_bytes_max: given.request_bytes_max.unwrap_or(default.request_bytes_max),
        })
    }
}

impl<const PORT: u16> AdminConfig<PORT> {
    /// Returns the bounds of its connections.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            connections_max: self.connections_max,
            timeout_ms: self.timeout_ms,
            request_bytes_max: self.request_bytes_max,
        }
    }
}

/// The bounds of the admin endpoint's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most open connections, at least 2. Default 64: scrapers and probes need a few. Whoever takes the
    /// last place is served once another has gone; one that is silent goes at once, the one that has
    /// been so for longest first. More wait in the kernel's queue.
    pub connections_max: usize,
    /// Longest time that a connection may be silent, take to ask and be answered, or leave an answer
    /// unread, in milliseconds; then it is closed. Default 30000: a slow disk may make a program think
    /// for a while, and a scraper every 15 s keeps its connection.
    pub timeout_ms: u64,
    /// Most bytes of a request, in bytes; above it the connection is closed. Default 16 KiB: a head
    /// with room for a proxy's additions.
    pub request_bytes_max: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: 64,
            timeout_ms: 30_000,
            request_bytes_max: 16 * 1024,
        }
    }
}

impl Bounds {
    /// Checks that they leave the endpoint of use.
    ///
    /// # Errors
    /// [`ConfigError::Value`] names the first key that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rules = [
            (
                "admin.connections_max",
                (2..=65_536).contains(&self.connections_max),
                "must lie between 2 and 65536",
            ),
            (
                "admin.timeout_ms",
                (1000..=3_600_000).contains(&self.timeout_ms),
                "must lie between 1000 and 3600000",
            ),
            (
                "admin.request_bytes_max",
                (1024..=1 << 20).contains(&self.request_bytes_max),
                "must lie between 1 KiB and 1 MiB",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            None => Ok(()),
            Some((key, _, message)) => Err(ConfigError::Value {
                key,
                message: message.to_owned(),
            }),
        }
    }

    fn of_connections(self) -> connections::Bounds {
        connections::Bounds {
            connections_max: self.connections_max,
            timeout: Duration::from_millis(self.timeout_ms),
            patience: Patience::Answers {
                request_bytes_max: self.request_bytes_max,
            },
        }
    }
}

/// Says whether a program does its work: `Ok`, or the reason why not as one line.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Returns a JSON document about the program. May block.
pub type Document = Arc<dyn Fn() -> String + Send + Sync>;

/// What a program tells about itself beside its recorded metrics.
#[derive(Clone)]
pub struct Pages {
    /// What `/readyz` says.
    pub readiness: Readiness,
    /// A document under each of these paths.
    pub documents: Vec<(&'static str, Document)>,
    /// Further series for `/metrics`, in its text format: those whose labels come and go, because a
    /// recorder keeps a label for ever.
    pub series: Option<Document>,
}

impl Pages {
    /// Makes those of a program that tells no more than whether it does its work.
    pub fn of(readiness: Readiness) -> Self {
        Self {
            readiness,
            documents: Vec::new(),
            series: None,
        }
    }
}

/// Why the admin endpoint cannot serve.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on `{address}` for {purpose}: {source}; stop the program that uses the port or set another address"
)]
pub struct ListenError {
    /// Address asked for.
    pub address: SocketAddr,
    /// What the listener is for.
    pub purpose: &'static str,
    /// What the operating system said.
    #[source]
    pub source: std::io::Error,
}

/// Binds a TCP listener, with an error that names the address and its purpose.
///
/// # Errors
/// [`ListenError`] when the address is taken or not allowed.
pub async fn listen(
    address: SocketAddr,
    purpose: &'static str,
) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError {
            address,
            purpose,
            source,
        })
}

/// How often recorded times are summed up. Until then each value takes memory, scraped or not.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 5000 });

/// Histograms with these endings are shown as buckets, in seconds, which can be added up over processes; all
/// others as quantiles.
const BUCKETS: [(&str, &[f64]); 2] = [
    (
        "_freshness_seconds",
        &[
            0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 300.0, 1800.0, 7200.0,
            86400.0,
        ],
    ),
    (
        "_commit_seconds",
        &[
            0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
        ],
    ),
];

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the process-wide metrics recorder; later calls return the first one's handle.
fn recorder() -> Option<&'static PrometheusHandle> {
    RECORDER
        .get_or_init(|| {
            let mut builder = PrometheusBuilder::new();
            for (ending, bounds) in BUCKETS {
                let matcher = Matcher::Suffix(ending.to_owned());
                builder = builder.set_buckets_for_metric(matcher, bounds).ok()?;
            }
            builder.install_recorder().ok()
        })
        .as_ref()
}

/// Installs the metrics recorder and shows the endpoint's own metrics. Call it before the first metric
/// is described or counted.
pub fn init_metrics() {
    if recorder().is_none() {
        tracing::warn!("another metrics recorder is installed; /metrics stays empty");
    }
    describe_gauge!(
        CONNECTIONS,
        Unit::Count,
        "Open connections of the admin endpoint"
    );
    describe_counter!(
        CONNECTIONS_CLOSED,
        Unit::Count,
        "Connections of the admin endpoint closed at a bound, by `reason`: timeout, request_bytes, gave_way"
    );
    gauge!(CONNECTIONS).increment(0.0);
    for reason in connections::REASONS {
        counter!(CONNECTIONS_CLOSED, "reason" => reason).increment(0);
    }
}

/// Serves the admin endpoint within `bounds` until `stop` is cancelled.
///
/// # Errors
/// Returns the error of the accept loop.
pub async fn serve(
    listener: TcpListener,
    bounds: Bounds,
    pages: Pages,
    stop: CancellationToken,
) -> std::io::Result<()> {
    serve_with(listener, move || bounds, pages, stop).await
}

/// As [`serve`], with bounds that may change meanwhile: they are asked for at each connection.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(
    listener: TcpListener,
    bounds: impl Fn() -> Bounds + Send + Sync + 'static,
    pages: Pages,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let Pages {
        readiness,
        documents,
        series,
    } = pages;
    let mut router = Router::new()
        .route("/metrics", get(move || metrics(series.clone())))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(readiness);
    for (path, document) in documents {
        router = router.route(path, get(move || show(document.clone())));
    }
    let connections = Connections::new(
        listener,
        Places::new(bounds().connections_max),
        move || bounds().of_connections(),
        Shown {
            open: CONNECTIONS,
            closed: CONNECTIONS_CLOSED,
        },
    );
    let served = axum::serve(connections, router).with_graceful_shutdown(stop.cancelled_owned());
    tokio::select! {
        result = served.into_future() => result,
        never = keep_up() => match never {},
    }
}

/// Sums recorded times up, so that those which nobody scrapes take no memory.
async fn keep_up() -> Infallible {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        if let Some(recorder) = recorder() {
            recorder.run_upkeep();
        }
    }
}

async fn metrics(series: Option<Document>) -> impl IntoResponse {
    let mut text = recorder().map(PrometheusHandle::render).unwrap_or_default();
    if let Some(series) = series {
        let series = tokio::task::spawn_blocking(move || series()).await;
        text += &series.unwrap_or_default();
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

async fn ready(State(readiness): State<Readiness>) -> impl IntoResponse {
    // On a thread that may block: readiness may have to ask the disk.
    let told = tokio::task::spawn_blocking(move || readiness()).await;
    match told.unwrap_or_else(|_| Err("readiness cannot be told; see the log".to_owned())) {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn show(document: Document) -> impl IntoResponse {
    let shown = tokio::task::spawn_blocking(move || document()).await;
    let (status, text) = match shown {
        Ok(text) => (StatusCode::OK, text),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "{}".to_owned()),
    };
    (status, [(header::CONTENT_TYPE, "application/json")], text)
}

/// Returns the series of a metric as `/metrics` shows them now: labels as text (`reason="full"`, or
/// nothing) and value.
pub fn samples(name: &str) -> Vec<(String, f64)> {
    let text = recorder().map(PrometheusHandle::render).unwrap_or_default();
    let series = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((labels.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(series).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::MissedTickBehavior;

    /// Returns the memory of this process in bytes.
    fn resident_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() * 1024
    }

    #[tokio::test]
    async fn what_nobody_scrapes_does_not_pile_up() {
        init_metrics();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(
            listener,
            Bounds::default(),
            Pages::of(Arc::new(|| Ok(()))),
            stop.clone(),
        ));
        let before = resident_bytes();
        let mut bursts = tokio::time::interval(UPKEEP_INTERVAL * 2);
        bursts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for _ in 0..40 {
            bursts.tick().await;
            for _ in 0..50_000 {
                metrics::histogram!("unscraped_seconds").record(0.001);
            }
        }
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 8 << 20, "2 million values took {grown} bytes");
        let count = samples("unscraped_seconds_count");
        assert_eq!(count, [(String::new(), 2e6)], "nothing is forgotten");
        stop.cancel();
        served.await.unwrap().unwrap();
    }
}
