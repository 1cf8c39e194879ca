//! Sessions over tables in a bucket: the same answers as over local files, through the connections that
//! the catalog has, and no bucket is taken for another one.

use std::path::Path;

use headwater_tables::query::{Pins, SessionOptions, session};
use headwater_tables::{Catalog, CatalogConfig, Partition, TableSpec};
use tempfile::TempDir;

use crate::catalog::{append, rows, visits};
use crate::plans::{answer, reads, value};
use crate::s3_server::{Asked, S3};

const EVERY_ROW: &str = "SELECT id, company, at FROM ops.visits ORDER BY id";

async fn filled(config: &CatalogConfig) -> Catalog {
    let catalog = Catalog::open(config).await.unwrap();
    let (name, schema) = visits();
    let spec = TableSpec::from_arrow(name, &schema, Partition::Day("at".to_owned())).unwrap();
    let table = catalog.ensure(&spec).await.unwrap();
    let table = append(&catalog, &table, rows(0..240)).await;
    append(&catalog, &table, rows(240..480)).await;
    catalog
}

async fn ask(catalog: &Catalog, sql: &str) -> String {
    let pins = Pins::take(catalog).await.unwrap();
    let context = session(&pins, &SessionOptions::default()).unwrap();
    answer(&context, sql).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_answers_as_local_files_do() {
    let directory = TempDir::new().unwrap();
    let service = S3::start();
    let local = filled(&CatalogConfig::local(&directory.path().join("local"))).await;
    let remote = service.warehouse(CatalogConfig::local(&directory.path().join("remote")));
    let remote = filled(&remote).await;
    for sql in [
        EVERY_ROW,
        "SELECT company, count(*), min(at), max(id) FROM ops.visits GROUP BY company ORDER BY company",
        "SELECT count(*) FROM ops.visits a JOIN ops.visits b ON a.id = b.id + 1",
        "SELECT id FROM ops.visits WHERE company = 'company-0003' ORDER BY id LIMIT 3",
    ] {
        assert_eq!(ask(&remote, sql).await, ask(&local, sql).await, "{sql}");
    }
    let pins = Pins::take(&remote).await.unwrap();
    let context = session(&pins, &SessionOptions::default()).unwrap();
    let company = "SELECT count(*) FROM ops.visits WHERE company = 'company-0003'";
    assert_eq!(value(&context, company).await, "24");
    assert_eq!(reads(&context, company).await.files, 1);
    let pinned = Pins::of(pins.tables().clone()).in_store(remote.store().unwrap().clone());
    let context = session(&pinned, &SessionOptions::default()).unwrap();
    assert_eq!(value(&context, company).await, "24");
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|it| (it.path(), it.file_name())).unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            std::fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn footers_of_one_bucket_are_not_taken_for_those_of_another() {
    let directory = TempDir::new().unwrap();
    let one = S3::start();
    let config = one.warehouse(CatalogConfig::local(directory.path()));
    let first = filled(&config).await;
    // The same names and sizes: only the service differs.
    let other = S3::start_with(|buckets| copy(&one.bucket(), &buckets.join("lake")));
    let second = Catalog::open(&other.warehouse(config)).await.unwrap();

    let gets = |service: &S3| {
        let is_get = |asked: &Asked, _| asked.method == "GET" && asked.path.ends_with(".parquet");
        service.count(is_get)
    };
    let answer = ask(&first, EVERY_ROW).await;
    let cold = gets(&one);
    assert_eq!(ask(&first, EVERY_ROW).await, answer);
    let warm = gets(&one) - cold;
    assert!(
        warm < cold,
        "{warm} requests of a warm scan, {cold} of a cold one"
    );
    assert_eq!(ask(&second, EVERY_ROW).await, answer);
    assert_eq!(gets(&other), cold, "every footer is read from where it is");
}
