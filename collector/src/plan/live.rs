//! The plan in force, and how another one takes its place while the collector runs.
//!
//! Place on the path: staging asks for the plan once per batch. Promise: a reload is whole or
//! nothing; a plan that cannot be used is named in the log and counted, and the one before it stays.

use std::path::PathBuf;
use std::sync::Arc;

use headwater_tables::{Catalog, blocking};
use parking_lot::RwLock;

use super::{Plan, PlanError};
use crate::metrics as names;

/// What a reload did; the value of the metric label `result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reloaded {
    /// Another plan is in force.
    Applied,
    /// The files say what they said before.
    Unchanged,
    /// The files cannot be used; the plan before them stays in force.
    Invalid,
}

impl Reloaded {
    fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Invalid => "invalid",
        }
    }
}

/// Where the plan in force is asked for; clones ask for the same.
#[derive(Debug, Clone)]
pub struct LivePlan {
    directory: Option<PathBuf>,
    plan: Arc<RwLock<Arc<Plan>>>,
}

impl LivePlan {
    /// Reads the plan of `directory`, or takes the one that is compiled in.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn open(directory: Option<PathBuf>) -> Result<Self, PlanError> {
        let plan = Plan::load(directory.as_deref())?;
        metrics::gauge!(names::PLAN_EVENTS).set(plan.events() as f64);
        Ok(Self {
            directory,
            plan: Arc::new(RwLock::new(plan)),
        })
    }

    /// Returns a plan that stays the same until it is replaced.
    pub fn fixed(plan: Arc<Plan>) -> Self {
        Self {
            directory: None,
            plan: Arc::new(RwLock::new(plan)),
        }
    }

    /// Returns the plan in force. Cheap: one uncontended lock and a reference count.
    pub fn now(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.read())
    }

    /// Reads the files again, adds the columns that they promote to `raw.events`, and puts what they say
    /// in force. Logs and counts what came of it.
    pub async fn reload(&self, catalog: &Catalog) -> Reloaded {
        let result = match self.read(catalog).await {
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(reason, "reload refused; the plan before it stays in force");
                Reloaded::Invalid
            }
            Ok(plan) => self.replace(plan),
        };
        metrics::counter!(names::PLAN_RELOADS, "result" => result.as_str()).increment(1);
        result
    }

    async fn read(&self, catalog: &Catalog) -> Result<Arc<Plan>, PlanError> {
        let directory = self.directory.clone();
        let plan = blocking(move || Plan::load(directory.as_deref())).await;
        let plan = plan.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic()))?;
        plan.ensure_columns(catalog).await?;
        Ok(plan)
    }

    /// Puts `plan` in force.
    pub fn replace(&self, plan: Arc<Plan>) -> Reloaded {
        let mut live = self.plan.write();
        if live.fingerprint() == plan.fingerprint() {
            return Reloaded::Unchanged;
        }
        let (events, fingerprint) = (plan.events(), plan.fingerprint());
        tracing::info!(events, fingerprint, "another tracking plan is in force");
        metrics::gauge!(names::PLAN_EVENTS).set(events as f64);
        *live = plan;
        Reloaded::Applied
    }
}

#[cfg(test)]
mod tests {
    use headwater_tables::CatalogConfig;
    use headwater_tables::promoted::ColumnType;

    use super::*;

    #[tokio::test]
    async fn a_plan_is_taken_up_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let config = CatalogConfig::local(directory.path());
        let catalog = Catalog::open(&config).await.unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(directory.path().join(name), text).unwrap();
        };
        write("a.json", r#"{"event":"A","version":1}"#);
        let live = LivePlan::open(Some(directory.path().to_owned())).unwrap();
        assert_eq!(live.now().lookup("a").unwrap().version, 1);
        assert_eq!(live.reload(&catalog).await, Reloaded::Unchanged);
        // One good change and one file that cannot be: neither counts.
        write("a.json", r#"{"event":"A","version":2}"#);
        write(
            "b.json",
            r#"{"event":"B","version":1,"schema":{"pattern":"x"}}"#,
        );
        assert_eq!(live.reload(&catalog).await, Reloaded::Invalid);
        assert_eq!(live.now().lookup("a").unwrap().version, 1);
        write("b.json", r#"{"event":"B","version":1}"#);
        assert_eq!(live.reload(&catalog).await, Reloaded::Applied);
        assert_eq!(live.now().lookup("a").unwrap().version, 2);
        assert_eq!(live.now().events(), 2);
        // A column keeps its type: a plan that wants another one is refused.
        let promote =
            |name: &str| format!(r#"{{"event":"B","version":1,"promote":{{"x":"{name}"}}}}"#);
        write("b.json", &promote("long"));
        assert_eq!(live.reload(&catalog).await, Reloaded::Applied);
        write("b.json", &promote("string"));
        assert_eq!(live.reload(&catalog).await, Reloaded::Invalid);
        assert_eq!(live.now().promoted()[0].column_type, ColumnType::Long);
    }
}
