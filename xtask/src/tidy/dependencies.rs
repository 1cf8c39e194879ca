//! Who may use whom. The table is the one of ARCHITECTURE.md; a new crate needs a row here.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Violation;
use crate::project::Package;

struct Rule {
    package: &'static str,
    /// Our crates that it may use.
    may_use: &'static [&'static str],
    /// Libraries that it must never know, each with its family: `arrow` also means `arrow-array`.
    never: &'static [&'static str],
}

const RULES: [Rule; 10] = [
    Rule {
        package: "headwater-protocol",
        may_use: &[],
        never: &[
            "tokio",
            "quinn",
            "sled",
            "arrow",
            "parquet",
            "iceberg",
            "datafusion",
        ],
    },
    Rule {
        package: "headwater-agent",
        may_use: &["headwater-protocol", "headwater-service"],
        never: &["arrow", "parquet", "iceberg", "datafusion"],
    },
    Rule {
        package: "headwater-collector",
        may_use: &[
            "headwater-protocol",
            "headwater-tables",
            "headwater-service",
        ],
        never: &["sled", "datafusion"],
    },
    Rule {
        package: "headwater-tables",
        may_use: &["headwater-protocol"],
        never: &["quinn", "tonic"],
    },
    Rule {
        package: "headwater-warehouse",
        may_use: &["headwater-tables", "headwater-service"],
        never: &["quinn", "sled", "tonic"],
    },
    Rule {
        package: "headwater-flight-sql",
        may_use: &["headwater-tables", "headwater-service"],
        never: &["quinn", "sled"],
    },
    Rule {
        package: "headwater-service",
        may_use: &[],
        never: &[
            "quinn",
            "sled",
            "arrow",
            "parquet",
            "iceberg",
            "datafusion",
            "tonic",
        ],
    },
    Rule {
        package: "headwater",
        may_use: &[
            "headwater-protocol",
            "headwater-agent",
            "headwater-collector",
            "headwater-tables",
            "headwater-warehouse",
            "headwater-flight-sql",
            "headwater-service",
        ],
        never: &[],
    },
    Rule {
        package: "headwater-sim",
        may_use: &[
            "headwater-protocol",
            "headwater-agent",
            "headwater-collector",
            "headwater-tables",
            "headwater-service",
        ],
        never: &["quinn", "datafusion", "tonic"],
    },
    Rule {
        package: "xtask",
        may_use: &[],
        never: &[],
    },
];

/// Libraries of tables whose library `query` feature brings in DataFusion.
const TABLES: &str = "headwater-tables";
const QUERY_FEATURE: &str = "query";

/// Families of which Cargo.lock must hold one version: values of two versions do not fit together,
/// and a second SQLite cannot be linked.
const SINGLE: [&str; 8] = [
    "arrow",
    "parquet",
    "datafusion",
    "tonic",
    "iceberg",
    "object_store",
    "sqlx",
    "sled",
];

/// Returns the dependencies that go in a direction they must not.
pub(super) fn directions(packages: &[Package]) -> Vec<Violation> {
    let ours: Vec<&str> = packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let mut found = Vec::new();
    for package in packages {
        let Some(rule) = RULES.iter().find(|rule| rule.package == package.name) else {
            found.push(Violation::new(
                &package.name,
                "is in no rule; add a row to xtask/src/tidy/dependencies.rs and ARCHITECTURE.md",
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if ours.contains(&name) && !rule.may_use.contains(&name) {
                found.push(Violation::new(
                    &package.name,
                    format!("must not use `{name}`"),
                ));
            }
            if rule.never.iter().any(|never| is_of_family(name, never)) {
                found.push(Violation::new(
                    &package.name,
                    format!("must never know `{name}`"),
                ));
            }
            let brings_datafusion =
                name == TABLES && dependency.features.iter().any(|f| f == QUERY_FEATURE);
            if brings_datafusion && rule.never.contains(&"datafusion") {
                found.push(Violation::new(
                    &package.name,
                    format!(
                        "must not use `{TABLES}` with `{QUERY_FEATURE}`: it brings in DataFusion"
                    ),
                ));
            }
        }
    }
    found
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<LockedPackage>,
}

#[derive(Deserialize)]
struct LockedPackage {
    name: String,
    version: String,
}

/// Returns the libraries of which Cargo.lock holds more than one version.
pub(super) fn single_versions(lock: &str) -> Result<Vec<Violation>> {
    let lock: Lock = toml::from_str(lock).context("cannot read Cargo.lock")?;
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in &lock.package {
        if SINGLE
            .iter()
            .any(|family| is_of_family(&package.name, family))
        {
            versions
                .entry(&package.name)
                .or_default()
                .push(&package.version);
        }
    }
    Ok(versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, versions)| {
            Violation::new(
                "Cargo.lock",
                format!("`{name}` in more than one version: {}", versions.join(", ")),
            )
        })
        .collect())
}

/// Whether `name` is `family` or one of its parts: `arrow-array` is of `arrow`.
fn is_of_family(name: &str, family: &str) -> bool {
    name.strip_prefix(family)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::Dependency;

    fn package(name: &str, dependencies: &[(&str, &[&str])]) -> Package {
        Package {
            name: name.to_owned(),
            dependencies: dependencies
                .iter()
                .map(|(name, features)| Dependency {
                    name: (*name).to_owned(),
                    features: features.iter().map(|f| (*f).to_owned()).collect(),
                })
                .collect(),
        }
    }

    fn messages(violations: &[Violation]) -> Vec<String> {
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_dependency_against_the_direction_is_found() {
        let packages = [
            package("headwater-protocol", &[("serde", &[])]),
            package("headwater-tables", &[]),
            package(
                "headwater-agent",
                &[("headwater-protocol", &[]), ("headwater-tables", &[])],
            ),
        ];
        assert_eq!(
            messages(&directions(&packages)),
            ["headwater-agent: must not use `headwater-tables`"]
        );
    }

    #[test]
    fn a_library_that_a_crate_must_never_know_is_found_with_its_family() {
        let packages = [package(
            "headwater-agent",
            &[("arrow-array", &[]), ("arrowhead", &[]), ("quinn", &[])],
        )];
        assert_eq!(
            messages(&directions(&packages)),
            ["headwater-agent: must never know `arrow-array`"]
        );
    }

    #[test]
    fn datafusion_does_not_come_in_by_the_query_feature() {
        let packages = [
            package("headwater-tables", &[]),
            package("headwater-collector", &[("headwater-tables", &["query"])]),
            package("headwater-warehouse", &[("headwater-tables", &["query"])]),
        ];
        let found = directions(&packages);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].to_string().starts_with("headwater-collector"));
    }

    #[test]
    fn a_crate_without_a_rule_is_found() {
        assert_eq!(directions(&[package("headwater-new", &[])]).len(), 1);
    }

    #[test]
    fn a_second_version_is_found_in_the_lock() {
        let lock = r#"
            [[package]]
            name = "arrow-array"
            version = "57.0.0"
            [[package]]
            name = "arrow-array"
            version = "58.4.1"
            [[package]]
            name = "rand"
            version = "0.8.5"
            [[package]]
            name = "rand"
            version = "0.9.0"
        "#;
        assert_eq!(
            messages(&single_versions(lock).unwrap()),
            ["Cargo.lock: `arrow-array` in more than one version: 57.0.0, 58.4.1"]
        );
    }
}
