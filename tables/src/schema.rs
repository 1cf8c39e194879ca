//! What tables look like: columns, partitions, sort order and properties.
//!
//! Place on the event's path: the collector and the warehouse call
//! [`Catalog::ensure`](crate::Catalog::ensure) with a [`TableSpec`] before they write. Promise: the
//! names and types here are the exact columns that every engine sees.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, TimeUnit};
use iceberg::arrow::arrow_schema_to_schema_auto_assign_ids;
use iceberg::spec::{
    ListType, NestedField, NullOrder, PrimitiveType, Schema, SortDirection, SortField, SortOrder,
    StructType, Transform, Type, UnboundPartitionSpec,
};

use crate::name::TableName;

/// How a table is partitioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Partition {
    /// Not at all.
    None,
    /// By UTC day of this timestamptz column. The partition field is named `<column>_day`.
    Day(String),
    /// By the value of this column, such as a date.
    Identity(String),
}

/// What a table must look like.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// The table's name.
    pub name: TableName,
    /// Columns. Field ids only need to be unique here: the table has its own.
    pub schema: Schema,
    /// Partitioning.
    pub partition: Partition,
    /// Columns that writers sort the rows of a file by, ascending, nulls first.
    pub sort: Vec<String>,
    /// Table properties, besides the ones that every table has.
    pub properties: Vec<(String, String)>,
}

/// Why a table cannot look as asked. The spec has to change.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// Iceberg v2 has no such type.
    #[error(
        "column `{column}` has type `{data_type}`, which an Iceberg v2 table cannot hold: cast it"
    )]
    UnsupportedType {
        /// The column.
        column: String,
        /// Its Arrow type.
        data_type: String,
    },
    /// A partition or sort column is missing.
    #[error("`{table}` has no column `{column}` to partition or sort by")]
    NoSuchColumn {
        /// The table.
        table: TableName,
        /// The column.
        column: String,
    },
    /// The iceberg crate refuses the schema.
    #[error("the schema is not a possible table: {0}")]
    Iceberg(#[from] Box<iceberg::Error>),
}

impl From<iceberg::Error> for SchemaError {
    fn from(error: iceberg::Error) -> Self {
        Self::Iceberg(Box::new(error))
    }
}

/// `raw.events`: every accepted event, append-only.
pub static RAW_EVENTS: LazyLock<TableName> = LazyLock::new(|| constant("raw", "events"));
/// `raw.quarantine`: every event that could not be accepted.
pub static RAW_QUARANTINE: LazyLock<TableName> = LazyLock::new(|| constant("raw", "quarantine"));
/// `core.events`: one row per company and message id, made each night from `raw.events`.
pub static CORE_EVENTS: LazyLock<TableName> = LazyLock::new(|| constant("core", "events"));

fn constant(namespace: &str, name: &str) -> TableName {
    TableName::new(namespace, name).expect("constant names are valid")
}

/// Table property of tables whose writers compute text bounds that cover every value of a file. Value
/// `covering`.
pub(crate) const BOUNDS_PROPERTY: &str = "headwater.bounds";

/// Properties of every table. Names without `headwater.` are those of the Iceberg specification.
const PROPERTIES: [(&str, &str); 7] = [
    ("write.format.default", "parquet"),
    ("write.parquet.compression-codec", "zstd"),
    ("write.parquet.compression-level", "3"),
    // Watermarks and history compress tenfold; the name of the file says so to every reader.
    ("write.metadata.compression-codec", "gzip"),
    // A reader has 50 commits of time between reading the catalog and reading the metadata file.
    ("write.metadata.previous-versions-max", "50"),
    ("write.metadata.delete-after-commit.enabled", "true"),
    // `write` computes text bounds that cover all row groups, so the scan may believe them.
    (BOUNDS_PROPERTY, "covering"),
];

