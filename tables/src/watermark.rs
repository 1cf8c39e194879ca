//! Watermarks: how far each agent's sequence is committed. Watermark *w* of (agent, epoch) means that
//! everything up to *w* is in the table (EO-3).
//!
//! Place on the event's path: admission reads them, and the commit that adds the rows moves them
//! (EO-4). They live in table properties, which snapshot expiry cannot drop, in 64 shards, so that one
//! commit rewrites only the shards of its agents. Each snapshot is stamped with the version and the
//! digest of all shards: a table that was rolled back, or whose properties another program
//! overwrote, is recognised and refused.
//!
//! ```text
//! headwater.wm.version   decimal, +1 with each commit that moves a watermark
//! headwater.wm.NN        the agents of shard NN, see watermark/shard.rs
//! ```
//! NN = first byte of SHA-256(agent id) modulo 64.

mod shard;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use iceberg::table::Table;
use sha2::{Digest, Sha256};

use shard::{Agents, decode, encode};

/// Start of every property and summary entry about watermarks.
pub const WATERMARK_PREFIX: &str = "headwater.wm.";
/// Property and summary entry: number of commits that moved a watermark.
pub const WATERMARK_VERSION: &str = "headwater.wm.version";
/// Summary entry: digest of all shards.
pub const WATERMARK_DIGEST: &str = "headwater.wm.sha256";
/// Number of shards: fixed, because a shard's number is part of the format.
const SHARDS: u8 = 64;

/// The watermarks of one table. Clones share what neither of them has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watermarks {
    version: u64,
    /// Of each shard, in order.
    shards: Vec<Arc<Agents>>,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self {
            version: 0,
            shards: vec![Arc::default(); usize::from(SHARDS)],
        }
    }
}

/// Why a table's watermarks cannot be trusted. Stop; a person must look at the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatermarkError {
    /// A shard cannot be read.
    #[error("table property `{property}` is not a watermark shard: {reason}")]
    Shard {
        /// The property.
        property: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Snapshot and properties disagree: the table was rolled back or another program changed its
    /// properties. Rebuild the watermarks from the lineage columns of the rows.
    #[error(
        "snapshot {snapshot_id} is stamped with watermark version {stamped} and the table has {found}: the table was rolled back or its properties were overwritten"
    )]
    RolledBack {
        /// The newest stamped snapshot.
        snapshot_id: i64,
        /// Version and digest in its summary.
        stamped: String,
        /// Version and digest of the properties.
        found: String,
    },
}

impl Watermarks {
    /// Reads the watermarks of a table and checks them against the newest stamped snapshot.
    pub fn of(table: &Table) -> Result<Self, WatermarkError> {
        let properties = table.metadata().properties();
        check_stamp(table)?;
        let read = |number| {
            let property = property(number);
            match properties.get(&property).map(|value| decode(value)) {
                None => Ok(Arc::default()),
                Some(Ok(agents)) => Ok(Arc::new(agents)),
                Some(Err(reason)) => Err(WatermarkError::Shard { property, reason }),
            }
        };
        Ok(Self {
            version: version(properties),
            shards: (0..SHARDS).map(read).collect::<Result<_, _>>()?,
        })
    }

    /// Returns the highest sequence up to which everything is committed, 0 when there is none.
    pub fn get(&self, agent: &str, epoch: u64) -> u64 {
        let epochs = self.shards[shard_of(agent)].get(agent);
        epochs
            .and_then(|epochs| epochs.get(&epoch))
            .copied()
            .unwrap_or(0)
    }

    /// Moves a watermark forward; never backwards.
    pub fn advance(&mut self, agent: &str, epoch: u64, sequence: u64) {
        if sequence > self.get(agent, epoch) {
            let agents = Arc::make_mut(&mut self.shards[shard_of(agent)]);
            let epochs = agents.entry(agent.to_owned()).or_default();
            epochs.insert(epoch, sequence);
        }
    }

