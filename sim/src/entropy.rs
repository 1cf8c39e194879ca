//! Randomness and the wall clock of the operating system, taken from the seed.
//!
//! The standard library keys its hash maps with randomness, tokio picks the next of equal tasks with it,
//! and ids of files and snapshots are made of it. How much is drawn must not depend on the wall clock: a
//! UUID of version 7 draws less when it is made in the same millisecond as the one before. On a thread
//! that was given a seed all of that follows the seed; other threads get the real thing.

use std::cell::Cell;
use std::ffi::{c_int, c_uint, c_void};

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    /// Looks at the wall clock so far.
    static LOOKS: Cell<i64> = const { Cell::new(0) };
}

/// What the wall clock shows at first, in seconds since the Unix epoch: later than any time of a run.
const WALL_CLOCK_STARTS_AT: i64 = 1_800_000_000;

/// Makes all randomness and the wall clock of this thread follow `seed`. A thread can be given one only
/// before it has drawn any, so each run has a thread of its own.
pub(crate) fn seed_thread(seed: u64) {
    STATE.set(Some(seed));
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Stands in for the C library's function of this name: fills `buffer` with `length` random bytes and
/// returns how many there are.
///
/// # Safety
/// As of `getrandom(2)`: `buffer` is valid for writes of `length` bytes.
#[unsafe(no_mangle)]
#[expect(unreachable_pub, reason = "the linker finds it, not the compiler")]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    let seeded = STATE.try_with(Cell::get).ok().flatten();
    let Some(mut state) = seeded else {
        // SAFETY: the caller keeps to the contract of the system call.
        let filled = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return isize::try_from(filled).unwrap_or(-1);
    };
    // SAFETY: `buffer` is valid for writes of `length` bytes, as the caller promises.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for chunk in bytes.chunks_mut(8) {
        let random = next(&mut state).to_le_bytes();
        chunk.copy_from_slice(&random[..chunk.len()]);
    }
    STATE.set(Some(state));
    isize::try_from(length).unwrap_or(-1)
}

/// Stands in for the C library's function of this name: on a thread with a seed, the wall clock goes on by
/// a millisecond each time that somebody looks.
///
/// # Safety
/// As of `clock_gettime(2)`: `time` is valid for the write of a `timespec`.
#[unsafe(no_mangle)]
#[expect(unreachable_pub, reason = "the linker finds it, not the compiler")]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let is_seeded = STATE.try_with(Cell::get).ok().flatten().is_some();
    if clock != libc::CLOCK_REALTIME || !is_seeded {
        // SAFETY: the caller keeps to the contract of the system call.
        let done = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
        return c_int::try_from(done).unwrap_or(-1);
    }
    let looks = LOOKS.get() + 1;
    LOOKS.set(looks);
    let shown = libc::timespec {
        tv_sec: WALL_CLOCK_STARTS_AT + looks / 1000,
        tv_nsec: looks % 1000 * 1_000_000,
    };
    // SAFETY: `time` is valid for the write, as the caller promises.
    unsafe { time.write(shown) };
    0
}
