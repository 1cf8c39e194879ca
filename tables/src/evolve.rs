//! How an existing table becomes what a spec asks for, without touching a row.
//!
//! Place on the event's path: before the first write of a new version of a writer. Promise: old files
//! stay readable as they are, because fields keep their ids and only become wider or nullable.

use std::collections::HashMap;
use std::sync::Arc;

use iceberg::TableUpdate;
use iceberg::spec::{
    ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, Schema, StructType, Type,
};
use iceberg::table::Table;

use crate::catalog::CatalogError;
use crate::schema::TableSpec;

/// Returns the updates that make `table` fit `spec`; none when it fits.
pub(crate) fn updates(table: &Table, spec: &TableSpec) -> Result<Vec<TableUpdate>, CatalogError> {
    let incompatible = |reason: String| CatalogError::Incompatible {
        table: spec.name.clone(),
        reason,
    };
    check_partition(table, spec)?.map_or(Ok(()), |reason| Err(incompatible(reason)))?;
    let mut updates = Vec::new();
    if let Some(fields) = evolved_fields(table, spec).map_err(incompatible)? {
        let current = table.metadata().current_schema();
        let schema = Schema::builder()
            .with_fields(fields)
            .with_identifier_field_ids(current.identifier_field_ids())
            .build()
            .map_err(|error| incompatible(error.to_string()))?;
        updates.push(TableUpdate::AddSchema { schema });
        // -1 is the schema that was added last.
        updates.push(TableUpdate::SetCurrentSchema { schema_id: -1 });
    }
    let present = table.metadata().properties();
    let missing: HashMap<_, _> = spec
        .all_properties()
        .into_iter()
        .filter(|(key, _)| !present.contains_key(key))
        .collect();
    if !missing.is_empty() {
        updates.push(TableUpdate::SetProperties { updates: missing });
    }
    Ok(updates)
}

/// Returns the fields of the evolved schema, `None` when nothing changes.
fn evolved_fields(table: &Table, spec: &TableSpec) -> Result<Option<Vec<NestedFieldRef>>, String> {
    let metadata = table.metadata();
    let wanted = &spec.schema;
    let mut changed = false;
    let mut fields = Vec::new();
    for field in metadata.current_schema().as_struct().fields() {
        let evolved = match wanted.field_by_name(&field.name) {
            Some(wanted) => evolve_field(field, wanted)?,
            None if field.required => {
                return Err(format!(
                    "required column `{}` is no longer written",
                    field.name
                ));
            }
            None => None,
        };
        changed |= evolved.is_some();
        fields.push(evolved.unwrap_or_else(|| field.clone()));
    }
    let mut last_id = metadata.last_column_id();
    for field in wanted.as_struct().fields() {
        if metadata
            .current_schema()
            .field_by_name(&field.name)
            .is_some()
        {
            continue;
        }
        if field.required {
            return Err(format!(
                "new column `{}` is required, and existing rows have no value for it: make it nullable",
                field.name
            ));
        }
        fields.push(with_new_ids(field, &mut last_id));
        changed = true;
    }
    Ok(changed.then_some(fields))
}

/// Returns the field as it must become, `None` when it may stay.
fn evolve_field(
    present: &NestedFieldRef,
    wanted: &NestedField,
) -> Result<Option<NestedFieldRef>, String> {
    let wider = match widened(&present.field_type, &wanted.field_type) {
        Widened::Same => None,
        Widened::To(wider) => Some(wider),
        Widened::Never => {
            return Err(format!(
                "column `{}` is `{}` and `{}` is wanted",
                present.name,
                in_words(&present.field_type),
                in_words(&wanted.field_type)
            ));
        }
    };
    let relaxes = present.required && !wanted.required;
    if wider.is_none() && !relaxes {
        return Ok(None);
    }
    let mut field = present.as_ref().clone();
    if let Some(wider) = wider {
        field.field_type = Box::new(Type::Primitive(wider));
    }
    field.required &= wanted.required;
    Ok(Some(Arc::new(field)))
}