    /// Returns the table properties to set so that `base` becomes `self`; none when nothing moved.
    pub fn changed_properties(&self, base: &Self) -> BTreeMap<String, String> {
        let shards = self.shards.iter().zip(&base.shards).zip(0..SHARDS);
        let mut properties: BTreeMap<String, String> = shards
            // Equality of what is shared costs nothing.
            .filter(|((new, old), _)| !Arc::ptr_eq(new, old) && new != old)
            .map(|((new, _), number)| (property(number), encode(new)))
            .collect();
        if !properties.is_empty() {
            let version = base.version + 1;
            properties.insert(WATERMARK_VERSION.to_owned(), version.to_string());
        }
        properties
    }

    /// Returns every (agent, epoch, watermark), in order.
    pub fn agents(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        let agents = self.shards.iter().flat_map(|agents| agents.iter());
        let marks = agents.flat_map(|(agent, epochs)| {
            let epochs = epochs.iter();
            epochs.map(move |(epoch, sequence)| (agent.as_str(), *epoch, *sequence))
        });
        let mut marks: Vec<_> = marks.collect();
        marks.sort_unstable();
        marks.into_iter()
    }
}

/// Checks that a commit's `changed` properties move no watermark of `base` backwards and drop none.
pub(crate) fn check_forward(
    base: &HashMap<String, String>,
    changed: &BTreeMap<String, String>,
) -> Result<(), String> {
    for (property, value) in changed {
        let is_shard = property.starts_with(WATERMARK_PREFIX) && property != WATERMARK_VERSION;
        let Some(old) = base.get(property).filter(|_| is_shard) else {
            continue;
        };
        let read = |value: &str| decode(value).map_err(|reason| format!("`{property}`: {reason}"));
        let (old, new) = (read(old)?, read(value)?);
        for (agent, epochs) in &old {
            for (epoch, sequence) in epochs {
                let moved = new.get(agent).and_then(|epochs| epochs.get(epoch));
                if moved.is_none_or(|moved| moved < sequence) {
                    let moved = moved.copied().unwrap_or(0);
                    return Err(format!(
                        "watermark of agent `{agent}` epoch {epoch} would move back from {sequence} to {moved}"
                    ));
                }
            }
        }
    }
    let moves = changed.keys().any(|key| key.starts_with(WATERMARK_PREFIX));
    if moves && version_in(changed) != version(base) + 1 {
        return Err("watermarks were computed from another version of the table".to_owned());
    }
    Ok(())
}

/// Returns the stamp of a snapshot that sets `changed` on top of `base`: the new one when watermarks
/// move, the parent's otherwise, so that the newest snapshot always carries it.
pub(crate) fn stamp(
    base: &HashMap<String, String>,
    changed: &BTreeMap<String, String>,
    parent: Option<&HashMap<String, String>>,
) -> Vec<(String, String)> {
    if !changed.keys().any(|key| key.starts_with(WATERMARK_PREFIX)) {
        let carried = parent.into_iter().flatten();
        let carried = carried.filter(|(key, _)| key.starts_with(WATERMARK_PREFIX));
        return carried
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
    }
    let shard = |key: &str| {
        changed
            .get(key)
            .or_else(|| base.get(key))
            .map(String::as_str)
    };
    vec![
        (
            WATERMARK_VERSION.to_owned(),
            version_in(changed).to_string(),
        ),
        (WATERMARK_DIGEST.to_owned(), digest(shard)),
    ]
}

fn check_stamp(table: &Table) -> Result<(), WatermarkError> {
    let metadata = table.metadata();
    let properties = metadata.properties();
    let mut snapshot = metadata.current_snapshot();
    // Other programs may append without a stamp; the newest stamped ancestor counts.
    while let Some(current) = snapshot {
        let summary = &current.summary().additional_properties;
        if let (Some(version_stamped), Some(digest_stamped)) = (
            summary.get(WATERMARK_VERSION),
            summary.get(WATERMARK_DIGEST),
        ) {
            let found_version = version(properties).to_string();
            let found_digest = digest(|key| properties.get(key).map(String::as_str));
            if (version_stamped, digest_stamped) == (&found_version, &found_digest) {
                return Ok(());
            }
            return Err(WatermarkError::RolledBack {
                snapshot_id: current.snapshot_id(),
                stamped: format!("{version_stamped} ({digest_stamped})"),
                found: format!("{found_version} ({found_digest})"),
            });
        }
        let parent = current.parent_snapshot_id();
        snapshot = parent.and_then(|parent| metadata.snapshot_by_id(parent));
    }
    Ok(())
}

