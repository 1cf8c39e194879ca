//! The position of an event: agent, epoch, sequence.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Incarnation of an agent's buffer: milliseconds since the Unix epoch at which it was made, always
/// larger than the one before. A new buffer is a new epoch.
pub type Epoch = u64;

/// Number of an event in its epoch. The first is 1 and there are no holes; 0 means "none yet".
pub type Sequence = u64;

/// Name of an agent: the common name of its certificate. 1 to 64 characters of `a-z 0-9 - _ .`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgentId(String);

/// A text that cannot name an agent.
#[derive(Debug, thiserror::Error)]
#[error("agent id `{0}` is not 1 to 64 characters of `a-z 0-9 - _ .`")]
pub struct AgentIdError(String);

impl AgentId {
    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AgentId {
    type Error = AgentIdError;

    fn try_from(text: String) -> Result<Self, AgentIdError> {
        let allowed =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
        if (1..=64).contains(&text.len()) && text.chars().all(allowed) {
            Ok(Self(text))
        } else {
            Err(AgentIdError(text.chars().take(64).collect()))
        }
    }
}

impl From<AgentId> for String {
    fn from(id: AgentId) -> Self {
        id.0
    }
}

impl std::str::FromStr for AgentId {
    type Err = AgentIdError;

    fn from_str(text: &str) -> Result<Self, AgentIdError> {
        Self::try_from(text.to_owned())
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
