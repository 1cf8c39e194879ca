//! Settings that change while the agent runs: `SIGHUP` reads the file again, and each part asks for
//! the settings in force where it decides something.
//!
//! A reload is whole or nothing where the file cannot be used, and says by name what waits for a
//! restart. Nothing is interrupted by it: requests go on under the settings they began with, and the
//! shipper opens its next session before it lets the old one go.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;

use headwater_protocol::{ALPN, AgentId};
use headwater_service::config::ConfigError;
use headwater_service::{logging, tls};
use metrics::counter;
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::config::{Config, WriteKey};
use crate::metrics::RELOADS;

/// The settings in force at one moment, with what is derived from them once.
pub struct Live {
    config: Config,
    write_keys: HashMap<String, WriteKey>,
    companies: usize,
}

impl std::fmt::Debug for Live {
    /// Shows nothing: write keys are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Live {
    fn new(config: Config) -> Arc<Self> {
        let write_keys = config
            .write_keys
            .iter()
            .map(|entry| (entry.key.clone(), entry.clone()))
            .collect();
        let companies: HashSet<&str> = config
            .write_keys
            .iter()
            .map(|entry| entry.company.as_str())
            .collect();
        let companies = companies.len();
        Arc::new(Self {
            config,
            write_keys,
            companies,
        })
    }

    /// Returns how many companies the write keys name.
    pub fn companies(&self) -> usize {
        self.companies
    }

    /// Returns whose events come with `key`.
    pub fn write_key(&self, key: &str) -> Option<&WriteKey> {
        self.write_keys.get(key)
    }
}

impl Deref for Live {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

/// Where a part reads the settings in force; clones read the same.
#[derive(Debug, Clone)]
pub struct Settings(watch::Receiver<Arc<Live>>);

impl Settings {
    /// Returns settings that never change.
    pub fn fixed(config: Config) -> Self {
        Self(watch::Sender::new(Live::new(config)).subscribe())
    }

    /// Returns the settings in force. Cheap: one uncontended lock and a reference count.
    pub fn now(&self) -> Arc<Live> {
        self.0.borrow().clone()
    }

    /// Resolves when a session opened under `held` is no longer what the settings ask for.
    pub(crate) async fn until_shipping_differs(&mut self, held: &Live) {
        let differs = |live: &Arc<Live>| live.collector != held.collector || live.tls != held.tls;
        if self.0.wait_for(differs).await.is_err() {
            // The agent ends, and there will be no other settings.
            std::future::pending::<()>().await;
        }
    }
}

/// What a reload did; the value of the metric label `result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// Every setting of the file is in force.
    Applied,
    /// Every setting is in force but those that the log names: they wait for a restart.
    RestartNeeded,
    /// The file cannot be used; the settings before it stay in force.
    Invalid,
}

impl Reloaded {
    fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::RestartNeeded => "restart_needed",
            Self::Invalid => "invalid",
        }
    }
}

/// Puts other settings in force; clones do it for the same agent.
#[derive(Debug, Clone)]
pub struct Reloader {
    live: Arc<watch::Sender<Arc<Live>>>,
    agent_id: AgentId,
}

impl Reloader {
    pub(crate) fn new(config: Config, agent_id: AgentId) -> Self {
        Self {
            live: Arc::new(watch::Sender::new(Live::new(config))),
            agent_id,
        }
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings(self.live.subscribe())
    }

    /// Puts `loaded` in force, as far as that needs no restart. Logs and counts what came of it.
    pub fn reload(&self, loaded: Result<Config, ConfigError>) -> Reloaded {
        let running = self.live.borrow().clone();
        let result = match self.check(&running, loaded) {
            Err(reason) => {
                error!(
                    reason,
                    "reload refused; the settings before it stay in force"
                );
                Reloaded::Invalid
            }
            Ok(plan) => {
                if plan.config.log.level != running.log.level {
                    logging::set_level(&plan.config.log.level);
                }
                self.live.send_replace(Live::new(plan.config));
                for key in &plan.needs_restart {
                    warn!(key, "this setting changes only with a restart of the agent");
                }
                info!(
                    needs_restart = plan.needs_restart.len(),
                    "settings reloaded"
                );
                if plan.needs_restart.is_empty() {
                    Reloaded::Applied
                } else {
                    Reloaded::RestartNeeded
                }
            }
        };
        counter!(RELOADS, "result" => result.as_str()).increment(1);
        result
    }

    /// Finds everything that would make the new settings fail later.
    fn check(&self, running: &Config, loaded: Result<Config, ConfigError>) -> Result<Plan, String> {
        let wanted = loaded.map_err(|error| error.to_string())?;
        wanted.validate().map_err(|error| error.to_string())?;
        let mut plan = plan(running, wanted);
        // What waits for a restart must fit the rest until then.
        plan.config.validate().map_err(|error| {
            format!("{error}; this holds with the settings that change only with a restart as they run now")
        })?;
        if plan.config.tls != running.tls {
            tls::mutual_client(&plan.config.tls, ALPN).map_err(|error| error.to_string())?;
            let named =
                crate::service::agent_id(&plan.config).map_err(|error| error.to_string())?;
            if named != self.agent_id {
                plan.config.tls = running.tls.clone();
                plan.needs_restart
                    .push("tls.certificate (it names another agent)");
            }
        }
        Ok(plan)
    }
}

