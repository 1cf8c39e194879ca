//! A table with a column of each kind that filters are written on, and rows for it.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Float64Array, Int32Array, Int64Array, ListBuilder,
    RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, SchemaRef};
use iceberg::spec::{ListType, NestedField, PrimitiveType, Schema, Type};

/// 2026-11-01T00:00:00Z.
pub(crate) const FIRST_DAY_MICROS: i64 = 1_793_491_200_000_000;
pub(crate) const HOUR_MICROS: i64 = 3_600_000_000;

pub(crate) fn schema() -> Schema {
    let required = |id, name, kind| NestedField::required(id, name, Type::Primitive(kind)).into();
    let optional = |id, name, kind| NestedField::optional(id, name, Type::Primitive(kind)).into();
    let flag = NestedField::list_element(10, Type::Primitive(PrimitiveType::String), false);
    Schema::builder()
        .with_fields(vec![
            required(1, "id", PrimitiveType::Long),
            required(2, "company", PrimitiveType::String),
            required(3, "at", PrimitiveType::Timestamptz),
            optional(4, "day", PrimitiveType::Date),
            optional(5, "rating", PrimitiveType::Int),
            optional(6, "price", PrimitiveType::Double),
            optional(7, "open", PrimitiveType::Boolean),
            optional(8, "note", PrimitiveType::String),
            NestedField::optional(9, "flags", Type::List(ListType::new(flag.into()))).into(),
        ])
        .build()
        .unwrap()
}

/// Returns rows with ids from `first`, one per hour, so that twenty-four ids fill a day.
pub(crate) fn rows(schema: &SchemaRef, first: i64, count: i64) -> RecordBatch {
    let ids: Vec<i64> = (first..first + count).collect();
    let texts = |text: fn(i64) -> Option<String>| -> ArrayRef {
        Arc::new(ids.iter().map(|id| text(*id)).collect::<StringArray>())
    };
    let at = ids
        .iter()
        .map(|id| FIRST_DAY_MICROS + id * HOUR_MICROS + id % 7);
    let days = ids.iter().map(|id| {
        let day = i32::try_from((FIRST_DAY_MICROS + id * HOUR_MICROS) / (24 * HOUR_MICROS));
        (id % 11 != 0).then(|| day.unwrap())
    });
    let ratings = ids
        .iter()
        .map(|id| (id % 3 != 0).then(|| (id % 5) as i32 + 1));
    let prices = ids
        .iter()
        .map(|id| (id % 13 != 0).then(|| (id % 100) as f64 / 4.0));
    let open = ids.iter().map(|id| (id % 17 != 0).then(|| id % 2 == 0));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(ids.clone())),
        texts(|id| Some(format!("c{}", id / 40))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(at).with_timezone("+00:00")),
        Arc::new(days.collect::<Date32Array>()),
        Arc::new(ratings.collect::<Int32Array>()),
        Arc::new(prices.collect::<Float64Array>()),
        Arc::new(open.collect::<BooleanArray>()),
        texts(|id| (id % 2 == 0).then(|| format!("{}-{}", id % 9, "x".repeat(80)))),
        flags(schema, &ids),
    ];
    RecordBatch::try_new(Arc::clone(schema), columns).unwrap()
}

fn flags(schema: &SchemaRef, ids: &[i64]) -> ArrayRef {
    let DataType::List(element) = schema.field_with_name("flags").unwrap().data_type() else {
        unreachable!("flags is a list");
    };
    let mut list = ListBuilder::new(StringBuilder::new()).with_field(Arc::clone(element));
    for id in ids {
        for flag in 0..id % 3 {
            list.values().append_value(format!("f{flag}"));
        }
        list.append(id % 4 != 0);
    }
    Arc::new(list.finish())
}
