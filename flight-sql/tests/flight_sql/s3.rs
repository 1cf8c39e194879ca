//! Tables in a bucket, asked through Flight SQL.

use headwater_flight_sql::Config;
use headwater_service::clock::SystemClock;

use crate::harness::{Server, column};
use crate::s3_server::S3;

#[tokio::test(flavor = "multi_thread")]
async fn tables_in_a_bucket_answer_as_those_on_the_disk_do() {
    let service = S3::start();
    let in_bucket =
        |config: &mut Config| config.catalog = service.warehouse(config.catalog.clone());
    let remote = Server::start_configured(in_bucket, SystemClock::shared()).await;
    let local = Server::start().await;
    let (mut remote, mut local) = (remote.client().await, local.client().await);
    for sql in [
        "SELECT count(*) FROM core.zoo",
        "SELECT name FROM core.zoo ORDER BY id",
        "SELECT id FROM core.zoo WHERE id > 1 ORDER BY id DESC",
        "SELECT sum(n) FROM core.counter",
    ] {
        let rows = column(&mut remote, sql).await;
        assert!(!rows.is_empty(), "{sql}");
        assert_eq!(rows, column(&mut local, sql).await, "{sql}");
    }
    let reads = service.count(|asked, _| asked.path.ends_with(".parquet") && asked.method == "GET");
    assert!(reads > 0, "the rows came out of the bucket");
}
