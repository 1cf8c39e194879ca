//! Catalogs, schemas, tables, keys and types, as database tools list them.
//!
//! Place on the event's path: answers about tables, not rows of them. Promise: the answer shows one
//! pinned set of tables; patterns honour `%`, `_` and the escape `\`; every type in a table's schema
//! is one that old drivers read, because one that is not hides the whole schema from them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use arrow::compute::like;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow_flight::error::FlightError;
use arrow_flight::sql::metadata::{SqlInfoDataBuilder, XdbcTypeInfoData};
use arrow_flight::sql::{
    Command, CommandGetCatalogs, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTableTypes,
    CommandGetTables,
};
use datafusion::catalog::CatalogProvider;
use datafusion::logical_expr::TableType;
use tonic::Status;

use crate::config::LimitsConfig;
use crate::result::{Timestamps, client_type};
use crate::snapshot::{CATALOG, Snapshot};
use crate::sql_info::SqlInfos;
use crate::type_info;

/// Kinds of tables there are.
const TABLE_TYPES: [&str; 2] = ["TABLE", "VIEW"];

/// Keys the tables keep by construction: (schema, table, columns in key order).
const PRIMARY_KEYS: [(&str, &str, &[&str]); 5] = [
    ("public", "events", &["company_id", "message_id"]),
    ("core", "events", &["company_id", "message_id"]),
    ("raw", "events", &["_agent_id", "_epoch", "_sequence"]),
    ("raw", "quarantine", &["quarantine_id"]),
    ("reports", "company_day", &["company_id", "report_date"]),
];

/// Answers the metadata commands.
pub(crate) struct Metadata {
    sql_infos: SqlInfos,
    types: XdbcTypeInfoData,
}

impl Metadata {
    /// Builds the answers that never change.
    pub(crate) fn new(limits: &LimitsConfig) -> Result<Self, FlightError> {
        Ok(Self {
            sql_infos: SqlInfos::new(limits.statement_bytes_max, limits.prepared_ttl_ms)?,
            types: type_info::table()?,
        })
    }

    /// Returns the schema of the answer, `None` when the command is not about metadata.
    pub(crate) fn schema(&self, command: &Command) -> Option<SchemaRef> {
        Some(match command {
            Command::CommandGetCatalogs(_) => CommandGetCatalogs {}.into_builder().schema(),
            Command::CommandGetDbSchemas(command) => command.clone().into_builder().schema(),
            Command::CommandGetTables(command) => command.clone().into_builder().schema(),
            Command::CommandGetTableTypes(_) => CommandGetTableTypes {}.into_builder().schema(),
            Command::CommandGetSqlInfo(_) => Arc::new(SqlInfoDataBuilder::schema().clone()),
            Command::CommandGetXdbcTypeInfo(_) => self.types.schema(),
            Command::CommandGetPrimaryKeys(_) => primary_key_schema(),
            Command::CommandGetExportedKeys(_)
            | Command::CommandGetImportedKeys(_)
            | Command::CommandGetCrossReference(_) => foreign_key_schema(),
            _ => return None,
        })
    }

    /// Says whether the answer needs the tables.
    pub(crate) fn needs_tables(command: &Command) -> bool {
        matches!(
            command,
            Command::CommandGetDbSchemas(_)
                | Command::CommandGetTables(_)
                | Command::CommandGetPrimaryKeys(_)
        )
    }

    /// Returns the answer. `snapshot` is there when [`Self::needs_tables`] says so.
    pub(crate) async fn batch(
        &self,
        command: Command,
        snapshot: Option<&Snapshot>,
        timestamps: Timestamps,
    ) -> Result<RecordBatch, Status> {
        let catalog = snapshot.and_then(|snapshot| snapshot.context.catalog(CATALOG));
        match (command, catalog) {
            (Command::CommandGetCatalogs(_), _) => catalogs(),
            (Command::CommandGetTableTypes(_), _) => table_types(),
            (Command::CommandGetSqlInfo(command), _) => self.sql_infos.answer(command),
            (Command::CommandGetXdbcTypeInfo(command), _) => {
                self.types.record_batch(command.data_type)
            }
            (Command::CommandGetDbSchemas(command), Some(catalog)) => schemas(command, &*catalog),
            (Command::CommandGetTables(command), Some(catalog)) => {
                tables(command, &*catalog, timestamps).await
            }
            (Command::CommandGetPrimaryKeys(command), Some(catalog)) => {
                primary_keys(&command, &*catalog)
            }
            (
                Command::CommandGetExportedKeys(_)
                | Command::CommandGetImportedKeys(_)
                | Command::CommandGetCrossReference(_),
                _,
            ) => Ok(RecordBatch::new_empty(foreign_key_schema())),
            (command, _) => {
                return Err(Status::unimplemented(format!(
                    "command `{}` is not supported",
                    command.type_url()
                )));
            }
        }
        .map_err(|error| Status::internal(format!("the metadata cannot be built: {error}")))
    }
}

/// Returns the names of all schemas, sorted.
pub(crate) fn schema_names(catalog: &dyn CatalogProvider) -> Vec<String> {
    let mut names = catalog.schema_names();
    names.sort_unstable();
    names
}

fn catalogs() -> Result<RecordBatch, FlightError> {
    let mut builder = CommandGetCatalogs {}.into_builder();
    builder.append(CATALOG);
    builder.build()
}

fn table_types() -> Result<RecordBatch, FlightError> {
    let mut builder = CommandGetTableTypes {}.into_builder();
    for table_type in TABLE_TYPES {
        builder.append(table_type);
    }
    builder.build()
}

