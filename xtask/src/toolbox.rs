//! The tools of the tests: what is missing is installed, and said so; what is there is left alone.
//!
//! Programs come from Debian's packages; Node.js and the libraries of the clients come from package
//! managers, into the cache outside the checkout. A stamp beside each makes the next run fast.

mod iceberg_rest;
mod node;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{Log, Show};
use crate::postgres;
use crate::project::Project;

/// JDBC drivers that the end-to-end test runs. A driver that is not `needed` is used where the
/// machine's Maven repository has it.
const JDBC_DRIVERS: [(&str, bool); 2] = [("18.3.0", true), ("19.0.0", false)];
const JDBC_ARTIFACT: &str = "org.apache.arrow:flight-sql-jdbc-driver";
const MAVEN_COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy";

/// Paths of the installed tools.
pub(crate) struct Toolbox {
    /// Python of the virtual environment with the clients in it.
    pub(crate) python: PathBuf,
    /// Node.js that runs the JavaScript SDKs for servers.
    pub(crate) node: PathBuf,
    /// npm packages, for `NODE_PATH`.
    pub(crate) node_modules: PathBuf,
    /// JDBC drivers: version and jar.
    pub(crate) jdbc: Vec<(&'static str, PathBuf)>,
    /// Classpath of Apache Iceberg's own REST catalog.
    pub(crate) iceberg_rest: String,
}

impl Toolbox {
    /// Installs what is missing and returns where everything is. Two runs do not disturb each
    /// other: the second waits for the first.
    pub(crate) fn prepare(project: &Project, log: &mut Log) -> Result<Self> {
        std::fs::create_dir_all(&project.cache)
            .with_context(|| format!("cannot make `{}`", project.cache.display()))?;
        let lock = std::fs::File::create(project.cache.join("toolbox.lock"))?;
        lock.lock().context("cannot lock the toolbox")?;

        install_programs(log)?;
        let sources = project.root.join("xtask").join("e2e");
        let python = python(&project.cache, &sources, log)?;
        let node = node::Node::prepare(&project.cache, &python, log)?;
        Ok(Self {
            python,
            node_modules: node_modules(&node, &project.cache, &sources, log)?,
            node: node.program,
            jdbc: jdbc_drivers(&project.cache, log)?,
            iceberg_rest: iceberg_rest::prepare(&project.cache, &sources, log)?,
        })
    }
}

/// A program that the tests need and the Debian packages that bring it.
struct Program {
    name: &'static str,
    is_there: fn() -> bool,
    packages: &'static [&'static str],
}

const PROGRAMS: [Program; 7] = [
    Program {
        name: "PostgreSQL server",
        is_there: || postgres::binaries().is_some(),
        packages: &["postgresql"],
    },
    Program {
        name: "Java compiler and runtime",
        is_there: || runs("java", &["-version"]) && runs("javac", &["-version"]),
        packages: &["default-jdk-headless"],
    },
    Program {
        name: "Maven",
        is_there: || runs("mvn", &["--version"]),
        packages: &["maven"],
    },
    Program {
        name: "Python 3 with venv",
        is_there: || runs("python3", &["-c", "import venv, ensurepip"]),
        packages: &["python3", "python3-venv"],
    },
    Program {
        name: "systemd-analyze",
        is_there: || runs("systemd-analyze", &["--version"]),
        packages: &["systemd"],
    },
    Program {
        name: "curl",
        is_there: || runs("curl", &["--version"]),
        packages: &["curl"],
    },
    Program {
        name: "Chromium",
        is_there: || runs("chromium", &["--version"]),
        packages: &["chromium"],
    },
];

