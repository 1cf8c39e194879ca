//! Row-level deletes, which other engines may write, are refused instead of ignored.

use datafusion::prelude::SessionContext;
use headwater_tables::query::IcebergProvider;
use iceberg::spec::{
    DataContentType, DataFileBuilder, DataFileFormat, MAIN_BRANCH, ManifestFile,
    ManifestListWriter, ManifestWriterBuilder, Operation, Snapshot, SnapshotReference,
    SnapshotRetention, Struct, Summary,
};
use iceberg::table::Table;

use crate::interactions::{rows, schema};
use crate::lake::{Lake, arrow_schema};

const TABLE: &str = "raw.interactions";
const SNAPSHOT: i64 = 77;

/// Writes a manifest with one position-delete file, which the scan never opens.
async fn delete_manifest(table: &Table) -> ManifestFile {
    let metadata = table.metadata();
    let spec = metadata.default_partition_spec().as_ref().clone();
    let file = DataFileBuilder::default()
        .content(DataContentType::PositionDeletes)
        .file_path(format!("{}/data/deletes.parquet", metadata.location()))
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::empty())
        .partition_spec_id(spec.spec_id())
        .record_count(1)
        .file_size_in_bytes(100)
        .build()
        .unwrap();
    let path = format!("{}/metadata/deletes-m0.avro", metadata.location());
    let output = table.file_io().new_output(path).unwrap();
    let schema = metadata.current_schema().clone();
    let mut writer =
        ManifestWriterBuilder::new(output, Some(SNAPSHOT), schema, spec).build_v2_deletes();
    writer
        .add_file(file, metadata.next_sequence_number())
        .unwrap();
    writer.write_manifest_file().await.unwrap()
}

/// Returns the table as it would be after a commit of the delete file.
async fn with_deletes(table: &Table) -> Table {
    let metadata = table.metadata();
    let sequence = metadata.next_sequence_number();
    let parent = metadata.current_snapshot().unwrap();
    let before = table.manifest_list_reader(parent).load().await.unwrap();
    let manifests = before.consume_entries().into_iter();
    let all: Vec<_> = manifests.chain([delete_manifest(table).await]).collect();

    let list = format!("{}/metadata/snap-{SNAPSHOT}.avro", metadata.location());
    let output = table.file_io().new_output(&list).unwrap();
    let file = output.writer().await.unwrap();
    let parent = Some(parent.snapshot_id());
    let mut writer = ManifestListWriter::v2(file, SNAPSHOT, parent, sequence);
    writer.add_manifests(all.into_iter()).unwrap();
    writer.close().await.unwrap();

    let snapshot = Snapshot::builder()
        .with_snapshot_id(SNAPSHOT)
        .with_parent_snapshot_id(parent)
        .with_sequence_number(sequence)
        .with_timestamp_ms(metadata.last_updated_ms() + 1)
        .with_manifest_list(list)
        .with_schema_id(metadata.current_schema_id())
        .with_summary(Summary {
            operation: Operation::Delete,
            additional_properties: std::collections::HashMap::new(),
        })
        .build();
    let main = SnapshotReference::new(SNAPSHOT, SnapshotRetention::branch(None, None, None));
    let builder = metadata.clone().into_builder(None);
    let builder = builder.add_snapshot(snapshot).unwrap();
    let built = builder.set_ref(MAIN_BRANCH, main).unwrap().build().unwrap();
    crate::lake::with_metadata(table, built.metadata)
}

#[tokio::test]
async fn a_table_with_delete_files_is_refused() {
    let lake = Lake::new().await;
    let table = lake.create(TABLE, schema(), None).await;
    let table = lake.append(TABLE, rows(&arrow_schema(&table), 0, 10)).await;
    let provider = IcebergProvider::new(with_deletes(&table).await).unwrap();
    let context = SessionContext::new();
    context
        .register_table("t", std::sync::Arc::new(provider))
        .unwrap();
    let frame = context.sql("SELECT count(*) FROM t").await.unwrap();
    let error = frame.collect().await.unwrap_err().to_string();
    assert!(
        error.contains("table `raw.interactions` has delete files in snapshot 77"),
        "{error}"
    );
}
