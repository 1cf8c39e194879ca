//! A DataFusion session over tables that the night has pinned.
//!
//! Each table is one Iceberg snapshot that does not move while the night computes.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider,
};
use datafusion::common::Result;
use datafusion::datasource::MemTable;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use headwater_tables::query::{IcebergProvider, functions, reading};
use headwater_tables::{Store, Table, TableName};

/// A session, with every table under its own name.
pub(crate) struct Session {
    context: SessionContext,
    catalog: Arc<MemoryCatalogProvider>,
}

impl Session {
    /// Makes a session over `tables`, whose files are in `store` or on the local disk, that uses at most
    /// `memory_bytes` before it spills.
    pub(crate) fn new(
        tables: &BTreeMap<TableName, Table>,
        store: Option<&Store>,
        memory_bytes: usize,
    ) -> Result<Self> {
        let mut config = SessionConfig::new()
            .with_default_catalog_and_schema("headwater", "run")
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(false);
        let options = config.options_mut();
        options.execution.time_zone = Some("UTC".to_owned());
        options.execution.parquet.schema_force_view_types = false;
        options.sql_parser.map_string_types_to_utf8view = false;
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_limit(memory_bytes, 1.0)
            .build_arc()?;
        let config = reading(config, &runtime, store)?;
        let context = SessionContext::new_with_config_rt(config, runtime);
        let catalog = Arc::new(MemoryCatalogProvider::new());
        context.register_catalog("headwater", Arc::clone(&catalog) as _);
        for function in functions::all() {
            context.register_udf(function);
        }
        let session = Self { context, catalog };
        for schema in ["raw", "ops", "core", "reports", "system", "run"] {
            session.schema(schema)?;
        }
        for (name, table) in tables {
            let provider = Arc::new(IcebergProvider::new(table.clone())?);
            session.register(name.namespace(), name.name(), provider)?;
        }
        Ok(session)
    }

    fn schema(&self, name: &str) -> Result<Arc<dyn SchemaProvider>> {
        if let Some(schema) = self.catalog.schema(name) {
            return Ok(schema);
        }
        let schema: Arc<dyn SchemaProvider> = Arc::new(MemorySchemaProvider::new());
        self.catalog.register_schema(name, Arc::clone(&schema))?;
        Ok(schema)
    }

    /// Adds or replaces a table.
    pub(crate) fn register(
        &self,
        schema: &str,
        name: &str,
        provider: Arc<dyn TableProvider>,
    ) -> Result<()> {
        let schema = self.schema(schema)?;
        schema.deregister_table(name)?;
        schema.register_table(name.to_owned(), provider)?;
        Ok(())
    }

    /// Adds or replaces a table that lives in memory, in schema `run`.
    pub(crate) fn register_rows(
        &self,
        name: &str,
        schema: SchemaRef,
        rows: Vec<RecordBatch>,
    ) -> Result<()> {
        let table = MemTable::try_new(schema, vec![rows])?;
        self.register("run", name, Arc::new(table))
    }

    /// Adds or replaces a view in schema `run`.
    pub(crate) async fn register_view(&self, name: &str, sql: &str) -> Result<()> {
        let view = self.context.sql(sql).await?.into_view();
        self.register("run", name, view)
    }

    /// Runs a query and holds its rows.
    pub(crate) async fn rows(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        self.context.sql(sql).await?.collect().await
    }

    /// Runs a query and holds its rows, with their columns even when there is no row.
    pub(crate) async fn rows_with_schema(
        &self,
        sql: &str,
    ) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let frame = self.context.sql(sql).await?;
        let schema = Arc::new(frame.schema().as_arrow().clone());
        Ok((schema, frame.collect().await?))
    }

    /// As [`Self::rows_with_schema`], but stops soon after `limit` rows.
    pub(crate) async fn rows_at_most(
        &self,
        sql: &str,
        limit: usize,
    ) -> Result<(SchemaRef, Vec<RecordBatch>)> {
        let frame = self.context.sql(sql).await?;
        let schema = Arc::new(frame.schema().as_arrow().clone());
        let mut stream = frame.execute_stream().await?;
        let (mut rows, mut held) = (Vec::new(), 0);
        while let Some(batch) = stream.try_next().await? {
            held += batch.num_rows();
            rows.push(batch);
            if held > limit {
                break;
            }
        }
        Ok((schema, rows))
    }

    /// Runs a query and returns its rows as they come.
    pub(crate) async fn stream(&self, sql: &str) -> Result<SendableRecordBatchStream> {
        self.context.sql(sql).await?.execute_stream().await
    }
}