impl TableSpec {
    /// Makes a spec from an Arrow schema. Timestamps become microseconds, with a zone if they have
    /// one; small and unsigned integers become `int` or `long`; all string types become `string`.
    pub fn from_arrow(
        name: TableName,
        schema: &ArrowSchema,
        partition: Partition,
    ) -> Result<Self, SchemaError> {
        let fields: Result<Vec<_>, SchemaError> = schema
            .fields()
            .iter()
            .map(|field| {
                let data_type = storable(field.name(), field.data_type())?;
                Ok(Field::new(field.name(), data_type, field.is_nullable()))
            })
            .collect();
        let schema = ArrowSchema::new(fields?);
        let spec = Self {
            name,
            schema: arrow_schema_to_schema_auto_assign_ids(&schema)?,
            partition,
            sort: Vec::new(),
            properties: Vec::new(),
        };
        spec.partition_spec()?;
        Ok(spec)
    }

    /// Returns the spec with files sorted by `columns`.
    pub fn sorted_by(mut self, columns: &[&str]) -> Self {
        self.sort = columns.iter().map(|&column| column.to_owned()).collect();
        self
    }

    /// Returns the spec with one more table property.
    pub fn with_property(mut self, key: &str, value: &str) -> Self {
        self.properties.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn partition_spec(&self) -> Result<UnboundPartitionSpec, SchemaError> {
        let builder = UnboundPartitionSpec::builder();
        let (column, name, transform) = match &self.partition {
            Partition::None => return Ok(builder.build()),
            Partition::Day(column) => (column, format!("{column}_day"), Transform::Day),
            Partition::Identity(column) => (column, column.clone(), Transform::Identity),
        };
        let id = self.field_id(column)?;
        Ok(builder.add_partition_field(id, name, transform)?.build())
    }

    pub(crate) fn sort_order(&self) -> Result<SortOrder, SchemaError> {
        if self.sort.is_empty() {
            return Ok(SortOrder::unsorted_order());
        }
        let mut fields = Vec::new();
        for column in &self.sort {
            fields.push(SortField {
                source_id: self.field_id(column)?,
                transform: Transform::Identity,
                direction: SortDirection::Ascending,
                null_order: NullOrder::First,
            });
        }
        let order = SortOrder::builder()
            .with_order_id(1)
            .with_fields(fields)
            .build(&self.schema)?;
        Ok(order)
    }

    pub(crate) fn all_properties(&self) -> HashMap<String, String> {
        let common = PROPERTIES
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()));
        common.chain(self.properties.iter().cloned()).collect()
    }

    fn field_id(&self, column: &str) -> Result<i32, SchemaError> {
        self.schema
            .field_id_by_name(column)
            .ok_or_else(|| SchemaError::NoSuchColumn {
                table: self.name.clone(),
                column: column.to_owned(),
            })
    }
}

/// Returns the Arrow type that a value of `data_type` is stored as.
fn storable(column: &str, data_type: &DataType) -> Result<DataType, SchemaError> {
    let nested = |field: &Arc<Field>| -> Result<Arc<Field>, SchemaError> {
        let inner = storable(column, field.data_type())?;
        Ok(Arc::new(Field::new(
            field.name(),
            inner,
            field.is_nullable(),
        )))
    };
    Ok(match data_type {
        DataType::Timestamp(_, zone) => DataType::Timestamp(
            TimeUnit::Microsecond,
            zone.as_ref().map(|_| "+00:00".into()),
        ),
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Date64 => DataType::Date32,
        DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Dictionary(_, values) => storable(column, values)?,
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => DataType::List(nested(item)?),
        DataType::Struct(fields) => {
            let fields: Result<Vec<_>, _> = fields.iter().map(nested).collect();
            DataType::Struct(fields?.into())
        }
        DataType::Null
        | DataType::Duration(_)
        | DataType::Interval(_)
        | DataType::Union(..)
        | DataType::Decimal256(..)
        | DataType::RunEndEncoded(..) => {
            return Err(SchemaError::UnsupportedType {
                column: column.to_owned(),
                data_type: data_type.to_string(),
            });
        }
        other => other.clone(),
    })
}

