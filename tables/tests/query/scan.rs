//! The scan: the same answers as reading everything, from fewer files.

use std::sync::Arc;

use arrow::array::{Array as _, RecordBatch, StringArray};
use datafusion::datasource::MemTable;
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use headwater_tables::query::{IcebergProvider, SessionOptions, session};
use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};
use iceberg::table::Table;
use iceberg::transaction::AddColumn;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::interactions::{rows, schema};
use crate::lake::{Lake, arrow_schema, paths, with_metadata};
use crate::plans::{Reads, answer, answer_and_reads, reads, value};

const TABLE: &str = "raw.interactions";

/// Ten commits of two and a half days each, in small row groups.
async fn ten_commits() -> Lake {
    let lake = Lake::new().await;
    let table = lake.create(TABLE, schema(), Some("at")).await;
    let arrow = arrow_schema(&table);
    for commit in 0..10 {
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(7))
            .build();
        lake.append_with(TABLE, rows(&arrow, commit * 60, 60), properties)
            .await;
    }
    lake
}

async fn context(lake: &Lake) -> SessionContext {
    let pins = lake.pins(&[TABLE]).await;
    session(&pins, &options()).unwrap()
}

fn options() -> SessionOptions {
    SessionOptions {
        target_partitions: 4,
        ..SessionOptions::default()
    }
}

/// A session in which `interactions` holds the same rows in memory, read by DataFusion's own listing
/// of the same files.
async fn unpruned(table: &Table) -> SessionContext {
    let listing = SessionContext::new();
    let frame = listing
        .read_parquet(paths(table).await, ParquetReadOptions::default())
        .await
        .unwrap();
    let schema = Arc::clone(frame.schema().inner());
    let all = MemTable::try_new(schema, vec![frame.collect().await.unwrap()]).unwrap();
    let context = SessionContext::new();
    context
        .register_table("interactions", Arc::new(all))
        .unwrap();
    context
}

fn checksum(table: &str, filter: &str) -> String {
    format!(
        "SELECT count(*), sum(id), count(rating), sum(rating), count(DISTINCT note), sum(price) \
         FROM {table} AS t WHERE {filter}"
    )
}

#[tokio::test]
async fn filters_select_the_same_rows_as_without_pruning() {
    let lake = ten_commits().await;
    let ours = context(&lake).await;
    let plain = unpruned(&lake.load(TABLE).await).await;
    for filter in [
        "true",
        "false",
        "id = 77",
        "id <> 77",
        "id < 60",
        "id BETWEEN 50 AND 130",
        "id NOT BETWEEN 50 AND 590",
        "id IN (3, 300, 9000)",
        "id NOT IN (3, 300)",
        "company = 'c3'",
        "company >= 'c12'",
        "company LIKE 'c1%'",
        "note LIKE '3-%'",
        "note IS NULL AND id > 500",
        "at = '2026-11-02T03:00:00.000006Z'",
        "at < TIMESTAMP '2026-11-01T12:00:00Z'",
        "at >= '2026-11-10T00:00:00Z' AND at < '2026-11-11T00:00:00Z'",
        "date_trunc('day', at) = TIMESTAMP '2026-11-12T00:00:00Z'",
        "CAST(at AS DATE) = DATE '2026-11-12'",
        "at > now()",
        "day = DATE '2026-11-05'",
        "day IS NULL",
        "day IS NOT NULL AND NOT (day > DATE '2026-11-03')",
        "rating IS NULL OR rating > 4",
        "NOT (rating = 3)",
        "rating IS DISTINCT FROM 3",
        "price > 24.5",
        "price IN (0.25, 0.5)",
        "open",
        "NOT open",
        "open IS NULL",
        "coalesce(rating, 9) = 9",
        "id % 50 = 3",
        "id > rating + 590",
        "flags IS NULL",
        "array_length(flags) = 2",
    ] {
        assert_eq!(
            answer(&ours, &checksum("raw.interactions", filter)).await,
            answer(&plain, &checksum("interactions", filter)).await,
            "{filter}"
        );
    }
}

fn comparison() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM"])
}

