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
//! headwater.wm.NN        base64 of: 1 (format), then per agent in order of its id:
//!                        length of the id, id, number of epochs,
//!                        then per epoch in order: epoch, watermark
//! ```
//! NN = first byte of SHA-256(agent id) modulo 64. All numbers are LEB128 varints.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use iceberg::table::Table;
use sha2::{Digest, Sha256};

/// Start of every property and summary entry about watermarks.
pub const WATERMARK_PREFIX: &str = "headwater.wm.";
/// Property and summary entry: number of commits that moved a watermark.
pub const WATERMARK_VERSION: &str = "headwater.wm.version";
/// Summary entry: digest of all shards.
pub const WATERMARK_DIGEST: &str = "headwater.wm.sha256";
/// Number of shards: fixed, because a shard's number is part of the format.
const SHARDS: u8 = 64;
const FORMAT: u8 = 1;

/// The watermarks of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Watermarks {
    version: u64,
    agents: BTreeMap<String, BTreeMap<u64, u64>>,
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
        let mut watermarks = Self {
            version: version(properties),
            agents: BTreeMap::new(),
        };
        for shard in 0..SHARDS {
            let property = property(shard);
            if let Some(value) = properties.get(&property) {
                let decoded = decode(value);
                let agents =
                    decoded.map_err(|reason| WatermarkError::Shard { property, reason })?;
                watermarks.agents.extend(agents);
            }
        }
        Ok(watermarks)
    }

    /// Returns the highest sequence up to which everything is committed, 0 when there is none.
    pub fn get(&self, agent: &str, epoch: u64) -> u64 {
        let epochs = self.agents.get(agent);
        epochs
            .and_then(|epochs| epochs.get(&epoch))
            .copied()
            .unwrap_or(0)
    }

    /// Moves a watermark forward; never backwards.
    pub fn advance(&mut self, agent: &str, epoch: u64, sequence: u64) {
        if sequence > self.get(agent, epoch) {
            let epochs = self.agents.entry(agent.to_owned()).or_default();
            epochs.insert(epoch, sequence);
        }
    }

    /// Returns the table properties to set so that `base` becomes `self`; none when nothing moved.
    pub fn changed_properties(&self, base: &Self) -> BTreeMap<String, String> {
        let changed: BTreeSet<u8> = self
            .agents
            .iter()
            .filter(|(agent, epochs)| base.agents.get(*agent) != Some(epochs))
            .map(|(agent, _)| shard_of(agent))
            .collect();
        if changed.is_empty() {
            return BTreeMap::new();
        }
        let mut shards: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for (agent, epochs) in &self.agents {
            let shard = shard_of(agent);
            if changed.contains(&shard) {
                let bytes = shards.entry(shard).or_insert_with(|| vec![FORMAT]);
                encode(bytes, agent, epochs);
            }
        }
        let mut properties: BTreeMap<String, String> = shards
            .into_iter()
            .map(|(shard, bytes)| (property(shard), STANDARD.encode(bytes)))
            .collect();
        let version = base.version + 1;
        properties.insert(WATERMARK_VERSION.to_owned(), version.to_string());
        properties
    }

    /// Returns every (agent, epoch, watermark), in order.
    pub fn agents(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.agents.iter().flat_map(|(agent, epochs)| {
            let epochs = epochs.iter();
            epochs.map(move |(epoch, sequence)| (agent.as_str(), *epoch, *sequence))
        })
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

fn shard_of(agent: &str) -> u8 {
    Sha256::digest(agent.as_bytes())[0] % SHARDS
}

/// Appends one agent to a shard.
fn encode(bytes: &mut Vec<u8>, agent: &str, epochs: &BTreeMap<u64, u64>) {
    put_varint(bytes, agent.len() as u64);
    bytes.extend_from_slice(agent.as_bytes());
    put_varint(bytes, epochs.len() as u64);
    for (epoch, sequence) in epochs {
        put_varint(bytes, *epoch);
        put_varint(bytes, *sequence);
    }
}

type Agents = BTreeMap<String, BTreeMap<u64, u64>>;

fn decode(value: &str) -> Result<Agents, &'static str> {
    let bytes = STANDARD.decode(value).map_err(|_| "it is not base64")?;
    let Some((&FORMAT, mut rest)) = bytes.split_first() else {
        return Err("its format is unknown: it was written by a newer version");
    };
    let mut agents = Agents::new();
    while !rest.is_empty() {
        let length = take_varint(&mut rest)?;
        let length = usize::try_from(length).map_err(|_| "it is cut off")?;
        let (id, after) = rest.split_at_checked(length).ok_or("it is cut off")?;
        rest = after;
        let id = std::str::from_utf8(id).map_err(|_| "an agent id is not UTF-8")?;
        let mut epochs = BTreeMap::new();
        for _ in 0..take_varint(&mut rest)? {
            let epoch = take_varint(&mut rest)?;
            epochs.insert(epoch, take_varint(&mut rest)?);
        }
        agents.insert(id.to_owned(), epochs);
    }
    Ok(agents)
}

fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number as u8) | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or("it is cut off")?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err("a number is too large");
        }
        number |= part << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err("a number is too long")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agents() -> impl Strategy<Value = Agents> {
        let epochs = prop::collection::btree_map(any::<u64>(), any::<u64>(), 1..4);
        prop::collection::btree_map("[a-zA-Z0-9._äπ-]{1,40}", epochs, 0..50)
    }

    proptest! {
        #[test]
        fn a_shard_reads_back_as_it_was_written(agents in agents()) {
            let mut bytes = vec![FORMAT];
            for (agent, epochs) in &agents {
                encode(&mut bytes, agent, epochs);
            }
            prop_assert_eq!(decode(&STANDARD.encode(bytes)).unwrap(), agents);
        }

        #[test]
        fn damaged_shards_are_errors_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            // Either answer is fine; only a panic is not.
            drop(decode(&STANDARD.encode(&bytes)));
        }

        #[test]
        fn changed_shards_bring_the_base_to_the_new_state(
            base in agents(),
            moves in prop::collection::vec((any::<prop::sample::Index>(), 0u64..3, any::<u64>()), 0..20),
        ) {
            let base = Watermarks { version: 7, agents: base };
            let names: Vec<String> = base.agents.keys().cloned().collect();
            let mut new = base.clone();
            for (index, epoch, sequence) in moves {
                let fresh = "new-agent".to_owned();
                let agent = if names.is_empty() { &fresh } else { index.get(&names) };
                new.advance(agent, epoch, sequence);
            }
            let mut stored = store(&base);
            let changed = new.changed_properties(&base);
            prop_assert_eq!(changed.is_empty(), new == base);
            if !changed.is_empty() {
                prop_assert_eq!(check_forward(&stored, &changed), Ok(()));
            }
            stored.extend(changed);
            prop_assert_eq!(read(&stored), new.agents);
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

    fn read(properties: &HashMap<String, String>) -> Agents {
        (0..SHARDS)
            .filter_map(|shard| properties.get(&property(shard)))
            .flat_map(|value| decode(value).unwrap())
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
    fn the_format_stays_what_it_is() {
        let epochs = BTreeMap::from([(1, 300), (2, 5)]);
        let mut bytes = vec![FORMAT];
        encode(&mut bytes, "agent-1", &epochs);
        assert_eq!(STANDARD.encode(bytes), "AQdhZ2VudC0xAgGsAgIF");
        assert_eq!(shard_of("agent-1"), 47);
    }
}
