//! A small lake of Iceberg tables in a temporary directory, written with the iceberg crate alone, so
//! that the scan is tested against files and commits that our own writer had no part in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::RecordBatch;
use headwater_tables::TableName;
use headwater_tables::query::Pins;
use iceberg::arrow::RecordBatchPartitionSplitter;
use iceberg::io::LocalFsStorageFactory;
use iceberg::memory::{MEMORY_CATALOG_WAREHOUSE, MemoryCatalogBuilder};
use iceberg::spec::{
    DataFile, DataFileFormat, PartitionKey, Schema, TableMetadata, Transform, UnboundPartitionSpec,
};
use iceberg::table::Table;
use iceberg::transaction::{AddColumn, ApplyTransactionAction, Transaction};
use iceberg::writer::base_writer::data_file_writer::DataFileWriterBuilder;
use iceberg::writer::file_writer::ParquetWriterBuilder;
use iceberg::writer::file_writer::location_generator::{
    DefaultFileNameGenerator, DefaultLocationGenerator,
};
use iceberg::writer::file_writer::rolling_writer::RollingFileWriterBuilder;
use iceberg::writer::{IcebergWriter, IcebergWriterBuilder};
use iceberg::{Catalog, CatalogBuilder, MemoryCatalog, NamespaceIdent, TableCreation};
use parquet::file::properties::WriterProperties;

/// Makes file names unique.
static FILES: AtomicUsize = AtomicUsize::new(0);

pub(crate) struct Lake {
    catalog: MemoryCatalog,
    _directory: tempfile::TempDir,
}

impl Lake {
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let warehouse = format!("file://{}", directory.path().display());
        let catalog = MemoryCatalogBuilder::default()
            .with_storage_factory(Arc::new(LocalFsStorageFactory))
            .load(
                "memory",
                HashMap::from([(MEMORY_CATALOG_WAREHOUSE.to_owned(), warehouse)]),
            )
            .await
            .unwrap();
        Self {
            catalog,
            _directory: directory,
        }
    }

    /// Creates a table, partitioned by day of the column `by_day` when there is one.
    pub(crate) async fn create(&self, name: &str, schema: Schema, by_day: Option<&str>) -> Table {
        let name: TableName = name.parse().unwrap();
        let namespace = NamespaceIdent::new(name.namespace().to_owned());
        if !self.catalog.namespace_exists(&namespace).await.unwrap() {
            self.catalog
                .create_namespace(&namespace, HashMap::new())
                .await
                .unwrap();
        }
        let mut spec = UnboundPartitionSpec::builder();
        if let Some(column) = by_day {
            let id = schema.field_by_name(column).unwrap().id;
            spec = spec
                .add_partition_field(id, format!("{column}_day"), Transform::Day)
                .unwrap();
        }
        let creation = TableCreation::builder()
            .name(name.name().to_owned())
            .schema(schema)
            .partition_spec(spec.build())
            .build();
        self.catalog
            .create_table(&namespace, creation)
            .await
            .unwrap()
    }

    pub(crate) async fn load(&self, name: &str) -> Table {
        let name: TableName = name.parse().unwrap();
        self.catalog.load_table(&name.to_ident()).await.unwrap()
    }

    /// Appends the rows in one commit, a file per partition.
    pub(crate) async fn append(&self, name: &str, batch: RecordBatch) -> Table {
        self.append_with(name, batch, WriterProperties::default())
            .await
    }

    pub(crate) async fn append_with(
        &self,
        name: &str,
        batch: RecordBatch,
        properties: WriterProperties,
    ) -> Table {
        let table = self.load(name).await;
        let files = write(&table, batch, properties).await;
        let transaction = Transaction::new(&table);
        let append = transaction.fast_append().add_data_files(files);
        let transaction = append.apply(transaction).unwrap();
        transaction.commit(&self.catalog).await.unwrap()
    }

    pub(crate) async fn add_column(&self, name: &str, column: AddColumn) -> Table {
        let transaction = Transaction::new(&self.load(name).await);
        let add = transaction.update_schema().add_column(column);
        let transaction = add.apply(transaction).unwrap();
        transaction.commit(&self.catalog).await.unwrap()
    }

    pub(crate) async fn set_property(&self, name: &str, key: &str, value: String) -> Table {
        let transaction = Transaction::new(&self.load(name).await);
        let set = transaction
            .update_table_properties()
            .set(key.to_owned(), value);
        let transaction = set.apply(transaction).unwrap();
        transaction.commit(&self.catalog).await.unwrap()
    }

    /// Pins these tables at their current snapshots.
    pub(crate) async fn pins(&self, names: &[&str]) -> Pins {
        let mut tables = BTreeMap::new();
        for name in names {
            tables.insert(name.parse().unwrap(), self.load(name).await);
        }
        Pins::of(tables)
    }
}

/// Returns the table with other metadata, which is not committed.
pub(crate) fn with_metadata(table: &Table, metadata: TableMetadata) -> Table {
    Table::builder()
        .metadata(metadata)
        .file_io(table.file_io().clone())
        .identifier(table.identifier().clone())
        .runtime(iceberg::Runtime::current())
        .build()
        .unwrap()
}

/// Returns the Arrow schema that batches for the table must have.
pub(crate) fn arrow_schema(table: &Table) -> arrow::datatypes::SchemaRef {
    let schema = table.metadata().current_schema();
    Arc::new(iceberg::arrow::schema_to_arrow_schema(schema).unwrap())
}

/// Returns the paths of the snapshot's files, as the iceberg crate plans them.
pub(crate) async fn paths(table: &Table) -> Vec<String> {
    use futures::TryStreamExt as _;
    let tasks = table.scan().build().unwrap().plan_files().await.unwrap();
    let tasks: Vec<_> = tasks.try_collect().await.unwrap();
    tasks
        .into_iter()
        .map(|task| task.data_file_path.trim_start_matches("file://").to_owned())
        .collect()
}

async fn write(table: &Table, batch: RecordBatch, properties: WriterProperties) -> Vec<DataFile> {
    let metadata = table.metadata();
    let schema = metadata.current_schema().clone();
    let names = DefaultFileNameGenerator::new(
        format!("file{}", FILES.fetch_add(1, Ordering::Relaxed)),
        None,
        DataFileFormat::Parquet,
    );
    let rolling = RollingFileWriterBuilder::new_with_default_file_size(
        ParquetWriterBuilder::new(properties, schema.clone()),
        table.file_io().clone(),
        DefaultLocationGenerator::new(metadata).unwrap(),
        names,
    );
    let builder = DataFileWriterBuilder::new(rolling);
    let spec = metadata.default_partition_spec().clone();
    let parts: Vec<(Option<PartitionKey>, RecordBatch)> = if spec.is_unpartitioned() {
        vec![(None, batch)]
    } else {
        RecordBatchPartitionSplitter::try_new_with_computed_values(schema, spec)
            .unwrap()
            .split(&batch)
            .unwrap()
            .into_iter()
            .map(|(key, batch)| (Some(key), batch))
            .collect()
    };
    let mut files = Vec::new();
    for (key, batch) in parts {
        let mut writer = builder.build(key).await.unwrap();
        writer.write(batch).await.unwrap();
        files.extend(writer.close().await.unwrap());
    }
    files
}