fn leaf() -> impl Strategy<Value = String> {
    let null = prop::sample::select(vec!["day", "rating", "price", "open", "note", "flags"]);
    prop_oneof![
        (comparison(), -5..620i64).prop_map(|(op, id)| format!("id {op} {id}")),
        (0..600i64, 0..60i64).prop_map(|(id, more)| format!("id BETWEEN {id} AND {}", id + more)),
        prop::collection::vec(0..700i64, 1..5).prop_map(|ids| format!(
            "id IN ({})",
            ids.iter()
                .map(i64::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        )),
        (comparison(), 0..17).prop_map(|(op, n)| format!("company {op} 'c{n}'")),
        (0..3).prop_map(|n| format!("company LIKE 'c{n}%'")),
        (comparison(), 1..28, 0..24).prop_map(|(op, day, hour)| format!(
            "at {op} '2026-11-{day:02}T{hour:02}:00:00.000003Z'"
        )),
        (comparison(), 1..28).prop_map(|(op, day)| format!("day {op} DATE '2026-11-{day:02}'")),
        (comparison(), 0..7).prop_map(|(op, n)| format!("rating {op} {n}")),
        (comparison(), 0..27).prop_map(|(op, n)| format!("price {op} {n}.25")),
        (comparison(), 0..10).prop_map(|(op, n)| format!("note {op} '{n}-x'")),
        Just("open".to_owned()),
        (null, any::<bool>()).prop_map(|(column, not)| {
            format!("{column} IS {}NULL", if not { "NOT " } else { "" })
        }),
    ]
}

fn predicate() -> impl Strategy<Value = String> {
    leaf()
        .prop_map(|leaf| format!("({leaf})"))
        .prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 2..4)
                    .prop_map(|all| format!("({})", all.join(" AND "))),
                prop::collection::vec(inner.clone(), 2..4)
                    .prop_map(|any| format!("({})", any.join(" OR "))),
                inner.prop_map(|inner| format!("(NOT {inner})")),
            ]
        })
}

#[test]
fn random_predicates_select_the_same_rows_as_without_pruning() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (ours, plain) = runtime.block_on(async {
        let lake = ten_commits().await;
        let plain = unpruned(&lake.load(TABLE).await).await;
        (Kept(context(&lake).await, lake), plain)
    });
    let config = ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let pruned = std::cell::Cell::new(0);
    TestRunner::new(config)
        .run(&predicate(), |filter| {
            let (ours, plain, reads) = runtime.block_on(async {
                let query = checksum("raw.interactions", &filter);
                let (answered, reads) = answer_and_reads(&ours.0, &query).await;
                let query = checksum("interactions", &filter);
                (answered, answer(&plain, &query).await, reads)
            });
            prop_assert_eq!(ours, plain);
            pruned.set(pruned.get() + usize::from(reads.files < 30));
            Ok(())
        })
        .unwrap();
    let pruned = pruned.get();
    assert!(pruned > 20, "only {pruned} predicates skipped a file");
}

