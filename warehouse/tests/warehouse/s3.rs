//! A night whose tables are in a bucket.

use headwater_warehouse::Outcome;

use crate::s3_server::S3;
use crate::world::{Ev, World};

const NIGHT: &str = "2026-11-19";

async fn a_day(world: &World) {
    world.plan("small", 1000).await;
    world.subscribe("s", "small", 2).await;
    let admin = |event: &str, at: &str| Ev::new(event, at).by("admin", "a1");
    let events = [
        admin("Signed In", "2026-11-19T08:00:00Z"),
        Ev::new("Conversation Started", "2026-11-19T09:00:00Z")
            .of("c1")
            .by("contact_user", "u"),
        admin("Conversation Replied", "2026-11-19T09:10:00Z").of("c1"),
    ];
    world.events(&events).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_night_in_a_bucket_publishes_what_one_on_the_disk_does() {
    let service = S3::start();
    let local = World::new().await;
    let mut remote = World::new().await;
    remote.config.catalog = service.warehouse(remote.config.catalog);
    for world in [&local, &remote] {
        a_day(world).await;
        assert_eq!(world.night(NIGHT).await.outcome, Outcome::Published);
        assert_eq!(world.night(NIGHT).await.outcome, Outcome::AlreadyUpToDate);
    }
    for table in [
        "core.events",
        "core.conversations",
        "ops.companies",
        "reports.company_day",
        "reports.admin_day",
        "reports.conversation",
    ] {
        let sql = format!("SELECT count(*) FROM {table}");
        let rows = remote.query(&sql).await;
        assert_ne!(rows, ["0"], "{table}");
        assert_eq!(rows, local.query(&sql).await, "{table}");
    }
    let reports = "SELECT * FROM reports.company_day ORDER BY 1, 2";
    assert_eq!(remote.query(reports).await, local.query(reports).await);
    let is_ours = |key: &String| key.starts_with("some/where/");
    assert!(service.keys().iter().all(is_ours));
}
