//! Publishing: nights that repeat, late data, models from a directory.

use headwater_warehouse::Outcome;

use crate::rest_server;
use crate::world::{Ev, World};

const NIGHT: &str = "2026-11-19";

async fn a_small_week(world: &World) {
    world.plan("small", 1000).await;
    world.subscribe("s", "small", 2).await;
    let mut events = Vec::new();
    for day in 14..20 {
        events.push(Ev::new("Signed In", &format!("2026-11-{day}T08:00:00Z")).by("admin", "a1"));
        events.push(
            Ev::new("Conversation Started", &format!("2026-11-{day}T09:00:00Z"))
                .of(&format!("c{day}"))
                .by("contact_user", "u"),
        );
        events.push(
            Ev::new("Conversation Replied", &format!("2026-11-{day}T09:10:00Z"))
                .of(&format!("c{day}"))
                .by("admin", "a1"),
        );
    }
    world.events(&events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_a_night_again_changes_nothing() {
    run_a_night_again(World::new().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_a_night_again_changes_nothing_on_a_rest_catalog() {
    let mut world = World::new().await;
    world.config.catalog.uri = rest_server::new_catalog();
    run_a_night_again(world).await;
}

async fn run_a_night_again(world: World) {
    a_small_week(&world).await;
    let first = world.night(NIGHT).await;
    assert_eq!(first.outcome, Outcome::Published);
    let before = world.snapshots().await;
    // Later, and after another night: neither moves anything.
    world
        .clock
        .set(crate::world::micros("2026-11-25T02:00:00Z"));
    let second = world.night(NIGHT).await;
    assert_eq!(second.outcome, Outcome::AlreadyUpToDate);
    assert_eq!(second.run_id, first.run_id);
    assert!(second.written.is_empty());
    assert_eq!(world.snapshots().await, before);
    assert_eq!(world.query("SELECT count(*) FROM system.runs").await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_records_what_it_read() {
    let world = World::new().await;
    a_small_week(&world).await;
    let report = world.night(NIGHT).await;
    let rows = world
        .query("SELECT run_id, run_date, status, read_snapshots FROM system.runs")
        .await;
    let snapshots = world.snapshots().await;
    let core = snapshots
        .iter()
        .find(|(name, _)| name == "core.events")
        .unwrap()
        .1
        .unwrap();
    assert_eq!(rows.len(), 1);
    assert!(
        rows[0].starts_with(&format!("{}|2026-11-19|published|", report.run_id)),
        "{rows:?}"
    );
    assert!(
        rows[0].contains(&format!("\"core.events\":{core}")),
        "{rows:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn late_data_changes_only_its_day() {
    let world = World::new().await;
    a_small_week(&world).await;
    world.night(NIGHT).await;
    let days = "SELECT report_date, events, late_events, active_admins FROM reports.company_day ORDER BY 1";
    assert_eq!(
        world.query(days).await,
        [
            "2026-11-16|3|0|1",
            "2026-11-17|3|0|1",
            "2026-11-18|3|0|1",
            "2026-11-19|3|0|1"
        ]
    );
    // 71 hours late, and one that is older than the window.
    world
        .events(&[
            Ev::new("Feature Used", "2026-11-17T12:00:00Z").received("2026-11-20T11:00:00Z"),
            Ev::new("Feature Used", "2026-11-15T12:00:00Z").received("2026-11-20T11:00:00Z"),
        ])
        .await;
    let files = "SELECT count(DISTINCT report_date) FROM reports.company_day";
    assert_eq!(world.query(files).await, ["4"]);
    let report = world.night(NIGHT).await;
    assert_eq!(report.outcome, Outcome::Published);
    assert_eq!(report.written["reports.company_day"].rows, 1);
    assert!(!report.written.contains_key("reports.conversation"));
    assert_eq!(
        world.query(days).await,
        [
            "2026-11-16|3|0|1",
            "2026-11-17|4|1|1",
            "2026-11-18|3|0|1",
            "2026-11-19|3|0|1"
        ]
    );
    // The older day is there as soon as its night is run.
    world.night("2026-11-15").await;
    let rows = world
        .query("SELECT events FROM reports.company_day WHERE report_date = DATE '2026-11-15'")
        .await;
    assert_eq!(rows, ["4"]);
}

const EVENT_NAMES: &str = "-- name: event_names
-- grain: company_id, report_date, event_name
-- partition: report_date
-- refresh: days
-- depends: core.events
-- doc: Events by name.
-- column company_id: The paying tenant.
-- column report_date: The day.
-- column event_name: The name.
-- column events: How many.
SELECT company_id, report_date, event_name, count(*) AS events
FROM core.events JOIN run_days USING (report_date)
GROUP BY company_id, report_date, event_name
";

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_the_models_directory_becomes_a_report() {
    let mut world = World::new().await;
    a_small_week(&world).await;
    world.night(NIGHT).await;
    let models = world.directory.path().join("models");
    std::fs::create_dir(&models).unwrap();
    std::fs::write(models.join("event_names.sql"), EVENT_NAMES).unwrap();
    world.config.reports.models_directory = Some(models.clone());
    let report = world.night(NIGHT).await;
    assert_eq!(report.outcome, Outcome::Published);
    let rows = world
        .query("SELECT event_name, events FROM reports.event_names WHERE report_date = DATE '2026-11-19' ORDER BY 1")
        .await;
    assert_eq!(
        rows,
        [
            "Conversation Replied|1",
            "Conversation Started|1",
            "Signed In|1"
        ]
    );
    // Two rows for one grain are refused before anything is published.
    std::fs::write(
        models.join("event_names.sql"),
        EVENT_NAMES
            .replace("GROUP BY company_id", "GROUP BY actor_id, company_id")
            .replace(
                "-- grain: company_id, report_date, event_name",
                "-- grain: company_id, report_date",
            ),
    )
    .unwrap();
    let error = world.try_night(NIGHT).await.unwrap_err().to_string();
    assert!(
        error.contains("reports.event_names") && error.contains("two rows"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn operational_tables_keep_their_history() {
    let world = World::new().await;
    world.plan("small", 1000).await;
    world.night(NIGHT).await;
    world
        .sql("UPDATE plans SET unit_amount_minor = 2000, updated_at = '2026-11-20T12:00:00Z'; DELETE FROM companies")
        .await;
    world
        .clock
        .set(crate::world::micros("2026-11-21T02:00:00Z"));
    world.night("2026-11-20").await;
    let rows = world
        .query("SELECT unit_amount_minor, valid_from, valid_to, is_current FROM ops.plans_history ORDER BY valid_from")
        .await;
    assert_eq!(
        rows,
        [
            "1000|2026-01-01T00:00:00Z|2026-11-20T12:00:00Z|false",
            "2000|2026-11-20T12:00:00Z||true",
        ]
    );
    assert_eq!(
        world.query("SELECT count(*) FROM ops.companies").await,
        ["0"]
    );
    let rows = world
        .query("SELECT valid_to, is_current FROM ops.companies_history")
        .await;
    assert_eq!(rows, ["2026-11-21T02:00:00Z|false"]);
}