/// A session and the lake that must outlive it.
struct Kept(SessionContext, #[expect(dead_code)] Lake);

#[tokio::test]
async fn a_filter_reads_only_the_files_that_can_match() {
    let lake = ten_commits().await;
    let context = context(&lake).await;
    let files = async |filter: &str| {
        reads(
            &context,
            &format!("SELECT * FROM raw.interactions WHERE {filter}"),
        )
        .await
        .files
    };
    let all = files("true").await;
    assert_eq!(all, 30, "ten commits of two and a half days");
    let day = "at >= '2026-11-10T00:00:00Z' AND at < '2026-11-11T00:00:00Z'";
    assert_eq!(files(day).await, 1);
    assert_eq!(files("at > '2027-01-01T00:00:00Z'").await, 0);
    assert_eq!(files("id = 77").await, 1);
    assert_eq!(files("id IN (0, 599)").await, 2);
    assert_eq!(files("day = DATE '2026-11-10'").await, 1);
    assert_eq!(files("rating IS NULL").await, all);
    assert_eq!(files("id IS NULL").await, 0);
}

#[tokio::test]
async fn text_bounds_of_a_file_with_one_row_group_prune_and_others_are_not_believed() {
    let lake = Lake::new().await;
    let schema = Schema::builder()
        .with_fields(vec![
            NestedField::required(1, "text", Type::Primitive(PrimitiveType::String)).into(),
        ])
        .build()
        .unwrap();
    let table = lake.create("raw.texts", schema, None).await;
    let arrow = arrow_schema(&table);
    let batch = |texts: [&str; 2]| {
        let texts = Arc::new(StringArray::from(texts.to_vec()));
        RecordBatch::try_new(Arc::clone(&arrow), vec![texts]).unwrap()
    };
    // The second row group's bound is truncated, and the writer leaves it out of the file's bounds.
    let truncating = WriterProperties::builder()
        .set_max_row_group_row_count(Some(1))
        .set_statistics_truncate_length(Some(4))
        .build();
    lake.append_with("raw.texts", batch(["a", "zzzzzz"]), truncating)
        .await;
    lake.append("raw.texts", batch(["b", "c"])).await;
    let context = session(&lake.pins(&["raw.texts"]).await, &options()).unwrap();
    let query = "SELECT count(*) FROM raw.texts WHERE text = 'zzzzzz'";
    assert_eq!(value(&context, query).await, "1");
    assert_eq!(reads(&context, query).await.files, 1);
}

#[tokio::test]
async fn count_min_and_max_are_answered_without_a_scan() {
    let lake = ten_commits().await;
    let context = context(&lake).await;
    let query = "SELECT count(*), count(rating), min(id), max(id), min(at), max(day) \
                 FROM raw.interactions AS t";
    assert_eq!(reads(&context, query).await, Reads::default());
    assert_eq!(
        answer(&context, query).await,
        answer(
            &unpruned(&lake.load(TABLE).await).await,
            &query.replace("raw.", "")
        )
        .await
    );
    // Text and filtered answers need the rows.
    for query in [
        "SELECT max(company) FROM raw.interactions",
        "SELECT count(*) FROM raw.interactions WHERE rating = 3",
    ] {
        assert_eq!(reads(&context, query).await.scans, 1, "{query}");
    }
}

#[tokio::test]
async fn files_are_spread_over_the_cores() {
    let lake = ten_commits().await;
    let context = context(&lake).await;
    let reads = reads(&context, "SELECT sum(id) FROM raw.interactions").await;
    assert_eq!((reads.scans, reads.partitions), (1, 4));
}

#[tokio::test]
async fn a_limit_reads_only_as_many_files_as_it_needs() {
    let lake = ten_commits().await;
    let context = context(&lake).await;
    let query = "SELECT id FROM raw.interactions LIMIT 3";
    assert_eq!(reads(&context, query).await.files, 1);
    let counted = "SELECT count(*) FROM (SELECT id FROM raw.interactions LIMIT 100)";
    assert_eq!(value(&context, counted).await, "100");
}

#[tokio::test]
async fn a_table_without_rows_is_empty() {
    let lake = Lake::new().await;
    lake.create(TABLE, schema(), Some("at")).await;
    let context = context(&lake).await;
    assert_eq!(
        value(&context, "SELECT count(*) FROM raw.interactions").await,
        "0"
    );
    let none = "SELECT count(*) FROM raw.interactions WHERE company = 'c1'";
    assert_eq!(value(&context, none).await, "0");
}

#[tokio::test]
async fn an_added_column_reads_as_null_in_older_files() {
    let lake = Lake::new().await;
    let table = lake.create(TABLE, schema(), Some("at")).await;
    lake.append(TABLE, rows(&arrow_schema(&table), 0, 24)).await;
    let added = AddColumn::optional("channel", Type::Primitive(PrimitiveType::String));
    let table = lake.add_column(TABLE, added).await;
    let arrow = arrow_schema(&table);
    let mut columns = rows(&project(&arrow, 9), 24, 24).columns().to_vec();
    columns.push(Arc::new(StringArray::from(vec![Some("email"); 24])));
    let batch = RecordBatch::try_new(arrow, columns).unwrap();
    lake.append(TABLE, batch).await;

    let context = context(&lake).await;
    let count = async |filter: &str| {
        let query = format!("SELECT count(*) FROM raw.interactions WHERE {filter}");
        value(&context, &query).await
    };
    assert_eq!(count("channel IS NULL").await, "24");
    assert_eq!(count("channel = 'email'").await, "24");
    assert_eq!(count("channel <> 'chat'").await, "24");
    let counted = "SELECT count(channel) FROM raw.interactions";
    assert_eq!(value(&context, counted).await, "24");
    let names = answer(&context, "SELECT * FROM raw.interactions LIMIT 1").await;
    assert!(
        names
            .lines()
            .nth(1)
            .unwrap()
            .trim_end()
            .ends_with("channel |")
    );
}

fn project(schema: &arrow::datatypes::SchemaRef, columns: usize) -> arrow::datatypes::SchemaRef {
    Arc::new(schema.project(&(0..columns).collect::<Vec<_>>()).unwrap())
}

/// Returns the table with another current schema.
fn with_schema(table: &Table, schema: Schema) -> Table {
    let builder = table.metadata().clone().into_builder(None);
    let metadata = builder.add_current_schema(schema).unwrap().build().unwrap();
    with_metadata(table, metadata.metadata)
}

#[tokio::test]
async fn columns_are_found_by_field_id_when_names_have_moved() {
    let lake = Lake::new().await;
    let number = |id, name: &str| {
        NestedField::optional(id, name, Type::Primitive(PrimitiveType::Long)).into()
    };
    let schema_of = |fields| Schema::builder().with_fields(fields).build().unwrap();
    let before = schema_of(vec![number(1, "a"), number(2, "b")]);
    let table = lake.create("raw.numbers", before, None).await;
    let batch = |a: i64, b: i64| {
        let column = |value| -> arrow::array::ArrayRef {
            Arc::new(arrow::array::Int64Array::from(vec![value]))
        };
        RecordBatch::try_new(arrow_schema(&table), vec![column(a), column(b)]).unwrap()
    };
    lake.append("raw.numbers", batch(1, 2)).await;
    let table = lake.append("raw.numbers", batch(10, 20)).await;
    // Column 1 is renamed to `b`, column 2 is dropped, and a new column takes the name `a`.
    let after = schema_of(vec![number(3, "a"), number(1, "b")]);
    let table = with_schema(&table, after);

    let context = SessionContext::new();
    let provider = IcebergProvider::new(table).unwrap();
    context
        .register_table("numbers", Arc::new(provider))
        .unwrap();
    let query = "SELECT count(a) || '/' || sum(b) FROM numbers WHERE b > 5";
    assert_eq!(value(&context, query).await, "0/10");
    assert_eq!(reads(&context, query).await.files, 1);
    let all = "SELECT sum(b) FROM numbers WHERE a IS NULL AND b IS NOT NULL";
    assert_eq!(value(&context, all).await, "11");
}

#[tokio::test]
async fn added_since_reads_only_newer_files() {
    let lake = ten_commits().await;
    let table = lake.load(TABLE).await;
    let count = async |provider: IcebergProvider| {
        let context = SessionContext::new();
        context.register_table("t", Arc::new(provider)).unwrap();
        (
            value(&context, "SELECT count(*) FROM t").await,
            value(
                &context,
                "SELECT coalesce(min(id), -1) FROM t WHERE id >= 0",
            )
            .await,
        )
    };
    let mut snapshots: Vec<_> = table.metadata().snapshots().cloned().collect();
    snapshots.sort_by_key(|snapshot| snapshot.sequence_number());
    for (added, snapshot) in snapshots.iter().enumerate() {
        let provider = IcebergProvider::added_since(table.clone(), snapshot.snapshot_id()).unwrap();
        let newer = (9 - added) * 60;
        let first = if newer == 0 {
            -1
        } else {
            60 * (added as i64 + 1)
        };
        assert_eq!(
            count(provider).await,
            (newer.to_string(), first.to_string())
        );
    }
    let error = IcebergProvider::added_since(table, 42).unwrap_err();
    assert_eq!(
        error.to_string(),
        "table `raw.interactions` has no snapshot 42; it may have expired"
    );
}

#[tokio::test]
async fn types_are_plain_and_timestamps_are_utc() {
    let lake = ten_commits().await;
    let context = context(&lake).await;
    let frame = context.sql("SELECT * FROM raw.interactions").await.unwrap();
    let batches = frame.clone().collect().await.unwrap();
    let schema = frame.schema().as_arrow();
    assert_eq!(batches[0].schema().as_ref(), schema);
    assert!(
        schema
            .fields()
            .iter()
            .all(|field| field.metadata().is_empty())
    );
    assert_eq!(
        schema
            .field_with_name("at")
            .unwrap()
            .data_type()
            .to_string(),
        "Timestamp(µs, \"UTC\")"
    );
    assert_eq!(
        schema
            .field_with_name("note")
            .unwrap()
            .data_type()
            .to_string(),
        "Utf8"
    );
    assert_eq!(
        batches.iter().map(RecordBatch::num_rows).sum::<usize>(),
        600
    );
    assert!(batches.iter().any(|batch| batch.column(8).null_count() > 0));
}
