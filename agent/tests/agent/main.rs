//! The agent with real sockets, a real disk and, where it matters, a real process to kill.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod answers;
mod buffer_model;
mod collector;
mod commands;
mod corruption;
mod delivery;
mod disk;
mod disk_bound;
mod full_disk;
mod harness;
mod identity;
mod kill;
#[allow(dead_code, reason = "the benches use more of it")]
#[path = "../../benches/common/load.rs"]
mod load;
mod manual;
mod memory;
mod posters;
mod power_cut;
mod process;
mod recorded_cut;
mod reload;
mod request_memory;
mod shipping_collectors;
mod shipping_network;
mod shipping_poison;
mod shipping_rotation;
mod unit;