fn schemas(
    command: CommandGetDbSchemas,
    catalog: &dyn CatalogProvider,
) -> Result<RecordBatch, FlightError> {
    let mut builder = command.into_builder();
    for name in schema_names(catalog) {
        builder.append(CATALOG, name);
    }
    builder.build()
}

async fn tables(
    command: CommandGetTables,
    catalog: &dyn CatalogProvider,
    timestamps: Timestamps,
) -> Result<RecordBatch, FlightError> {
    let is_ours = command
        .catalog
        .as_deref()
        .is_none_or(|name| name == CATALOG);
    let schema_pattern = command.db_schema_filter_pattern.clone();
    let table_pattern = command.table_name_filter_pattern.clone();
    let include_schema = command.include_schema;
    let mut builder = command.into_builder();
    // Filter by name first: a table is opened only when it will be shown.
    let schemas = if is_ours {
        schema_names(catalog)
    } else {
        Vec::new()
    };
    for schema_name in matching(schemas, schema_pattern.as_deref())? {
        let Some(schema) = catalog.schema(&schema_name) else {
            continue;
        };
        for table_name in matching(schema.table_names(), table_pattern.as_deref())? {
            // One table that cannot be opened must not hide the others.
            let table = match schema.table(&table_name).await {
                Ok(Some(table)) => table,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(schema = schema_name, table = table_name, %error, "table cannot be listed");
                    continue;
                }
            };
            let table_type = match table.table_type() {
                TableType::View => "VIEW",
                TableType::Base | TableType::Temporary => "TABLE",
            };
            let described = if include_schema {
                describe(&table.schema(), &schema_name, &table_name, timestamps)
            } else {
                Schema::empty()
            };
            builder.append(CATALOG, &schema_name, &table_name, table_type, &described)?;
        }
    }
    builder.build()
}

/// Returns the names that match the LIKE pattern; all of them when there is none.
fn matching(names: Vec<String>, pattern: Option<&str>) -> Result<Vec<String>, FlightError> {
    let Some(pattern) = pattern else {
        return Ok(names);
    };
    let keep = like(
        &StringArray::from_iter_values(&names),
        &StringArray::new_scalar(pattern),
    )?;
    Ok(names
        .into_iter()
        .zip(&keep)
        .filter_map(|(name, keep)| (keep == Some(true)).then_some(name))
        .collect())
}

/// Returns a table's schema with the metadata that drivers turn into column descriptions.
fn describe(
    schema: &Schema,
    schema_name: &str,
    table_name: &str,
    timestamps: Timestamps,
) -> Schema {
    let fields: Vec<FieldRef> = schema
        .fields()
        .iter()
        .map(|field| {
            let data_type = client_type(field.data_type(), timestamps);
            let metadata = column_metadata(&data_type, schema_name, table_name);
            let field = Field::new(field.name(), data_type, field.is_nullable());
            Arc::new(field.with_metadata(metadata))
        })
        .collect();
    Schema::new(fields)
}

fn column_metadata(
    data_type: &DataType,
    schema_name: &str,
    table_name: &str,
) -> HashMap<String, String> {
    let is_text = *data_type == DataType::Utf8;
    let mut metadata = vec![
        ("CATALOG_NAME", CATALOG.to_owned()),
        ("SCHEMA_NAME", schema_name.to_owned()),
        ("TABLE_NAME", table_name.to_owned()),
        ("TYPE_NAME", type_info::name(data_type).to_owned()),
        ("IS_AUTO_INCREMENT", "0".to_owned()),
        ("IS_CASE_SENSITIVE", u8::from(is_text).to_string()),
        ("IS_READ_ONLY", "1".to_owned()),
        ("IS_SEARCHABLE", "1".to_owned()),
    ];
    if let Some((precision, scale)) = type_info::precision(data_type) {
        metadata.push(("PRECISION", precision.to_string()));
        metadata.push(("SCALE", scale.to_string()));
    }
    metadata
        .into_iter()
        .map(|(name, value)| (format!("ARROW:FLIGHT:SQL:{name}"), value))
        .collect()
}

fn primary_keys(
    command: &CommandGetPrimaryKeys,
    catalog: &dyn CatalogProvider,
) -> Result<RecordBatch, FlightError> {
    let asked = |schema: &str, table: &str| {
        command
            .catalog
            .as_deref()
            .is_none_or(|name| name == CATALOG)
            && command
                .db_schema
                .as_deref()
                .is_none_or(|name| name == schema)
            && command.table == table
    };
    let exists = |schema: &str, table: &str| {
        catalog
            .schema(schema)
            .is_some_and(|schema| schema.table_exist(table))
    };
    let mut columns: [Vec<String>; 4] = Default::default();
    let mut sequence = Vec::new();
    for (schema, table, key) in PRIMARY_KEYS {
        if !(asked(schema, table) && exists(schema, table)) {
            continue;
        }
        for (position, column) in (1_i32..).zip(key) {
            columns[0].push(schema.to_owned());
            columns[1].push(table.to_owned());
            columns[2].push((*column).to_owned());
            columns[3].push(format!("{table}_key"));
            sequence.push(position);
        }
    }
    let text = |values: &[String]| Arc::new(StringArray::from_iter_values(values)) as ArrayRef;
    let catalogs = vec![CATALOG.to_owned(); sequence.len()];
    Ok(RecordBatch::try_new(
        primary_key_schema(),
        vec![
            text(&catalogs),
            text(&columns[0]),
            text(&columns[1]),
            text(&columns[2]),
            text(&columns[3]),
            Arc::new(Int32Array::from(sequence)),
        ],
    )?)
}

/// Schema of `CommandGetPrimaryKeys` (FlightSql.proto).
fn primary_key_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ]))
}

/// Schema of the foreign key commands (FlightSql.proto).
fn foreign_key_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
}