fn version(properties: &HashMap<String, String>) -> u64 {
    let value = properties.get(WATERMARK_VERSION);
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

fn version_in(properties: &BTreeMap<String, String>) -> u64 {
    let value = properties.get(WATERMARK_VERSION);
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Returns the first 16 hex digits of the digest of all shards: enough to notice a difference.
fn digest<'a>(shard: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut hasher = Sha256::new();
    for number in 0..SHARDS {
        let property = property(number);
        if let Some(value) = shard(&property) {
            hasher.update(property.as_bytes());
            hasher.update(value.as_bytes());
        }
    }
    let digest = hasher.finalize();
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn property(shard: u8) -> String {
    format!("{WATERMARK_PREFIX}{shard:02}")
}

fn shard_of(agent: &str) -> usize {
    usize::from(Sha256::digest(agent.as_bytes())[0] % SHARDS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Moves = Vec<(String, u64, u64)>;

    fn moves() -> impl Strategy<Value = Moves> {
        prop::collection::vec(("[a-z]{1,2}", 0u64..3, 1..u64::MAX), 0..50)
    }

    fn moved(mut watermarks: Watermarks, moves: Moves) -> Watermarks {
        for (agent, epoch, sequence) in moves {
            watermarks.advance(&agent, epoch, sequence);
        }
        watermarks
    }

    proptest! {
        #[test]
        fn changed_shards_bring_the_base_to_the_new_state(
            before in moves(),
            moves in moves(),
        ) {
            let base = Watermarks { version: 7, ..moved(Watermarks::default(), before) };
            let new = moved(base.clone(), moves);
            let mut stored = store(&base);
            let changed = new.changed_properties(&base);
            prop_assert_eq!(changed.is_empty(), new == base);
            if !changed.is_empty() {
                prop_assert_eq!(check_forward(&stored, &changed), Ok(()));
            }
            stored.extend(changed);
            prop_assert_eq!(read(&stored), new.shards);
        }
    }

    /// Returns the properties of a table with these watermarks.
    fn store(watermarks: &Watermarks) -> HashMap<String, String> {
        let empty = Watermarks {
            version: watermarks.version - 1,
            ..Watermarks::default()
        };
        watermarks
            .changed_properties(&empty)
            .into_iter()
            .chain([(WATERMARK_VERSION.to_owned(), watermarks.version.to_string())])
            .collect()
    }

    fn read(properties: &HashMap<String, String>) -> Vec<Arc<Agents>> {
        let value = |number| properties.get(&property(number));
        let agents = |number| value(number).map(|value| decode(value).unwrap());
        (0..SHARDS)
            .map(|number| Arc::new(agents(number).unwrap_or_default()))
            .collect()
    }

    #[test]
    fn a_watermark_never_moves_back() {
        let mut watermarks = Watermarks::default();
        watermarks.advance("a", 1, 10);
        watermarks.advance("a", 1, 4);
        assert_eq!(watermarks.get("a", 1), 10);
        assert_eq!(watermarks.get("a", 2), 0);

        let ahead = store(&Watermarks {
            version: 1,
            ..watermarks.clone()
        });
        let mut behind = Watermarks {
            version: 1,
            ..Watermarks::default()
        };
        behind.advance("a", 1, 9);
        let changed = behind.changed_properties(&Watermarks {
            version: 1,
            ..Watermarks::default()
        });
        let error = check_forward(&ahead, &changed).unwrap_err();
        assert!(error.contains("from 10 to 9"), "{error}");
    }

    #[test]
    fn an_agent_stays_in_its_shard() {
        assert_eq!(shard_of("agent-1"), 47);
    }
}