fn install_programs(log: &mut Log) -> Result<()> {
    let missing: Vec<&Program> = PROGRAMS
        .iter()
        .filter(|program| {
            let found = (program.is_there)();
            println!(
                "  {}: {}",
                program.name,
                if found { "installed" } else { "missing" }
            );
            !found
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing
        .iter()
        .flat_map(|program| program.packages)
        .copied()
        .collect();
    println!("  installing Debian packages: {}", packages.join(" "));
    ensure!(
        runs("apt-get", &["--version"]),
        "this machine has no apt-get; install by hand what Debian calls: {}",
        packages.join(" ")
    );
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&packages);
    log.run(apt_get(&["update"]), Show::Progress)
        .and_then(|()| log.run(apt_get(&arguments), Show::Progress))
        .with_context(|| format!("run as root: apt-get {}", arguments.join(" ")))?;
    for program in missing {
        ensure!(
            (program.is_there)(),
            "{} is still missing after apt-get installed: {}",
            program.name,
            program.packages.join(" ")
        );
    }
    Ok(())
}

/// Returns `apt-get`, through sudo for those who are not root.
fn apt_get(arguments: &[&str]) -> Command {
    let is_root = std::fs::metadata("/proc/self")
        .is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let mut command = Command::new(if is_root { "env" } else { "sudo" });
    if !is_root {
        command.args(["--non-interactive", "env"]);
    }
    command
        .args(["DEBIAN_FRONTEND=noninteractive", "apt-get"])
        .args(arguments);
    command
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn first_line(program: impl AsRef<OsStr>, arguments: &[&str]) -> Result<String> {
    let program = program.as_ref();
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{}`", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

fn python(cache: &Path, sources: &Path, log: &mut Log) -> Result<PathBuf> {
    let requirements = sources.join("python").join("requirements.txt");
    let directory = cache.join("python");
    let python = directory.join("bin").join("python");
    let stamp = Stamp::new(
        &directory,
        &[
            &first_line("python3", &["-c", "import sys; print(sys.version)"])?,
            &read(&requirements)?,
        ],
    );
    if stamp.is_fresh() {
        println!("  Python packages: installed");
        return Ok(python);
    }
    println!(
        "  installing Python packages of `{}`",
        requirements.display()
    );
    remove(&directory)?;
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(&directory);
    log.run(venv, Show::Progress)?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--no-input"])
        .args(["--disable-pip-version-check", "--requirement"])
        .arg(&requirements);
    log.run(pip, Show::Progress)?;
    stamp.write()?;
    Ok(python)
}

fn node_modules(node: &node::Node, cache: &Path, sources: &Path, log: &mut Log) -> Result<PathBuf> {
    let directory = cache.join("node");
    let files = ["package.json", "package-lock.json"];
    let mut inputs = vec![node.version.clone()];
    for file in files {
        inputs.push(read(&sources.join("node").join(file))?);
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let stamp = Stamp::new(&directory, &inputs);
    let modules = directory.join("node_modules");
    if stamp.is_fresh() {
        println!("  npm packages: installed");
        return Ok(modules);
    }
    println!(
        "  installing npm packages of `{}`",
        sources.join("node").display()
    );
    remove(&directory)?;
    std::fs::create_dir_all(&directory)?;
    for file in files {
        std::fs::copy(sources.join("node").join(file), directory.join(file))?;
    }
    let mut npm = node.npm();
    npm.args(["ci", "--no-audit", "--no-fund"])
        .current_dir(&directory);
    log.run(npm, Show::Progress)?;
    stamp.write()?;
    Ok(modules)
}

fn jdbc_drivers(cache: &Path, log: &mut Log) -> Result<Vec<(&'static str, PathBuf)>> {
    let directory = cache.join("jdbc");
    let mut drivers = Vec::new();
    for (version, needed) in JDBC_DRIVERS {
        let jar = directory.join(format!("flight-sql-jdbc-driver-{version}.jar"));
        if jar.is_file() {
            println!("  JDBC driver {version}: installed");
            drivers.push((version, jar));
            continue;
        }
        println!("  fetching JDBC driver {version}");
        let show = if needed {
            Show::Progress
        } else {
            Show::Nothing
        };
        match fetch_jar(version, &directory, log, show) {
            Ok(()) => drivers.push((version, jar)),
            Err(error) if needed => return Err(error),
            // A driver that was never published cannot be tested; a broken download is an error.
            Err(_)
                if log
                    .text()?
                    .contains(&format!("{JDBC_ARTIFACT}:jar:{version}"))
                    && log.text()?.contains("Could not find artifact") =>
            {
                println!("  JDBC driver {version}: NOT TESTED, the Maven repository has none");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(drivers)
}

/// Copies a driver's jar into `directory`, whole or not at all.
fn fetch_jar(version: &str, directory: &Path, log: &mut Log, show: Show) -> Result<()> {
    let partial = directory.join("partial");
    remove(&partial)?;
    let mut maven = Command::new("mvn");
    maven
        .args([
            "--batch-mode",
            "--update-snapshots",
            "--no-transfer-progress",
        ])
        .args([MAVEN_COPY, &format!("-Dartifact={JDBC_ARTIFACT}:{version}")])
        .arg(format!("-DoutputDirectory={}", partial.display()));
    log.run(maven, show)?;
    let name = format!("flight-sql-jdbc-driver-{version}.jar");
    std::fs::rename(partial.join(&name), directory.join(&name))
        .with_context(|| format!("Maven brought no `{name}`"))?;
    remove(&partial)
}

/// Says whether a directory was filled from the same inputs. It is written last, so an installation
/// that broke off is done anew.
struct Stamp {
    path: PathBuf,
    content: String,
}

impl Stamp {
    fn new(directory: &Path, inputs: &[&str]) -> Self {
        Self {
            path: directory.join("headwater-stamp"),
            content: inputs.join("\n--\n"),
        }
    }

    fn is_fresh(&self) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|text| text == self.content)
    }

    fn write(&self) -> Result<()> {
        std::fs::write(&self.path, &self.content)
            .with_context(|| format!("cannot write `{}`", self.path.display()))
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("cannot remove `{}`: {error}", directory.display())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_fresh_only_for_the_same_inputs() {
        let directory = std::env::temp_dir().join(format!("xtask-stamp-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let stamp = Stamp::new(&directory, &["python 3.11", "a==1"]);
        assert!(!stamp.is_fresh());
        stamp.write().unwrap();
        assert!(stamp.is_fresh());
        assert!(!Stamp::new(&directory, &["python 3.11", "a==2"]).is_fresh());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