/// Returns the spec of `raw.events`, partitioned by day(received_at).
pub fn raw_events() -> TableSpec {
    let mut columns = Columns::default();
    columns
        .strings(true, &["company_id", "source_id", "message_id"])
        .add(true, "payload_sha256", PrimitiveType::Fixed(16))
        .strings(true, &["type"])
        .add(true, "schema_version", PrimitiveType::Int)
        .add(true, "event_time", PrimitiveType::Timestamptz)
        .add(true, "received_at", PrimitiveType::Timestamptz)
        .strings(true, &["time_rule", "properties", "context"])
        .strings(false, &["event_name", "event_name_raw"])
        .add(false, "original_timestamp", PrimitiveType::Timestamptz)
        .add(false, "sent_at", PrimitiveType::Timestamptz)
        .add(false, "clock_skew_ms", PrimitiveType::Long)
        .strings(
            false,
            &[
                "actor_type",
                "actor_id",
                "anonymous_id",
                "session_id",
                "contact_id",
                "admin_id",
                "team_id",
                "conversation_id",
                "part_id",
                "ticket_id",
                "channel",
                "part_type",
            ],
        )
        .add(false, "rating", PrimitiveType::Int)
        .strings(
            false,
            &[
                "page_url",
                "page_path",
                "locale",
                "timezone",
                "user_agent",
                "ip",
                "library_name",
                "library_version",
                "traits",
            ],
        )
        .add(false, "attempt", PrimitiveType::Int)
        .string_list(false, "flags")
        .string_list(false, "property_violations")
        .strings(true, &["ingest_batch_id"])
        .lineage();
    let spec = columns.spec(&RAW_EVENTS, Partition::Day("received_at".to_owned()));
    ["properties", "context", "traits"]
        .iter()
        .fold(spec, |spec, column| without_bounds(spec, column))
        .sorted_by(&["company_id", "event_time", "message_id"])
        .with_property(
            "write.parquet.bloom-filter-enabled.column.message_id",
            "true",
        )
        .with_property(
            "write.parquet.bloom-filter-enabled.column.conversation_id",
            "true",
        )
}

/// What the column `errors` of `raw.quarantine` says of each thing that is wrong, all of it text, and
/// whether it always does.
const ERROR_FIELDS: [(&str, bool); 5] = [
    ("path", true),
    ("keyword", true),
    ("message", true),
    ("expected", false),
    ("actual_type", false),
];

/// Returns the spec of `raw.quarantine`, partitioned by day(received_at).
pub fn raw_quarantine() -> TableSpec {
    let mut columns = Columns::default();
    columns
        .strings(true, &["quarantine_id"])
        .strings(false, &["company_id", "source_id"])
        .add(true, "received_at", PrimitiveType::Timestamptz)
        .add(true, "failed_at", PrimitiveType::Timestamptz)
        .strings(true, &["failure_type"])
        .struct_list(true, "errors", &ERROR_FIELDS)
        .strings(
            false,
            &["event_name", "message_id", "http_path", "ip", "user_agent"],
        )
        .add(true, "payload", PrimitiveType::Binary)
        .add(true, "payload_truncated", PrimitiveType::Boolean)
        .add(true, "actual_bytes", PrimitiveType::Long)
        .strings(true, &["replay_status"])
        .strings(
            false,
            &[
                "schema_ref",
                "processor_version",
                "source_kind",
                "event_type",
                "batch_sent_at",
            ],
        )
        .add(false, "attempt", PrimitiveType::Int)
        .add(false, "clock_skew_ms", PrimitiveType::Long)
        .strings(true, &["processor_name"])
        .add(true, "maximum_allowed_bytes", PrimitiveType::Long)
        .add(true, "retention_until", PrimitiveType::Timestamptz)
        .strings(false, &["content_type", "encoding"])
        .lineage();
    let spec = columns.spec(&RAW_QUARANTINE, Partition::Day("received_at".to_owned()));
    without_bounds(spec, "payload")
}

/// Bounds of a long free-form column help no query and make manifests large.
fn without_bounds(spec: TableSpec, column: &str) -> TableSpec {
    spec.with_property(&format!("write.metadata.metrics.column.{column}"), "counts")
}

/// Collects columns in order.
#[derive(Default)]
struct Columns {
    fields: Vec<Arc<NestedField>>,
    last_id: i32,
}

