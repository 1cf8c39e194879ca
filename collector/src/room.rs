//! Room for staged bytes: how much there is, and how much of it one agent may take.
//!
//! Place on the path: a batch takes its room before its body is read and gives it back when it is
//! committed. Promise: staged bytes never exceed `limits.staged_bytes_max`, and those of one agent never
//! `limits.agent_staged_bytes_max`: an agent that sends more than its share waits alone.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use headwater_protocol::AgentId;
use parking_lot::Mutex;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::config::LimitsConfig;
use crate::metrics as names;

/// Bytes for all, or for one agent; half of them for batches whose turn has not come: the other half is for
/// those that they wait for.
#[derive(Debug)]
struct Bytes {
    all: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
}

impl Bytes {
    fn new(bytes: u32) -> Self {
        Self {
            all: Arc::new(Semaphore::new(bytes as usize)),
            ahead: Arc::new(Semaphore::new(bytes as usize / 2)),
        }
    }

    async fn take(&self, bytes: u32) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.all).acquire_many_owned(bytes).await
    }

    /// Takes bytes of both kinds, if there are some now.
    fn take_ahead(&self, bytes: u32) -> Option<[OwnedSemaphorePermit; 2]> {
        let take = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_many_owned(bytes).ok();
        Some([take(&self.all)?, take(&self.ahead)?])
    }
}

/// What one agent may take. There is one for each agent that has a session or staged bytes.
#[derive(Debug)]
pub(crate) struct Share(Bytes);

/// The room of all agents.
#[derive(Debug)]
pub(crate) struct Room {
    bytes: Bytes,
    agent_bytes_max: u32,
    shares: Mutex<HashMap<AgentId, Weak<Share>>>,
}

/// A part of the room, given back when dropped.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) bytes: u64,
    _permits: [OwnedSemaphorePermit; 2],
    /// Whoever comes back before it is given back finds the same share.
    _share: Arc<Share>,
    _gauge: names::Held,
}

/// A batch's right to be read before its turn, given back when its turn has come.
#[derive(Debug)]
pub(crate) struct Early {
    _permits: [OwnedSemaphorePermit; 2],
}

impl Room {
    pub(crate) fn new(limits: &LimitsConfig) -> Self {
        Self {
            bytes: Bytes::new(limits.staged_bytes_max),
            agent_bytes_max: limits.agent_staged_bytes_max,
            shares: Mutex::default(),
        }
    }

    /// Returns the share of `agent`.
    pub(crate) fn share(&self, agent: &AgentId) -> Arc<Share> {
        let mut shares = self.shares.lock();
        if let Some(share) = shares.get(agent).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share(Bytes::new(self.agent_bytes_max)));
        shares.insert(agent.clone(), Arc::downgrade(&share));
        share
    }

    /// Waits for `bytes` of room: first for the agent's own, so that it holds up nobody else. Cancelling
    /// the wait takes none.
    ///
    /// # Errors
    /// None while the room exists.
    pub(crate) async fn take(
        &self,
        share: &Arc<Share>,
        bytes: u32,
    ) -> Result<Memory, AcquireError> {
        let waits = |what: &'static str| {
            names::Held::of(metrics::gauge!(names::WAITING_BATCHES, "for" => what), 1.0)
        };
        let waiting = waits("agent");
        let own = share.0.take(bytes).await?;
        drop(waiting);
        let _waiting = waits("all");
        let all = self.bytes.take(bytes).await?;
        Ok(memory(share, bytes, [own, all]))
    }

    /// Takes room for a batch whose turn has not come, if there is some now.
    pub(crate) fn take_ahead(&self, share: &Arc<Share>, bytes: u32) -> Option<(Memory, Early)> {
        let [own, own_ahead] = share.0.take_ahead(bytes)?;
        let [all, all_ahead] = self.bytes.take_ahead(bytes)?;
        let early = Early {
            _permits: [own_ahead, all_ahead],
        };
        Some((memory(share, bytes, [own, all]), early))
    }
}

fn memory(share: &Arc<Share>, bytes: u32, permits: [OwnedSemaphorePermit; 2]) -> Memory {
    Memory {
        bytes: u64::from(bytes),
        _permits: permits,
        _share: Arc::clone(share),
        _gauge: names::Held::new(names::STAGED_BYTES, f64::from(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn room() -> Room {
        Room::new(&LimitsConfig {
            staged_bytes_max: 100,
            agent_staged_bytes_max: 40,
            ..LimitsConfig::default()
        })
    }

    fn agent(name: &str) -> AgentId {
        name.parse().unwrap()
    }

    #[test]
    fn an_agent_has_its_share_and_no_more_however_often_it_comes_back() {
        let room = room();
        let share = room.share(&agent("a"));
        let held = room.take(&share, 40).now_or_never().unwrap().unwrap();
        drop(share);
        let again = room.share(&agent("a"));
        assert!(room.take(&again, 1).now_or_never().is_none());
        let other = room.share(&agent("b"));
        assert!(room.take(&other, 40).now_or_never().is_some());
        drop(held);
        assert!(room.take(&again, 40).now_or_never().is_some());
    }

    #[test]
    fn all_shares_together_keep_to_the_room() {
        let room = room();
        let shares = ["a", "b", "c"].map(|name| room.share(&agent(name)));
        let held = shares[..2].iter().map(|share| room.take(share, 40));
        let held: Vec<_> = held.map(|it| it.now_or_never().unwrap()).collect();
        assert!(room.take(&shares[2], 21).now_or_never().is_none());
        assert!(room.take(&shares[2], 20).now_or_never().is_some());
        drop(held);
        assert!(room.take(&shares[2], 40).now_or_never().is_some());
    }

    #[test]
    fn early_batches_leave_half_of_a_share() {
        let room = room();
        let share = room.share(&agent("a"));
        let early = room.take_ahead(&share, 20).unwrap();
        assert!(room.take_ahead(&share, 1).is_none());
        assert!(room.take(&share, 20).now_or_never().is_some());
        drop(early);
        assert!(room.take_ahead(&share, 20).is_some());
    }

    #[test]
    fn agents_that_are_gone_are_forgotten() {
        let room = room();
        for n in 0..100 {
            drop(room.share(&agent(&format!("a-{n}"))));
        }
        assert!(room.shares.lock().len() <= 1);
    }
}
