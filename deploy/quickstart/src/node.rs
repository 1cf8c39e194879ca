//! Collector, agent and SQL server in one process, with their configurations made here.
//!
//! The services know nothing of each other: they meet over QUIC, the catalog and the data directory
//! as they do on separate machines.

use std::path::{Path, PathBuf};

use headwater_agent as agent;
use headwater_collector as collector;
use headwater_flight_sql as flight_sql;
use headwater_service::clock::SharedClock;
use headwater_tables::CatalogConfig;
use headwater_warehouse as warehouse;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::pki::{Files, Pki};
use crate::settings::{Ports, loopback};
use crate::world::World;

/// Name of the one agent.
pub const AGENT: &str = "agent-1";
/// Write key for events of one's own.
pub const DEMO_WRITE_KEY: &str = "demo-write-key";
/// Source of the events sent with [`DEMO_WRITE_KEY`]; the desk's events have others.
pub const DEMO_SOURCE: &str = "demo";
/// User of the SQL server, and its password.
pub const DEMO_USER: &str = "demo";

/// Why the services cannot start or ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A configuration made here does not fit the service: a defect.
    #[error("the quickstart's configuration of the {service} is refused: {message}")]
    Config {
        /// The service.
        service: &'static str,
        /// What it said.
        message: String,
    },
    /// The collector cannot start.
    #[error("cannot start the collector: {0}")]
    Collector(#[source] collector::StartError),
    /// The agent cannot start.
    #[error("cannot start the agent: {0}")]
    Agent(#[source] agent::StartError),
    /// The SQL server cannot start.
    #[error("cannot start the SQL server: {0}")]
    FlightSql(#[source] flight_sql::StartError),
    /// A service ended with an error.
    #[error("the {service} ended: {message}")]
    Ended {
        /// The service.
        service: &'static str,
        /// What it said.
        message: String,
    },
}

/// Where everything lies in the data directory.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The data directory, absolute.
    pub root: PathBuf,
}

impl Layout {
    /// Returns the directory of certificates.
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// Returns the sample operational database.
    pub fn operational(&self) -> PathBuf {
        self.root.join("operational.db")
    }

    /// Returns the catalog's settings.
    pub fn catalog(&self) -> CatalogConfig {
        CatalogConfig::local(&self.root)
    }

    /// Returns the settings of the nightly batch.
    ///
    /// # Errors
    /// [`NodeError::Config`], a defect.
    pub fn warehouse(&self) -> Result<warehouse::Config, NodeError> {
        configure(
            "warehouse",
            json!({
                "catalog": self.catalog_value(),
                "source": {"uri": sqlite_uri(&self.operational())},
            }),
        )
    }

    fn catalog_value(&self) -> Value {
        let catalog = self.catalog();
        json!({"uri": catalog.uri, "warehouse": catalog.warehouse})
    }
}

/// Returns the URI of an SQLite file.
pub fn sqlite_uri(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

/// The running services.
pub struct Node {
    agent: agent::Running,
    collector: collector::Running,
    flight_sql: flight_sql::Running,
    stops: Stops,
}

#[derive(Default)]
struct Stops {
    agent: CancellationToken,
    collector: CancellationToken,
    flight_sql: CancellationToken,
}

impl Node {
    /// Starts the services; the agent last, so that it finds the collector.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn start(
        layout: &Layout,
        pki: &Pki,
        ports: Ports,
        world: &World,
        clock: &SharedClock,
    ) -> Result<Self, NodeError> {
        let stops = Stops::default();
        let collector = collector::start(
            collector_config(layout, pki, ports)?,
            clock.clone(),
            stops.collector.clone(),
        )
        .await
        .map_err(NodeError::Collector)?;
        let flight_sql = flight_sql::start(
            flight_sql_config(layout, pki, ports)?,
            clock.clone(),
            stops.flight_sql.clone(),
        )
        .await
        .map_err(NodeError::FlightSql)?;
        let agent = agent::start(
            agent_config(layout, pki, ports, world, collector.address)?,
            clock.clone(),
            stops.agent.clone(),
        )
        .await
        .map_err(NodeError::Agent)?;
        Ok(Self {
            agent,
            collector,
            flight_sql,
            stops,
        })
    }

    /// Returns the address of the ingest API.
    pub fn http(&self) -> std::net::SocketAddr {
        self.agent.address
    }

    /// Returns the address of the SQL server.
    pub fn sql(&self) -> std::net::SocketAddr {
        self.flight_sql.address
    }

    /// Returns the admin addresses of agent, collector and SQL server.
    pub fn admin(&self) -> [std::net::SocketAddr; 3] {
        [
            self.agent.admin_address,
            self.collector.admin_address,
            self.flight_sql.admin_address,
        ]
    }

    /// Returns how many events are accepted and not yet committed.
    pub fn buffered(&self) -> u64 {
        self.agent.buffered()
    }

    /// Serves until `stop` is cancelled or a service ends; then stops all, in the order in which
    /// events pass them.
    ///
    /// # Errors
    /// [`NodeError::Ended`] of the first service that failed.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), NodeError> {
        let mut agent = Box::pin(self.agent.finished());
        let mut collector = Box::pin(self.collector.finished());
        let mut flight_sql = Box::pin(self.flight_sql.finished());
        tokio::select! {
            () = stop.cancelled() => {}
            end = &mut agent => return ended("agent", end),
            end = &mut collector => return ended("collector", end),
            end = &mut flight_sql => return ended("SQL server", end),
        }
        self.stops.flight_sql.cancel();
        self.stops.agent.cancel();
        let agent = agent.await;
        self.stops.collector.cancel();
        ended("agent", agent)
            .and(ended("collector", collector.await))
            .and(ended("SQL server", flight_sql.await))
    }
}

