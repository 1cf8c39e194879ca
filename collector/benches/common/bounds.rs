//! How a bench ends: with an error that names every bound that does not hold.

use anyhow::{Result, ensure};

/// Takes, of each bound, whether it is missed and what it is of. Ask it when all figures are printed, so that
/// one miss does not hide the others.
pub(crate) fn hold(misses: &[(bool, &str)]) -> Result<()> {
    let misses: Vec<&str> = misses
        .iter()
        .filter_map(|(is_missed, what)| is_missed.then_some(*what))
        .collect();
    ensure!(misses.is_empty(), "bounds that do not hold: {misses:?}");
    Ok(())
}
