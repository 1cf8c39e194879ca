//! The open session of each agent.
//!
//! Beside the path. Promise: an agent has one session. A new one replaces the old: an agent that comes back
//! over another network must not wait until its dead connection times out.

use std::collections::HashMap;

use headwater_protocol::{AgentId, close};
use quinn::Connection;

use crate::metrics as names;

/// Why the collector closes an open session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The agent has opened another one.
    Replaced,
    /// Its connection is as old as it may become.
    Age,
    /// Its certificate is not accepted any more.
    Untrusted,
    /// The table has less than it was told.
    SetBack,
}

impl Reason {
    const ALL: [Self; 4] = [Self::Replaced, Self::Age, Self::Untrusted, Self::SetBack];

    fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Age => "age",
            Self::Untrusted => "untrusted",
            Self::SetBack => "set_back",
        }
    }

    /// Closes `connection` and counts it.
    pub(crate) fn close(self, connection: &Connection) {
        metrics::counter!(names::SESSIONS_CLOSED, "reason" => self.as_str()).increment(1);
        let (code, text) = match self {
            Self::Replaced => (close::REPLACED, "replaced by a new session"),
            Self::Age => (close::AGED, "as old as it may become; come again"),
            Self::Untrusted => (close::UNTRUSTED, "the certificate is not accepted any more"),
            Self::SetBack => (close::SET_BACK, "the table was set back; come again"),
        };
        connection.close(code.into(), text.as_bytes());
    }
}

/// Closes the session of `agent`, whose certificate is not accepted any more.
pub(crate) fn close_untrusted(agent: &AgentId, connection: &Connection, error: &rustls::Error) {
    tracing::warn!(agent_id = %agent, %error, "session closed: its certificate is not accepted any more");
    Reason::Untrusted.close(connection);
}

/// Shows every reason with 0.
pub(crate) fn show_all() {
    for reason in Reason::ALL {
        metrics::counter!(names::SESSIONS_CLOSED, "reason" => reason.as_str()).increment(0);
    }
}

/// The sessions by agent.
#[derive(Debug, Default)]
pub(crate) struct Sessions(parking_lot::Mutex<HashMap<AgentId, Connection>>);

impl Sessions {
    /// Makes `connection` the one of `agent`.
    pub(crate) fn register<'a>(
        &'a self,
        agent: &AgentId,
        connection: &Connection,
    ) -> Registered<'a> {
        let old = self.0.lock().insert(agent.clone(), connection.clone());
        if let Some(old) = old {
            tracing::warn!(agent_id = %agent, "a new session replaces an open one");
            Reason::Replaced.close(&old);
        }
        Registered {
            sessions: self,
            agent: agent.clone(),
            connection: connection.stable_id(),
        }
    }

    /// Returns those that are open now.
    pub(crate) fn open(&self) -> Vec<(AgentId, Connection)> {
        let sessions = self.0.lock();
        let open = sessions.iter();
        open.map(|(agent, connection)| (agent.clone(), connection.clone()))
            .collect()
    }
}

/// A place in [`Sessions`], given up when dropped.
pub(crate) struct Registered<'a> {
    sessions: &'a Sessions,
    agent: AgentId,
    connection: usize,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        let mut sessions = self.sessions.0.lock();
        let ours = sessions
            .get(&self.agent)
            .is_some_and(|open| open.stable_id() == self.connection);
        if ours {
            sessions.remove(&self.agent);
        }
    }
}