enum Widened {
    Same,
    To(PrimitiveType),
    Never,
}

fn widened(present: &Type, wanted: &Type) -> Widened {
    use PrimitiveType::{Double, Float, Int, Long};
    let (Type::Primitive(present), Type::Primitive(wanted)) = (present, wanted) else {
        return if same_shape(present, wanted) {
            Widened::Same
        } else {
            Widened::Never
        };
    };
    match (present, wanted) {
        (present, wanted) if present == wanted => Widened::Same,
        // The table is wider already: values are cast when they are written.
        (Long, Int) | (Double, Float) => Widened::Same,
        (Int, Long) => Widened::To(Long),
        (Float, Double) => Widened::To(Double),
        _ => Widened::Never,
    }
}

/// Returns the type as Spark writes it, with what is in it and without field ids.
fn in_words(field_type: &Type) -> String {
    match field_type {
        Type::Primitive(primitive) => primitive.to_string(),
        Type::List(list) => format!("list<{}>", in_words(&list.element_field.field_type)),
        Type::Map(map) => format!(
            "map<{}, {}>",
            in_words(&map.key_field.field_type),
            in_words(&map.value_field.field_type)
        ),
        Type::Struct(fields) => {
            let fields = fields.fields().iter();
            let fields = fields.map(|it| format!("{}: {}", it.name, in_words(&it.field_type)));
            format!("struct<{}>", fields.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Compares nested types without their field ids.
fn same_shape(left: &Type, right: &Type) -> bool {
    match (left, right) {
        (Type::Primitive(left), Type::Primitive(right)) => left == right,
        (Type::List(left), Type::List(right)) => same_shape(
            &left.element_field.field_type,
            &right.element_field.field_type,
        ),
        (Type::Map(left), Type::Map(right)) => {
            same_shape(&left.key_field.field_type, &right.key_field.field_type)
                && same_shape(&left.value_field.field_type, &right.value_field.field_type)
        }
        (Type::Struct(left), Type::Struct(right)) => {
            let (left, right) = (left.fields(), right.fields());
            left.len() == right.len()
                && left.iter().zip(right).all(|(left, right)| {
                    left.name == right.name && same_shape(&left.field_type, &right.field_type)
                })
        }
        _ => false,
    }
}

fn with_new_ids(field: &NestedField, last_id: &mut i32) -> NestedFieldRef {
    *last_id += 1;
    let mut renumbered = field.clone();
    renumbered.id = *last_id;
    renumbered.field_type = Box::new(type_with_new_ids(&field.field_type, last_id));
    Arc::new(renumbered)
}

fn type_with_new_ids(field_type: &Type, last_id: &mut i32) -> Type {
    match field_type {
        Type::Primitive(primitive) => Type::Primitive(primitive.clone()),
        Type::List(list) => Type::List(ListType::new(with_new_ids(&list.element_field, last_id))),
        Type::Map(map) => Type::Map(MapType::new(
            with_new_ids(&map.key_field, last_id),
            with_new_ids(&map.value_field, last_id),
        )),
        Type::Struct(fields) => {
            let fields = fields.fields().iter();
            Type::Struct(StructType::new(
                fields.map(|field| with_new_ids(field, last_id)).collect(),
            ))
        }
    }
}

/// Returns what differs between the partitioning of the table and that of the spec.
fn check_partition(table: &Table, spec: &TableSpec) -> Result<Option<String>, CatalogError> {
    let present = table.metadata().default_partition_spec();
    let wanted = spec.partition_spec()?;
    let same = present.fields().len() == wanted.fields().len()
        && present
            .fields()
            .iter()
            .zip(wanted.fields())
            .all(|(present, wanted)| {
                let column = |schema: &Schema, id| schema.name_by_field_id(id).map(str::to_owned);
                present.transform == wanted.transform
                    && column(table.metadata().current_schema(), present.source_id)
                        == column(&spec.schema, wanted.source_id)
            });
    Ok((!same).then(|| {
        format!(
            "it is partitioned differently from `{:?}`, and a table keeps its partitioning",
            spec.partition
        )
    }))
}
