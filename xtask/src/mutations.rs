//! Shows that the simulation would find a fault: breaks the code on purpose, in a copy of the tree.
//!
//! Each `sim/mutations/NAME.patch` begins with what it breaks and `Found as: WORDS`, which one of the
//! violations must hold. The code that is shipped has no switches for this.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{Log, Show};
use crate::project::Project;

/// Seeds that may be needed to find a mutation.
const SEEDS: &str = "0..400";
const FOUND_AS: &str = "Found as: ";

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
    let mut lines = text.lines();
    let what = lines.next().unwrap_or_default();
    let Some(expected) = lines.find_map(|line| line.strip_prefix(FOUND_AS)) else {
        bail!("`{}` has no line `{FOUND_AS}…`", patch.display());
    };
    println!("\n== {what}");
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
    let before = log.text()?.len();
    let mut search = cargo(&["run", "--quiet"]);
    search.args(["--", "--first", "--seeds", SEEDS]);
    let survived = log.run(search, Show::Nothing).is_ok();
    let said = log.text()?.split_off(before);
    let found = said.lines().find(|line| line.contains(expected));
    match found {
        Some(line) if !survived => println!("found: {line}"),
        _ => bail!("`{}` is not found as `{expected}`", patch.display()),
    }
    Ok(())
}
