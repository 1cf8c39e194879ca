//! `cargo xtask tidy`: what compilers do not check. Each check is a pure function from files or
//! manifests to violations, so that its tests need no checkout; but git says whether a patch applies.

mod dependencies;
mod documents;
mod sources;

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::project::Project;

/// A file of the project with its path relative to the root.
#[derive(Debug, Clone)]
pub(crate) struct SourceFile {
    pub(crate) path: String,
    /// Empty for files that are not text.
    pub(crate) text: String,
}

/// Something out of order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    /// File, with the line where there is one.
    place: String,
    message: String,
}

impl Violation {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            message: message.into(),
        }
    }

    fn at(file: &SourceFile, line_index: usize, message: impl Into<String>) -> Self {
        Self::new(format!("{}:{}", file.path, line_index + 1), message)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Runs every check and fails when one finds something.
pub(crate) fn run(project: &Project) -> Result<()> {
    let files = files_of(project)?;
    ensure!(
        files.iter().any(|file| file.path.ends_with(".rs")),
        "found no source files to check"
    );
    let lock = files
        .iter()
        .find(|file| file.path == "Cargo.lock")
        .context("there is no Cargo.lock")?;
    let checks = [
        (
            "crates use only what they may",
            dependencies::directions(&project.metadata.packages),
        ),
        (
            "one version of each storage and SQL library",
            dependencies::single_versions(&lock.text)?,
        ),
        ("paths in the docs exist", documents::missing_paths(&files)),
        (
            "every source file says what it is for",
            sources::without_header(&files),
        ),
        (
            "no paths of one machine, no registry hosts",
            sources::machine_specifics(&files),
        ),
        ("no test is left out", sources::ignored_tests(&files)),
        ("no test sleeps", sources::sleeping_tests(&files)),
        (
            "what decides asks no clock and does no IO",
            sources::impurities(&files),
        ),
        (
            "faults made on purpose fit the code as it is",
            patches_that_do_not_fit(project, &files)?,
        ),
    ];
    let mut violations = 0;
    for (name, found) in checks {
        println!(
            "  {}: {name}",
            if found.is_empty() { "ok" } else { "FAILED" }
        );
        for violation in &found {
            println!("    {violation}");
        }
        violations += found.len();
    }
    for (path, lines) in sources::long_files(&files) {
        println!("  note: {path} has {lines} lines, is it still one noun?");
    }
    if violations > 0 {
        bail!("tidy found {violations} things out of order, listed above");
    }
    Ok(())
}

/// Returns the patches of `sim/mutations/` that do not apply any more.
fn patches_that_do_not_fit(project: &Project, files: &[SourceFile]) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    let patches = files.iter().filter(|file| file.path.ends_with(".patch"));
    for patch in patches {
        let output = Command::new("git")
            .args(["apply", "--check", &patch.path])
            .current_dir(&project.root)
            .output()
            .context("cannot run `git apply`")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let first = said.lines().next().unwrap_or_default();
            let message = format!("does not apply, make it again: {first}");
            found.push(Violation::new(&patch.path, message));
        }
    }
    Ok(found)
}

/// Reads all files that are in git or would be with the next `git add`.
fn files_of(project: &Project) -> Result<Vec<SourceFile>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(&project.root)
        .output()
        .context("cannot run `git ls-files`")?;
    ensure!(
        output.status.success(),
        "`git ls-files` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let names = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    Ok(names
        .split('\0')
        .filter(|path| !path.is_empty())
        // A file that was deleted but not yet committed is none.
        .filter_map(|path| {
            let bytes = std::fs::read(project.root.join(path)).ok()?;
            Some(SourceFile {
                path: path.to_owned(),
                text: String::from_utf8(bytes).unwrap_or_default(),
            })
        })
        .collect())
}

#[cfg(test)]
pub(crate) fn file(path: &str, text: &str) -> SourceFile {
    SourceFile {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}