/// What a reload is going to do.
#[derive(Debug)]
struct Plan {
    config: Config,
    needs_restart: Vec<&'static str>,
}

/// Takes back what `wanted` changes of `running` in one setting.
type Keep = fn(running: &Config, wanted: &mut Config) -> bool;

macro_rules! needs_restart {
    ($($section:ident . $key:ident),+ $(,)?) => {
        &[$((
            concat!(stringify!($section), ".", stringify!($key)),
            |running, wanted| {
                let differs = running.$section.$key != wanted.$section.$key;
                wanted.$section.$key.clone_from(&running.$section.$key);
                differs
            },
        )),+]
    };
}

/// The settings that are read once at start. `docs/agent.md` says of each why.
const NEEDS_RESTART: &[(&str, Keep)] = needs_restart!(
    http.listen,
    http.socket,
    http.socket_mode,
    admin.listen,
    buffer.directory,
    buffer.reserve_bytes,
    buffer.refused_bytes_max,
    buffer.queue_requests_max,
    dedup.ids_max,
    event_time.devices_max,
    log.format,
);

/// Keeps of `running` what cannot change at run time, and takes the rest of `wanted`.
fn plan(running: &Config, wanted: Config) -> Plan {
    let mut config = wanted;
    let changed = NEEDS_RESTART
        .iter()
        .filter(|(_, keep)| keep(running, &mut config));
    let needs_restart = changed.map(|(key, _)| *key).collect();
    Plan {
        config,
        needs_restart,
    }
}

#[cfg(test)]
mod tests {
    use headwater_service::tls::TlsFiles;

    use super::*;

    fn config() -> Config {
        let tls = TlsFiles {
            certificate: "a.pem".into(),
            key: "a.key".into(),
            ca: "ca.pem".into(),
        };
        Config::new(tls, Vec::new())
    }

    #[test]
    fn what_needs_a_restart_is_named_and_the_rest_is_taken() {
        let running = config();
        let mut wanted = config();
        wanted.http.listen = "127.0.0.1:1".parse().unwrap();
        wanted.buffer.directory = "elsewhere".into();
        wanted.buffer.disk_bytes_max /= 2;
        wanted.http.retry_after_s = 77;
        let plan = plan(&running, wanted);
        assert_eq!(plan.needs_restart, ["http.listen", "buffer.directory"]);
        assert_eq!(plan.config.http.listen, running.http.listen);
        assert_eq!(plan.config.buffer.directory, running.buffer.directory);
        assert_eq!(
            plan.config.buffer.disk_bytes_max,
            running.buffer.disk_bytes_max / 2
        );
        assert_eq!(plan.config.http.retry_after_s, 77);
    }

    #[test]
    fn the_manual_names_what_needs_a_restart() {
        let manual = include_str!("../../docs/agent.md");
        let (_, manual) = manual.split_once("## Settings while it runs").unwrap();
        let (manual, _) = manual.split_once("\n## ").unwrap();
        for (key, _) in NEEDS_RESTART {
            let row = |line: &&str| line.starts_with("| `") && line.contains(&format!("`{key}`"));
            assert!(manual.lines().any(|line| row(&line)), "{key}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_changes_nothing() {
        let reloader = Reloader::new(config(), "agent-1".parse().unwrap());
        let settings = reloader.settings();
        let mut wrong = config();
        wrong.http.retry_after_s = 77;
        wrong.collector.backoff_min_ms = 0;
        assert_eq!(reloader.reload(Ok(wrong)), Reloaded::Invalid);
        // It fits without the reserve, which stays until a restart.
        let mut mixed = config();
        mixed.http.retry_after_s = 77;
        mixed.buffer.reserve_bytes = 0;
        mixed.buffer.disk_bytes_max = 50 << 20;
        mixed.validate().unwrap();
        assert_eq!(reloader.reload(Ok(mixed)), Reloaded::Invalid);
        let missing = TlsFiles {
            key: "missing.key".into(),
            ..config().tls
        };
        let wrong = Config {
            tls: missing,
            ..config()
        };
        assert_eq!(reloader.reload(Ok(wrong)), Reloaded::Invalid);
        assert_eq!(settings.now().http.retry_after_s, 5);
        let mut right = config();
        right.http.retry_after_s = 77;
        assert_eq!(reloader.reload(Ok(right)), Reloaded::Applied);
        assert_eq!(settings.now().http.retry_after_s, 77);
    }

    #[tokio::test]
    async fn a_session_is_renewed_only_for_what_it_depends_on() {
        let reloader = Reloader::new(config(), "agent-1".parse().unwrap());
        let mut settings = reloader.settings();
        let held = settings.now();
        let mut other = config();
        other.http.retry_after_s = 77;
        reloader.reload(Ok(other.clone()));
        let waiting = futures::poll!(std::pin::pin!(settings.until_shipping_differs(&held)));
        assert!(waiting.is_pending());
        other.collector.linger_ms += 1;
        reloader.reload(Ok(other));
        settings.until_shipping_differs(&held).await;
    }
}
