//! The admin endpoint: `/metrics` (Prometheus), `/healthz` (the process runs), `/readyz` (it does its
//! work) and what else a program tells about itself as JSON.

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
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Says whether a program does its work: `Ok`, or the reason why not as one line.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Returns a JSON document about the program. May block.
pub type Document = Arc<dyn Fn() -> String + Send + Sync>;

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

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the process-wide metrics recorder; later calls return the first one's handle.
fn recorder() -> Option<&'static PrometheusHandle> {
    RECORDER
        .get_or_init(|| PrometheusBuilder::new().install_recorder().ok())
        .as_ref()
}

/// Installs the metrics recorder. Call it before the first metric is described or counted.
pub fn init_metrics() {
    if recorder().is_none() {
        tracing::warn!("another metrics recorder is installed; /metrics stays empty");
    }
}

/// Serves the admin endpoint until `stop` is cancelled.
///
/// # Errors
/// Returns the error of the accept loop.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    stop: CancellationToken,
) -> std::io::Result<()> {
    serve_with(listener, readiness, Vec::new(), stop).await
}

/// As [`serve`], with a document under each of these paths.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(
    listener: TcpListener,
    readiness: Readiness,
    documents: Vec<(&'static str, Document)>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let mut router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(readiness);
    for (path, document) in documents {
        router = router.route(path, get(move || show(document.clone())));
    }
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
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

async fn metrics() -> impl IntoResponse {
    let text = recorder().map(PrometheusHandle::render).unwrap_or_default();
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
        let served = tokio::spawn(serve(listener, Arc::new(|| Ok(())), stop.clone()));
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
