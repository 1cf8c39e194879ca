//! The admin endpoint: `/metrics` (Prometheus), `/healthz` (the process runs) and `/readyz` (it does
//! its work).

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

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
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(readiness);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

async fn metrics() -> impl IntoResponse {
    let text = recorder().map(PrometheusHandle::render).unwrap_or_default();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

async fn ready(State(readiness): State<Readiness>) -> impl IntoResponse {
    match readiness() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