fn ended<E: std::fmt::Display>(service: &'static str, end: Result<(), E>) -> Result<(), NodeError> {
    end.map_err(|error| NodeError::Ended {
        service,
        message: error.to_string(),
    })
}

/// Makes a configuration from what the example files of `deploy/config` would say.
fn configure<T: DeserializeOwned>(service: &'static str, value: Value) -> Result<T, NodeError> {
    serde_json::from_value(value).map_err(|error| NodeError::Config {
        service,
        message: error.to_string(),
    })
}

fn tls(files: &Files, pki: &Pki) -> Value {
    json!({"certificate": files.certificate, "key": files.key, "ca": pki.ca()})
}

fn collector_config(
    layout: &Layout,
    pki: &Pki,
    ports: Ports,
) -> Result<collector::Config, NodeError> {
    configure(
        "collector",
        json!({
            "quic": {"listen": loopback(ports.quic)},
            "admin": {"listen": loopback(ports.quic_admin)},
            "tls": tls(&pki.collector(), pki),
            "catalog": layout.catalog_value(),
            // On a laptop one wants to see one's own event soon.
            "commit": {"interval_ms": 1_000},
            "limits": {"batches_in_flight_max": 32},
        }),
    )
}

fn flight_sql_config(
    layout: &Layout,
    pki: &Pki,
    ports: Ports,
) -> Result<flight_sql::Config, NodeError> {
    let files = pki.flight_sql();
    configure(
        "SQL server",
        json!({
            "flight": {"listen": loopback(ports.sql)},
            "admin": {"listen": loopback(ports.sql_admin)},
            "tls": {"certificate": files.certificate, "key": files.key},
            "catalog": layout.catalog_value(),
            "users": [{"name": DEMO_USER, "password": DEMO_USER}],
        }),
    )
}

fn agent_config(
    layout: &Layout,
    pki: &Pki,
    ports: Ports,
    world: &World,
    collector: std::net::SocketAddr,
) -> Result<agent::Config, NodeError> {
    configure(
        "agent",
        json!({
            "http": {"listen": loopback(ports.http)},
            "admin": {"listen": loopback(ports.http_admin)},
            "buffer": {"directory": layout.root.join("agent")},
            "collector": {"addresses": [collector.to_string()], "server_name": "localhost"},
            "tls": tls(&pki.agent(AGENT), pki),
            "write_keys": write_keys(world),
        }),
    )
}

/// One key for the reader of the README, and one or two for each company.
fn write_keys(world: &World) -> Vec<Value> {
    let entry = |key: String, company: &str, source: &str, kind: &str| json!({"key": key, "company": company, "source": source, "kind": kind});
    let mut keys = vec![entry(
        DEMO_WRITE_KEY.to_owned(),
        world.companies[0].profile.id,
        DEMO_SOURCE,
        "server",
    )];
    for company in &world.companies {
        let id = company.profile.id;
        keys.push(entry(company.server_key(), id, "server", "server"));
        if company.has_widget {
            keys.push(entry(company.browser_key(), id, "web", "browser"));
        }
    }
    keys
}
