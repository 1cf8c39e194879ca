//! What one run is like: sizes, times and how often which fault strikes. All of it drawn from the seed.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::dice::Dice;

/// How often faults strike, per thousand, and the sizes of the run.
#[derive(Debug)]
pub(crate) struct Knobs {
    pub(crate) agents: usize,
    pub(crate) collectors: usize,
    /// Length of the first part with faults, in milliseconds.
    pub(crate) faults_ms: u64,
    pub(crate) commit_interval_ms: u64,
    /// Messages that never arrive.
    pub(crate) lost: u32,
    /// Batches that arrive twice.
    pub(crate) doubled: u32,
    /// Longest way of a message, in milliseconds; different ways make messages overtake each other.
    pub(crate) way_ms: u64,
    /// Swaps of a head with a fault.
    pub(crate) swap_faults: u32,
    /// Reads of a head that fail.
    pub(crate) head_faults: u32,
    /// Files that cannot be written.
    pub(crate) write_faults: u32,
    /// Lives of a collector that end at a point of the commit.
    pub(crate) crashes: u32,
    /// Steps of an agent that are something else than taking events.
    pub(crate) agent_faults: u32,
    /// Events that no table takes as they are.
    pub(crate) invalid: u32,
    /// Events that some tracking plans keep out.
    pub(crate) debatable: u32,
    /// Lives of a collector with the strict plan.
    pub(crate) strict: u32,
    /// Whether disks of agents are restored from backups and wiped.
    pub(crate) disks_change: bool,
    /// Snapshots that a table keeps.
    pub(crate) snapshots_max: u64,
    /// Entries of a table's log of former metadata.
    pub(crate) metadata_log_max: u64,
    is_healed: AtomicBool,
}

impl Knobs {
    pub(crate) fn draw(dice: &Dice) -> Self {
        // Most runs are hard in one way and easy in others, which goes deeper than a bit of all.
        let rate = |most: u64| match dice.within(0..=3) {
            0 => 0,
            1 => u32::try_from(dice.within(0..=most / 4)).unwrap_or(0),
            _ => u32::try_from(dice.within(0..=most)).unwrap_or(0),
        };
        Self {
            agents: 1 + dice.index(3),
            collectors: 1 + dice.index(3),
            faults_ms: dice.within(1_000..=5_000),
            commit_interval_ms: dice.within(1_200..=3_500),
            lost: rate(250),
            doubled: rate(300),
            way_ms: [2, 20, 200, 1500][dice.index(4)],
            swap_faults: rate(500),
            head_faults: rate(200),
            write_faults: rate(60),
            crashes: rate(900),
            agent_faults: rate(200),
            invalid: rate(300),
            debatable: rate(300),
            strict: [0, 500, 1000][dice.index(3)],
            disks_change: dice.says(400),
            snapshots_max: dice.within(2..=12),
            metadata_log_max: dice.within(1..=10),
            // Until the first storm.
            is_healed: AtomicBool::new(true),
        }
    }

    /// Faults strike from now on.
    pub(crate) fn storm(&self) {
        self.is_healed.store(false, Ordering::Relaxed);
    }

    /// No fault strikes any more.
    pub(crate) fn heal(&self) {
        self.is_healed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_healed(&self) -> bool {
        self.is_healed.load(Ordering::Relaxed)
    }

    /// Says whether a fault of this rate strikes now.
    pub(crate) fn strikes(&self, dice: &Dice, per_mille: u32) -> bool {
        !self.is_healed() && dice.says(per_mille)
    }
}
