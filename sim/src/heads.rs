//! The catalog: heads in memory, behind the faults of a process and of the catalog itself.
//!
//! A swap can fail before or after it is done, be done long after it was given up, or be reported
//! without being done.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use headwater_tables::catalog::{Heads, Swap};
use headwater_tables::{CatalogError, TableName};
use parking_lot::Mutex;

use crate::host::{Host, Point, Target};
use crate::world::World;

/// Longest time after which a swap that was given up is done all the same, in milliseconds.
pub(crate) const LATE_MAX_MS: u64 = 6_000;

/// The heads of all tables.
#[derive(Debug, Default)]
pub(crate) struct Rows(Mutex<BTreeMap<TableName, String>>);

impl Rows {
    fn get(&self, name: &TableName) -> Option<String> {
        self.0.lock().get(name).cloned()
    }

    fn swap(&self, name: &TableName, from: &str, to: &str) -> Swap {
        let mut rows = self.0.lock();
        match rows.get_mut(name) {
            Some(head) if head == from => {
                *head = to.to_owned();
                Swap::Won
            }
            _ => Swap::Lost,
        }
    }
}

/// The catalog without faults; what the oracle reads.
#[derive(Debug)]
pub(crate) struct SoundHeads(pub(crate) Arc<Rows>);

#[async_trait]
impl Heads for SoundHeads {
    async fn all(&self) -> Result<Vec<(TableName, String)>, CatalogError> {
        let rows = self.0.0.lock();
        Ok(rows
            .iter()
            .map(|(name, head)| (name.clone(), head.clone()))
            .collect())
    }

    async fn get(&self, name: &TableName) -> Result<Option<String>, CatalogError> {
        Ok(self.0.get(name))
    }

    async fn insert(&self, name: &TableName, location: &str) -> Result<bool, CatalogError> {
        let mut rows = self.0.0.lock();
        let head = rows
            .entry(name.clone())
            .or_insert_with(|| location.to_owned());
        Ok(head == location)
    }

    async fn swap(&self, name: &TableName, from: &str, to: &str) -> Result<Swap, CatalogError> {
        Ok(self.0.swap(name, from, to))
    }
}

/// The catalog as one process sees it.
pub(crate) struct FaultyHeads {
    pub(crate) world: Arc<World>,
    pub(crate) host: Arc<Host>,
}

/// What goes wrong with a swap.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// It is not done, and said so in doubtful words.
    NotDone,
    /// It is done, and the answer is lost.
    AnswerLost,
    /// It is reported and not done.
    Untrue,
    /// It is given up and done later, if the head is still the same then.
    Late,
    /// It takes very long.
    Hangs,
    /// It is done, and the answer comes long after.
    AnswerSlow,
}

const FAULTS: [(Fault, &str); 6] = [
    (Fault::NotDone, "catalog: fails before the commit"),
    (Fault::AnswerLost, "catalog: fails after the commit"),
    (Fault::Untrue, "catalog: reports a commit that is none"),
    (Fault::Late, "catalog: commits after it has failed"),
    (Fault::Hangs, "catalog: hangs"),
    (Fault::AnswerSlow, "catalog: answers long after the commit"),
];

fn doubtful() -> CatalogError {
    CatalogError::Path {
        path: "catalog".into(),
        source: std::io::Error::other("the connection to the catalog broke"),
    }
}

impl FaultyHeads {
    async fn swap_now(&self, name: &TableName, from: &str, to: &str) -> Swap {
        let swapped = swap(&self.world, name, from, to).await;
        if swapped == Swap::Won {
            match Target::of(name) {
                Target::Quarantine => self.host.quarantined(true),
                Target::Events => self.host.fenced(self.world.truth.fence(name)),
            }
        }
        swapped
    }
}

/// Swaps the head and lets the truth know.
async fn swap(world: &Arc<World>, name: &TableName, from: &str, to: &str) -> Swap {
    let swap = world.rows.swap(name, from, to);
    match swap {
        Swap::Won => world.truth.observe(world, name).await,
        Swap::Lost => world.trace.count("commit: conflict"),
    }
    swap
}

#[async_trait]
impl Heads for FaultyHeads {
    async fn all(&self) -> Result<Vec<(TableName, String)>, CatalogError> {
        Err(doubtful())
    }

    async fn get(&self, name: &TableName) -> Result<Option<String>, CatalogError> {
        self.host.pass(Point::Other).await;
        let world = &self.world;
        if world.knobs.strikes(&world.dice, world.knobs.head_faults) {
            world.trace.count("catalog: cannot be read");
            return Err(doubtful());
        }
        Ok(world.rows.get(name))
    }

    async fn insert(&self, _: &TableName, _: &str) -> Result<bool, CatalogError> {
        Err(doubtful())
    }

    async fn swap(&self, name: &TableName, from: &str, to: &str) -> Result<Swap, CatalogError> {
        let target = Target::of(name);
        self.host.pass(Point::BeforeSwap(target)).await;
        let world = &self.world;
        let mut fault = None;
        if world.knobs.strikes(&world.dice, world.knobs.swap_faults) {
            let (drawn, counted) = FAULTS[world.dice.index(FAULTS.len())];
            world.trace.count(counted);
            world
                .trace
                .line(format_args!("{} {name}: {counted}", self.host.name));
            fault = Some(drawn);
        }
        let swapped = match fault {
            Some(Fault::NotDone) => return Err(doubtful()),
            Some(Fault::Untrue) => return Ok(Swap::Won),
            Some(Fault::Late) => {
                let (world, name) = (world.clone(), name.clone());
                let (from, to) = (from.to_owned(), to.to_owned());
                let late = world.dice.ms(1..=LATE_MAX_MS);
                tokio::spawn(async move {
                    tokio::time::sleep(late).await;
                    swap(&world, &name, &from, &to).await;
                });
                return Err(doubtful());
            }
            Some(Fault::Hangs) => {
                tokio::time::sleep(world.dice.ms(1_000..=20_000)).await;
                self.swap_now(name, from, to).await
            }
            Some(Fault::AnswerSlow) => {
                let swapped = self.swap_now(name, from, to).await;
                tokio::time::sleep(world.dice.ms(1_000..=20_000)).await;
                swapped
            }
            Some(Fault::AnswerLost) => {
                if self.swap_now(name, from, to).await == Swap::Won {
                    self.host.pass(Point::AfterSwap(target)).await;
                }
                return Err(doubtful());
            }
            None => self.swap_now(name, from, to).await,
        };
        if swapped == Swap::Won {
            self.host.pass(Point::AfterSwap(target)).await;
        }
        Ok(swapped)
    }
}
