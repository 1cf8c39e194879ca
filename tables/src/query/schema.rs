//! The schema SQL sees, and how the columns of older files map to it.
//!
//! Place on the event's path: between the table's Iceberg schema and DataFusion. Promise: plain Arrow
//! types without field metadata, UTC timestamps named `UTC`, and columns found by Iceberg field id: an
//! added column reads as null in older files, a renamed one keeps its values, and a new column with a
//! dropped one's name does not see its values.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr_adapter::{
    DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory,
};
use iceberg::spec::TableMetadata;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

/// Returns the Arrow schema of a table as SQL sees it.
pub(super) fn sql_schema(schema: &iceberg::spec::Schema) -> iceberg::Result<SchemaRef> {
    let arrow = iceberg::arrow::schema_to_arrow_schema(schema)?;
    let fields: Vec<FieldRef> = arrow.fields().iter().map(plain_field).collect();
    Ok(Arc::new(Schema::new(fields)))
}

fn plain_field(field: &FieldRef) -> FieldRef {
    Arc::new(Field::new(
        field.name(),
        plain_type(field.data_type()),
        field.is_nullable(),
    ))
}

fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("UTC".into())),
        DataType::List(element) => DataType::List(plain_field(element)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain_field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(plain_field(entries), *sorted),
        other => other.clone(),
    }
}

/// Returns how to find columns by field id, or `None` when their names do: DataFusion's own lookup by
/// name then gives the same answer, and the plan stays one that Ballista can ship.
pub(super) fn column_lookup(
    metadata: &TableMetadata,
) -> Option<Arc<dyn PhysicalExprAdapterFactory>> {
    let current = metadata.current_schema().as_struct().fields();
    let names: BTreeSet<(i32, &str)> = current
        .iter()
        .map(|field| (field.id, field.name.as_str()))
        .collect();
    let moved = metadata
        .schemas_iter()
        .flat_map(|schema| schema.as_struct().fields())
        .filter(|old| !names.contains(&(old.id, old.name.as_str())))
        .any(|old| {
            current
                .iter()
                .any(|new| new.id == old.id || new.name == old.name)
        });
    moved.then(|| {
        let names = current
            .iter()
            .map(|field| (field.id, field.name.clone()))
            .collect();
        Arc::new(ByFieldId { names }) as _
    })
}

/// Finds a file's columns by the field id in its Parquet schema.
#[derive(Debug)]
struct ByFieldId {
    /// The table's top-level columns.
    names: HashMap<i32, String>,
}

impl PhysicalExprAdapterFactory for ByFieldId {
    fn create(
        &self,
        logical_file_schema: SchemaRef,
        physical_file_schema: SchemaRef,
    ) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let fields: Vec<FieldRef> = physical_file_schema
            .fields()
            .iter()
            .map(|field| self.under_table_name(field))
            .collect();
        let renamed = Arc::new(Schema::new(fields));
        let by_name = DefaultPhysicalExprAdapterFactory.create(logical_file_schema, renamed)?;
        Ok(Arc::new(ByFieldIdAdapter {
            by_name,
            file: physical_file_schema,
        }))
    }
}

impl ByFieldId {
    /// Returns the file's field under the name that its id has in the table. A column the table has
    /// dropped gets a name that no table column can have.
    fn under_table_name(&self, field: &FieldRef) -> FieldRef {
        let Some(id) = field
            .metadata()
            .get(PARQUET_FIELD_ID_META_KEY)
            .and_then(|id| id.parse::<i32>().ok())
        else {
            return Arc::clone(field);
        };
        let name = self
            .names
            .get(&id)
            .cloned()
            .unwrap_or_else(|| format!("\u{0}dropped {id}"));
        Arc::new(field.as_ref().clone().with_name(name))
    }
}

/// Rewrites an expression on table columns to one on the columns of one file.
#[derive(Debug)]
struct ByFieldIdAdapter {
    by_name: Arc<dyn PhysicalExprAdapter>,
    file: SchemaRef,
}

impl PhysicalExprAdapter for ByFieldIdAdapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        self.by_name
            .rewrite(expr)?
            .transform(|expr| {
                let Some(column) = expr.downcast_ref::<Column>() else {
                    return Ok(Transformed::no(expr));
                };
                let name = self.file.field(column.index()).name();
                Ok(Transformed::yes(
                    Arc::new(Column::new(name, column.index())) as _,
                ))
            })
            .data()
    }
}
