//! Watermarks: how far each agent's sequence is committed.

use std::collections::BTreeMap;

use iceberg::table::Table;

/// The watermarks of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watermarks {
    agents: BTreeMap<(String, u64), u64>,
}

/// The table's watermarks cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("table property `{property}` is not a watermark shard: {reason}")]
pub struct WatermarkError {
    /// The property.
    pub property: String,
    /// What is wrong with it.
    pub reason: String,
}

#[expect(clippy::todo, unused_variables, reason = "skeleton")]
impl Watermarks {
    /// Reads the watermarks of a table.
    pub fn of(table: &Table) -> Result<Self, WatermarkError> {
        todo!()
    }
    /// Returns the highest sequence committed, 0 when there is none.
    pub fn get(&self, agent: &str, epoch: u64) -> u64 {
        self.agents
            .get(&(agent.to_owned(), epoch))
            .copied()
            .unwrap_or(0)
    }
    /// Moves a watermark forward; never backwards.
    pub fn advance(&mut self, agent: &str, epoch: u64, sequence: u64) {
        let entry = self.agents.entry((agent.to_owned(), epoch)).or_default();
        *entry = sequence.max(*entry);
    }
    /// Returns the table properties to set so that `base` becomes `self`.
    pub fn changed_properties(&self, base: &Self) -> BTreeMap<String, String> {
        todo!()
    }
    /// Returns the summary entries that tie the snapshot to these watermarks.
    pub fn summary(&self) -> BTreeMap<String, String> {
        todo!()
    }
    /// Returns every (agent, epoch, watermark).
    pub fn agents(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.agents
            .iter()
            .map(|((agent, epoch), sequence)| (agent.as_str(), *epoch, *sequence))
    }
}
