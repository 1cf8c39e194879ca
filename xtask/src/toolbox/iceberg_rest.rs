//! The jars of Apache Iceberg's own REST catalog, which tests start: a catalog that no one here wrote.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Stamp, read, remove};
use crate::command::{Log, Show};

const MAVEN_COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies";

/// Brings the jars of `iceberg-rest-pom.xml` into the cache and returns their classpath.
pub(super) fn prepare(cache: &Path, sources: &Path, log: &mut Log) -> Result<String> {
    let pom = sources.join("java").join("iceberg-rest-pom.xml");
    let directory = cache.join("iceberg-rest");
    let classpath = format!("{}/*", directory.display());
    let stamp = Stamp::new(&directory, &[&read(&pom)?]);
    if stamp.is_fresh() {
        println!("  Iceberg's REST catalog: installed");
        return Ok(classpath);
    }
    println!("  fetching Iceberg's REST catalog of `{}`", pom.display());
    remove(&directory)?;
    let mut maven = Command::new("mvn");
    maven
        .args(["--batch-mode", "--no-transfer-progress", MAVEN_COPY])
        .arg("--file")
        .arg(&pom)
        .arg(format!("-DoutputDirectory={}", directory.display()));
    log.run(maven, Show::Progress)?;
    stamp.write()?;
    Ok(classpath)
}
