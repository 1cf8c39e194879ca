//! Shows that the simulation would find a fault: breaks the code on purpose, in a copy of the tree.
//!
//! Each `sim/mutations/NAME.patch` begins with what it breaks and `Found as: WORDS`, which one of the
//! violations must hold. `Pinned: seed N` names a seed that found the fault when it was none on purpose:
//! it must find it still. The code that is shipped has no switches for this.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{Log, Show};
use crate::project::Project;

/// Seeds that may be needed to find a mutation.
const SEEDS: &str = "0..400";
const FOUND_AS: &str = "Found as: ";
/// Read by `sim/tests/sim.rs` as well, where the seed must pass.
const PINNED: &str = "Pinned: seed ";
/// Comes with each violation: whoever finds one must be able to see it again.
const REPLAY: &str = "(replay: cargo run -p headwater-sim -- --seed ";

/// What a patch says of itself.
struct Head<'a> {
    /// What it breaks.
    what: &'a str,
    found_as: &'a str,
    pinned: Vec<u64>,
}

impl<'a> Head<'a> {
    fn read(patch: &'a str) -> Result<Self> {
        let found_as = patch.lines().find_map(|line| line.strip_prefix(FOUND_AS));
        let mut pinned = Vec::new();
        for seed in patch.lines().filter_map(|line| line.strip_prefix(PINNED)) {
            let seed = seed
                .parse::<u64>()
                .with_context(|| format!("`{seed}` is no seed"))?;
            pinned.push(seed);
        }
        Ok(Self {
            what: patch.lines().next().unwrap_or_default(),
            found_as: found_as.with_context(|| format!("there is no line `{FOUND_AS}…`"))?,
            pinned,
        })
    }

    /// Returns the first line of what the simulation has said that names the fault and its replay.
    fn found_in<'b>(&self, said: &'b str) -> Option<&'b str> {
        said.lines()
            .find(|line| line.contains(self.found_as) && line.contains(REPLAY))
    }
}

/// Applies every patch, one after the other, and demands that the simulation finds it.
pub(crate) fn run() -> Result<()> {
    let project = Project::find()?;
    let mut log = Log::create(&project.logs(), "mutations")?;
    let directory = project.metadata.target_directory.join("mutations");
    let tree = directory.join("tree");
    copy(&project.root, &tree)?;
    let mut patches: Vec<PathBuf> = std::fs::read_dir(project.root.join("sim/mutations"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    patches.sort();
    ensure!(!patches.is_empty(), "there are no mutations");
    for patch in &patches {
        apply(&tree, patch, &[])?;
        let outcome = find(&project, &tree, &directory, patch, &mut log);
        apply(&tree, patch, &["--reverse"])?;
        outcome?;
    }
    println!("{} mutations found", patches.len());
    Ok(())
}

/// Copies every file of the project that is not ignored; files that are the same stay untouched, so
/// that cargo builds only what differs.
fn copy(root: &Path, tree: &Path) -> Result<()> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    ensure!(listed.status.success(), "`git ls-files` failed");
    for name in String::from_utf8(listed.stdout)?.lines() {
        let (from, to) = (root.join(name), tree.join(name));
        let Ok(bytes) = std::fs::read(&from) else {
            continue;
        };
        if std::fs::read(&to).is_ok_and(|old| old == bytes) {
            continue;
        }
        let parent = to.parent().context("a file lies in a directory")?;
        std::fs::create_dir_all(parent)?;
        std::fs::write(&to, bytes)?;
    }
    Ok(())
}

fn apply(tree: &Path, patch: &Path, arguments: &[&str]) -> Result<()> {
    // Outside the repository's eyes: the copy lies below an ignored directory of it.
    let status = Command::new("patch")
        .args(["--strip=1", "--batch", "--silent"])
        .args(arguments)
        .arg(format!("--input={}", patch.display()))
        .current_dir(tree)
        .status()
        .context("cannot run patch")?;
    ensure!(
        status.success(),
        "`{}` does not apply any more: make it again on the code as it is",
        patch.display()
    );
    Ok(())
}

fn find(
    project: &Project,
    tree: &Path,
    directory: &Path,
    patch: &Path,
    log: &mut Log,
) -> Result<()> {
    let text = std::fs::read_to_string(patch)?;
    let head = Head::read(&text).with_context(|| format!("cannot use `{}`", patch.display()))?;
    println!("\n== {}", head.what);
    let cargo = |arguments: &[&str]| {
        let mut command = project.cargo();
        command
            .args(arguments)
            .args(["--package", "headwater-sim"])
            .current_dir(tree)
            .env("CARGO_TARGET_DIR", directory.join("target"));
        command
    };
    log.run(cargo(&["build"]), Show::Progress)?;
    let mut first_found = |seeds: &str| -> Result<Option<String>> {
        let before = log.text()?.len();
        let mut search = cargo(&["run", "--quiet"]);
        search.args(["--", "--first", "--seeds", seeds]);
        let survived = log.run(search, Show::Nothing).is_ok();
        let said = log.text()?.split_off(before);
        let found = head.found_in(&said).filter(|_| !survived);
        Ok(found.map(str::to_owned))
    };
    let mut lost = Vec::new();
    for seed in &head.pinned {
        if first_found(&format!("{seed}..{}", seed + 1))?.is_none() {
            lost.push(seed);
        }
    }
    let Some(found) = first_found(SEEDS)? else {
        bail!(
            "`{}` is not found as `{}` with the command that replays it",
            patch.display(),
            head.found_as
        );
    };
    println!("found: {found}");
    ensure!(
        lost.is_empty(),
        "`{}` pins seeds that do not find it any more: {lost:?}; pin the one that was found",
        patch.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_says_how_it_is_found() {
        let patch =
            "What it breaks.\n\nFound as: EO-5\nPinned: seed 7\nPinned: seed 1203\n\n--- a\n";
        let head = Head::read(patch).unwrap();
        assert_eq!((head.what, head.found_as), ("What it breaks.", "EO-5"));
        assert_eq!(head.pinned, [7, 1203]);
        assert!(Head::read("What it breaks.\n").is_err());
        assert!(Head::read("What it breaks.\nFound as: EO-5\nPinned: seed x\n").is_err());
    }

    #[test]
    fn a_fault_is_found_only_with_its_replay() {
        let head = Head::read("What it breaks.\nFound as: EO-5\n").unwrap();
        let replay = format!("seed 7 {REPLAY}7 --trace)");
        let found = format!("{replay}: EO-5: it is lost");
        let said = format!("EO-5: it is lost\n{replay}: EO-1: it is there twice\n{found}\n");
        assert_eq!(head.found_in(&said), Some(found.as_str()));
        assert_eq!(head.found_in("seed 7: EO-5: it is lost\n"), None);
    }
}
