//! A night that fails says why in one line and publishes nothing.

use std::path::Path;
use std::process::Command;

use crate::world::{Ev, SCHEMA, World};

const NIGHT: &str = "2026-11-19";

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_not_there_publishes_nothing() {
    let world = World::without_source();
    world
        .events(&[Ev::new("Feature Used", "2026-11-19T10:00:00Z")])
        .await;
    let before = world.snapshots().await;
    let error = world.try_night(NIGHT).await.unwrap_err().to_string();
    assert!(
        error.contains("operational.db") && error.contains("source.uri"),
        "{error}"
    );
    assert_eq!(world.snapshots().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_table_or_column_is_named_and_publishes_nothing() {
    let world = World::without_source();
    world
        .sql(&SCHEMA.replace("tier_rank ", "rank_of_tier "))
        .await;
    world
        .events(&[Ev::new("Feature Used", "2026-11-19T10:00:00Z")])
        .await;
    let before = world.snapshots().await;
    let error = world.try_night(NIGHT).await.unwrap_err().to_string();
    assert!(
        error.contains("`plans`") && error.contains("`tier_rank`"),
        "{error}"
    );
    world.sql("DROP TABLE plans").await;
    let error = world.try_night(NIGHT).await.unwrap_err().to_string();
    assert!(error.contains("no readable table `plans`"), "{error}");
    assert_eq!(world.snapshots().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_of_the_wrong_type_is_named_with_its_column() {
    let world = World::new().await;
    world
        .sql("UPDATE companies SET updated_at = 'yesterday'")
        .await;
    let error = world.try_night(NIGHT).await.unwrap_err().to_string();
    assert!(
        error.contains("companies.updated_at") && error.contains("yesterday"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_report_publishes_no_report() {
    let mut world = World::new().await;
    world
        .events(&[Ev::new("Feature Used", "2026-11-19T10:00:00Z")])
        .await;
    let models = world.directory.path().join("models");
    std::fs::create_dir(&models).unwrap();
    let model = "-- name: broken\n-- grain: report_date\n-- partition: report_date\n-- depends: core.events\n-- doc: x\nSELECT nothing FROM nowhere";
    std::fs::write(models.join("broken.sql"), model).unwrap();
    world.config.reports.models_directory = Some(models);
    let error = world.try_night(NIGHT).await.unwrap_err().to_string();
    assert!(error.contains("reports.broken"), "{error}");
    let tables = world.snapshots().await;
    assert!(
        !tables
            .iter()
            .any(|(name, _)| name.starts_with("reports.") || name == "system.runs"),
        "{tables:?}"
    );
}

/// Runs the program and returns its exit code and what it printed to standard error.
fn run(arguments: &[&str], directory: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_headwater-warehouse"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn the_program_ends_with_one_clear_line() {
    let directory = tempfile::tempdir().unwrap();
    let (code, text) = run(&["nightly", "--date", "yesterday"], directory.path());
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("`yesterday` is not a date"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");

    let config = directory.path().join("warehouse.toml");
    std::fs::write(
        &config,
        "[source]\nuri = \"postgres://me:secret@127.0.0.1:1/app\"\n",
    )
    .unwrap();
    let config = config.display().to_string();
    let (code, text) = run(
        &["--config", &config, "nightly", "--date", NIGHT],
        directory.path(),
    );
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("postgres://127.0.0.1:1/app") && !text.contains("secret"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!directory.path().join("headwater-data").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_catalog_is_one_clear_line() {
    let world = World::new().await;
    std::fs::write(
        world.directory.path().join("catalog.db"),
        "this is not a database, whatever its name",
    )
    .unwrap();
    let error = world.try_night(NIGHT).await.unwrap_err().to_string();
    assert!(error.contains("catalog.db"), "{error}");
}

#[test]
fn the_example_configuration_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config/warehouse.toml");
    let config: headwater_warehouse::Config =
        headwater_service::config::load_with(Some(&path), std::iter::empty()).unwrap();
    config.validate().unwrap();
}

#[test]
fn the_documentation_names_every_column_of_every_report() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/warehouse.md");
    let text = std::fs::read_to_string(path).unwrap();
    for model in headwater_warehouse::models::load(None).unwrap() {
        for (column, doc) in model.columns {
            let line = format!("| `{column}` | {doc} |");
            assert!(text.contains(&line), "{}: {line}", model.table);
        }
    }
}