impl Columns {
    fn next_id(&mut self) -> i32 {
        self.last_id += 1;
        self.last_id
    }

    fn add(&mut self, required: bool, name: &str, primitive: PrimitiveType) -> &mut Self {
        let id = self.next_id();
        let field = NestedField::new(id, name, Type::Primitive(primitive), required);
        self.fields.push(Arc::new(field));
        self
    }

    fn strings(&mut self, required: bool, names: &[&str]) -> &mut Self {
        for name in names {
            self.add(required, name, PrimitiveType::String);
        }
        self
    }

    fn string_list(&mut self, required: bool, name: &str) -> &mut Self {
        let id = self.next_id();
        let string = Type::Primitive(PrimitiveType::String);
        let element = NestedField::list_element(self.next_id(), string, true);
        self.push_list(id, required, name, element)
    }

    /// Adds a list of structs of strings; each field with whether it is required.
    fn struct_list(&mut self, required: bool, name: &str, fields: &[(&str, bool)]) -> &mut Self {
        let (id, element_id) = (self.next_id(), self.next_id());
        let string = Type::Primitive(PrimitiveType::String);
        let fields = fields.iter().map(|&(name, required)| {
            Arc::new(NestedField::new(
                self.next_id(),
                name,
                string.clone(),
                required,
            ))
        });
        let item = Type::Struct(StructType::new(fields.collect()));
        let element = NestedField::list_element(element_id, item, true);
        self.push_list(id, required, name, element)
    }

    fn push_list(
        &mut self,
        id: i32,
        required: bool,
        name: &str,
        element: NestedField,
    ) -> &mut Self {
        let list = Type::List(ListType::new(Arc::new(element)));
        self.fields
            .push(Arc::new(NestedField::new(id, name, list, required)));
        self
    }

    /// The position of the event: what makes it countable and never double.
    fn lineage(&mut self) -> &mut Self {
        self.strings(true, &["_agent_id"])
            .add(true, "_epoch", PrimitiveType::Long)
            .add(true, "_sequence", PrimitiveType::Long)
    }

    fn spec(&mut self, name: &TableName, partition: Partition) -> TableSpec {
        let fields = std::mem::take(&mut self.fields);
        let schema = Schema::builder().with_fields(fields).build();
        TableSpec {
            name: name.clone(),
            schema: schema.expect("constant columns have unique names and ids"),
            partition,
            sort: Vec::new(),
            properties: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_specs_are_possible_tables() {
        for (spec, columns) in [(raw_events(), 45), (raw_quarantine(), 31)] {
            assert_eq!(
                spec.schema.as_struct().fields().len(),
                columns,
                "{}",
                spec.name
            );
            assert_eq!(spec.partition_spec().unwrap().fields().len(), 1);
            spec.sort_order().unwrap();
        }
    }

    #[test]
    fn arrow_types_become_types_that_every_engine_reads() {
        let zoned = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        let arrow = ArrowSchema::new(vec![
            Field::new("at", zoned, false),
            Field::new("n", DataType::UInt64, true),
            Field::new("s", DataType::Utf8View, true),
            Field::new(
                "l",
                DataType::new_large_list(DataType::LargeUtf8, true),
                true,
            ),
            Field::new("d", DataType::Date32, false),
        ]);
        let name: TableName = "reports.volume".parse().unwrap();
        let spec =
            TableSpec::from_arrow(name, &arrow, Partition::Identity("d".to_owned())).unwrap();
        let types: Vec<String> = spec
            .schema
            .as_struct()
            .fields()
            .iter()
            .map(|field| field.field_type.to_string())
            .collect();
        assert_eq!(types[..3], ["timestamptz", "long", "string"]);
        assert_eq!(types[4], "date");
    }

    #[test]
    fn a_type_that_iceberg_lacks_names_the_column() {
        let arrow = ArrowSchema::new(vec![Field::new("gap", DataType::Null, true)]);
        let name: TableName = "reports.x".parse().unwrap();
        let error = TableSpec::from_arrow(name, &arrow, Partition::None).unwrap_err();
        assert!(error.to_string().contains("`gap`"), "{error}");
    }
}
