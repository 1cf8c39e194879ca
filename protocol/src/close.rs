//! Codes with which a collector closes a connection, and what an agent makes of them.
//!
//! Whatever the code is, nothing is lost: what was not acked is sent again.

/// The collector stops.
pub const STOPPING: u32 = 0;
/// What the peer said, or did not say in time, opens no session.
pub const REFUSED: u32 = 1;
/// The agent has opened another session.
pub const REPLACED: u32 = 2;
/// The collector ends without having committed what it was sent.
pub const FAILED: u32 = 3;
/// The connection is as old as it may become; what was taken on it is answered. Come again.
pub const AGED: u32 = 4;
/// The agent's certificate is not accepted any more: revoked, expired, or its CA is no longer trusted.
pub const UNTRUSTED: u32 = 5;
/// The table has less than the agent was told: its catalog was set back. Come again: the next Welcome says
/// how far it is.
pub const SET_BACK: u32 = 6;
