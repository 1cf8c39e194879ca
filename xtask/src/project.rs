//! Where things lie: the checkout, the cache outside it, cargo's target directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// The checkout and the places around it.
pub(crate) struct Project {
    /// Root of the checkout.
    pub(crate) root: PathBuf,
    /// Installed tools, logs: `HEADWATER_CACHE`, else `headwater` in the user's cache directory.
    pub(crate) cache: PathBuf,
    /// What `cargo metadata` says about our packages.
    pub(crate) metadata: Metadata,
}

/// The part of `cargo metadata --no-deps` that is used here.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) target_directory: PathBuf,
}

/// One of our packages.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) dependencies: Vec<Dependency>,
}

/// A dependency as the manifest writes it, of any kind (normal, build, dev).
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) features: Vec<String>,
}

impl Project {
    /// Finds the checkout around this command and asks cargo about it.
    pub(crate) fn find() -> Result<Self> {
        let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest_dir
            .parent()
            .context("xtask lies in no project")?
            .to_owned();
        ensure!(
            root.join("xtask").is_dir(),
            "`{}` is not the project's root; run this through `cargo xtask`",
            root.display()
        );
        let metadata = metadata(&root)?;
        Ok(Self {
            cache: cache_directory()?,
            root,
            metadata,
        })
    }

    /// Returns `cargo`, to be run in the root, without the variables that `cargo run` gave to us.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = cargo_in(&self.root);
        command.env("CARGO_TERM_COLOR", "never");
        command
    }

    /// Directory of the development binaries.
    pub(crate) fn binaries(&self) -> PathBuf {
        self.metadata.target_directory.join("debug")
    }

    /// Directory of the logs of the last run.
    pub(crate) fn logs(&self) -> PathBuf {
        self.cache.join("logs")
    }
}

fn metadata(root: &Path) -> Result<Metadata> {
    let output = cargo_in(root)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot run `cargo metadata`")?;
    if !output.status.success() {
        bail!(
            "`cargo metadata` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    serde_json::from_slice(&output.stdout).context("cannot read the answer of `cargo metadata`")
}

fn cargo_in(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    // Of this package, not of the ones that the new cargo builds.
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

fn cache_directory() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(chosen) = variable("HEADWATER_CACHE") {
        return Ok(PathBuf::from(chosen));
    }
    if let Some(cache) = variable("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(cache).join("headwater"));
    }
    let home = variable("HOME").context("set HOME or HEADWATER_CACHE: where may tools go?")?;
    Ok(PathBuf::from(home).join(".cache").join("headwater"))
}
