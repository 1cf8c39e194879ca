//! What the metadata says about the values in a file or a manifest: bounds, nulls, rows.
//!
//! Place on the event's path: read from manifests, used to skip files, to answer COUNT, MIN and MAX
//! without a scan, and to choose join orders. Promise: a range holds every value of its column or is
//! absent, and is called exact only when both ends really occur.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, ColumnStatistics, ScalarValue, Statistics};
use iceberg::spec::{
    DataFile, Datum, FieldSummary, PartitionSpec, PrimitiveLiteral, PrimitiveType, Transform, Type,
};

const MICROS_PER_DAY: i64 = 86_400_000_000;
const MICROS_PER_HOUR: i64 = 3_600_000_000;

/// What is known about one column of one file or manifest.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ColumnBounds {
    pub(super) field_id: i32,
    pub(super) min: Option<PrimitiveLiteral>,
    pub(super) max: Option<PrimitiveLiteral>,
    pub(super) nulls: Option<u64>,
    /// Both ends of the range occur in the column.
    pub(super) exact: bool,
}

impl ColumnBounds {
    /// Returns the heap and inline size, for the cache's budget.
    pub(super) fn bytes(&self) -> usize {
        let text = |end: &Option<PrimitiveLiteral>| match end {
            Some(PrimitiveLiteral::String(text)) => text.len(),
            _ => 0,
        };
        size_of::<Self>() + text(&self.min) + text(&self.max)
    }
}

/// Returns what the manifest entry says about the columns of a data file: the writer's statistics, or
/// the partition value where it wrote none. `covering` says that the writer's text bounds hold.
pub(super) fn of_file(
    file: &DataFile,
    spec: &PartitionSpec,
    schema: &iceberg::spec::Schema,
    covering: bool,
) -> Box<[ColumnBounds]> {
    let mut ids: Vec<i32> = file
        .value_counts()
        .keys()
        .chain(file.null_value_counts().keys())
        .chain(file.lower_bounds().keys())
        .copied()
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let mut columns: Vec<ColumnBounds> = ids
        .iter()
        .map(|id| of_column(file, *id, covering))
        .collect();
    let values = file.partition().fields().iter();
    for (field, value) in spec.fields().iter().zip(values) {
        let Some(value) = value
            .as_ref()
            .and_then(|value| value.as_primitive_literal())
        else {
            continue;
        };
        let Some(source) = source_type(schema, field.source_id) else {
            continue;
        };
        if let Some((min, max)) = source_range(field.transform, source, &value, &value) {
            fill(&mut columns, field.source_id, min, max);
        }
    }
    columns.into_boxed_slice()
}

/// Returns what the manifest list says about the files of a manifest.
pub(super) fn of_manifest(
    summaries: &[FieldSummary],
    spec: &PartitionSpec,
    schema: &iceberg::spec::Schema,
) -> Vec<ColumnBounds> {
    let mut columns = Vec::new();
    for (field, summary) in spec.fields().iter().zip(summaries) {
        let Some(source) = source_type(schema, field.source_id) else {
            continue;
        };
        // The range covers the non-null values only; a null partition value means null in the column,
        // which no comparison selects, and IS NULL is not decided by a range.
        let end = |bytes: Option<&Vec<u8>>| partition_datum(field.transform, source, bytes?);
        let lower = end(summary.lower_bound.as_deref());
        let upper = end(summary.upper_bound.as_deref());
        let range = lower.zip(upper).and_then(|(lower, upper)| {
            source_range(field.transform, source, lower.literal(), upper.literal())
        });
        if let Some((min, max)) = range {
            fill(&mut columns, field.source_id, min, max);
        }
    }
    columns
}

fn of_column(file: &DataFile, field_id: i32, covering: bool) -> ColumnBounds {
    let end = |bounds: Option<&Datum>| {
        bounds
            .filter(|datum| is_sound(file, field_id, datum, covering))
            .map(|datum| datum.literal().clone())
    };
    let min = end(file.lower_bounds().get(&field_id));
    let max = end(file.upper_bounds().get(&field_id));
    let is_text = matches!(min, Some(PrimitiveLiteral::String(_)))
        || matches!(max, Some(PrimitiveLiteral::String(_)));
    ColumnBounds {
        field_id,
        exact: min.is_some() && max.is_some() && !is_text,
        min,
        max,
        nulls: file.null_value_counts().get(&field_id).copied(),
    }
}

/// Says whether a bound may be used to skip the file.
///
/// - Text: the iceberg crate's writer (0.10.1) merges the bounds of a file's row groups and leaves out
///   those that Parquet truncated, so its text bounds hold only for files with one row group.
/// - Floating point: bounds leave NaN out, which SQL sorts above every number.
/// - Binary: nobody filters by it.
fn is_sound(file: &DataFile, field_id: i32, bound: &Datum, covering: bool) -> bool {
    match bound.data_type() {
        PrimitiveType::String => {
            covering || file.split_offsets().is_some_and(|groups| groups.len() == 1)
        }
        PrimitiveType::Float | PrimitiveType::Double => {
            file.nan_value_counts().get(&field_id) == Some(&0) && !bound.is_nan()
        }
        PrimitiveType::Binary | PrimitiveType::Fixed(_) | PrimitiveType::Uuid => false,
        _ => true,
    }
}

fn source_type(schema: &iceberg::spec::Schema, field_id: i32) -> Option<&PrimitiveType> {
    schema
        .field_by_id(field_id)
        .and_then(|field| field.field_type.as_primitive_type())
}

/// Adds a range for a column that has none. It is never exact: a partition value says where values
/// may be, not that they are there.
fn fill(
    columns: &mut Vec<ColumnBounds>,
    field_id: i32,
    min: PrimitiveLiteral,
    max: PrimitiveLiteral,
) {
    let (min, max) = (Some(min), Some(max));
    match columns
        .iter_mut()
        .find(|column| column.field_id == field_id)
    {
        Some(column) if column.min.is_none() && column.max.is_none() => {
            (column.min, column.max, column.exact) = (min, max, false);
        }
        Some(_) => {}
        None => columns.push(ColumnBounds {
            field_id,
            min,
            max,
            nulls: None,
            exact: false,
        }),
    }
}

fn partition_datum(transform: Transform, source: &PrimitiveType, bytes: &[u8]) -> Option<Datum> {
    let result = transform
        .result_type(&Type::Primitive(source.clone()))
        .ok()?;
    Datum::try_from_bytes(bytes, result.as_primitive_type()?.clone()).ok()
}

/// Returns the range of column values that a range of partition values stands for, for the transforms
/// that keep the order closely enough to prune by.
fn source_range(
    transform: Transform,
    source: &PrimitiveType,
    lower: &PrimitiveLiteral,
    upper: &PrimitiveLiteral,
) -> Option<(PrimitiveLiteral, PrimitiveLiteral)> {
    let unit = match (transform, source) {
        (Transform::Identity, PrimitiveType::Float | PrimitiveType::Double) => return None,
        (Transform::Identity, _) => return Some((lower.clone(), upper.clone())),
        (Transform::Day, PrimitiveType::Date) => return Some((lower.clone(), upper.clone())),
        (Transform::Day, PrimitiveType::Timestamp | PrimitiveType::Timestamptz) => MICROS_PER_DAY,
        (Transform::Hour, PrimitiveType::Timestamp | PrimitiveType::Timestamptz) => MICROS_PER_HOUR,
        _ => return None,
    };
    let (PrimitiveLiteral::Int(lower), PrimitiveLiteral::Int(upper)) = (lower, upper) else {
        return None;
    };
    // Old writers rounded instants before 1970 towards zero, one unit too late.
    let first = i64::from(*lower) - i64::from(*lower <= 0);
    let end = i64::from(*upper) + 1;
    Some((
        PrimitiveLiteral::Long(first.saturating_mul(unit)),
        PrimitiveLiteral::Long(end.saturating_mul(unit).saturating_sub(1)),
    ))
}

/// Returns the literal as a value of the column's Arrow type, `None` when it is of another type.
fn scalar(literal: &PrimitiveLiteral, data_type: &DataType) -> Option<ScalarValue> {
    use PrimitiveLiteral as L;
    Some(match (literal, data_type) {
        (L::Boolean(value), DataType::Boolean) => ScalarValue::Boolean(Some(*value)),
        (L::Int(value), DataType::Int32) => ScalarValue::Int32(Some(*value)),
        (L::Int(value), DataType::Int64) => ScalarValue::Int64(Some(i64::from(*value))),
        (L::Long(value), DataType::Int64) => ScalarValue::Int64(Some(*value)),
        (L::Int(value), DataType::Date32) => ScalarValue::Date32(Some(*value)),
        (L::Long(value), DataType::Timestamp(TimeUnit::Microsecond, zone)) => {
            ScalarValue::TimestampMicrosecond(Some(*value), zone.clone())
        }
        (L::Long(value), DataType::Timestamp(TimeUnit::Nanosecond, zone)) => {
            ScalarValue::TimestampNanosecond(Some(*value), zone.clone())
        }
        (L::Long(value), DataType::Time64(TimeUnit::Microsecond)) => {
            ScalarValue::Time64Microsecond(Some(*value))
        }
        (L::Float(value), DataType::Float32) => ScalarValue::Float32(Some(value.0)),
        (L::Float(value), DataType::Float64) => ScalarValue::Float64(Some(f64::from(value.0))),
        (L::Double(value), DataType::Float64) => ScalarValue::Float64(Some(value.0)),
        (L::String(value), DataType::Utf8) => ScalarValue::Utf8(Some(value.clone())),
        (L::Int128(value), DataType::Decimal128(precision, scale)) => {
            ScalarValue::Decimal128(Some(*value), *precision, *scale)
        }
        _ => return None,
    })
}

/// The columns of a table: its SQL schema with the field id of each column.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    pub(super) schema: SchemaRef,
    pub(super) field_ids: Arc<[i32]>,
}

/// Bounds of several files or manifests, as DataFusion's pruning asks for them.
pub(super) struct Containers<'a> {
    pub(super) columns: &'a Columns,
    pub(super) bounds: Vec<&'a [ColumnBounds]>,
    /// Rows of each container, when known.
    pub(super) rows: Option<Vec<u64>>,
}

impl Containers<'_> {
    fn ends(
        &self,
        column: &Column,
        end: fn(&ColumnBounds) -> Option<&PrimitiveLiteral>,
    ) -> Option<ArrayRef> {
        let (field_id, data_type) = self.find(column)?;
        let unknown = ScalarValue::try_from(data_type).ok()?;
        let values = self.bounds.iter().map(|bounds| {
            find(bounds, field_id)
                .and_then(end)
                .and_then(|literal| scalar(literal, data_type))
                .unwrap_or_else(|| unknown.clone())
        });
        ScalarValue::iter_to_array(values).ok()
    }

    fn find(&self, column: &Column) -> Option<(i32, &DataType)> {
        let index = self.columns.schema.index_of(column.name()).ok()?;
        let field = self.columns.schema.field(index);
        Some((self.columns.field_ids[index], field.data_type()))
    }
}

fn find(bounds: &[ColumnBounds], field_id: i32) -> Option<&ColumnBounds> {
    bounds.iter().find(|column| column.field_id == field_id)
}

impl PruningStatistics for Containers<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.ends(column, |bounds| bounds.min.as_ref())
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.ends(column, |bounds| bounds.max.as_ref())
    }

    fn num_containers(&self) -> usize {
        self.bounds.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let (field_id, _) = self.find(column)?;
        let counts: UInt64Array = self
            .bounds
            .iter()
            .map(|bounds| find(bounds, field_id).and_then(|column| column.nulls))
            .collect();
        Some(Arc::new(counts))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        let rows = self.rows.as_ref()?;
        Some(Arc::new(UInt64Array::from(rows.clone())))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// Returns the statistics of one file for the columns that `wanted` selects; those of the others are
/// left out because nothing would read them.
pub(super) fn file_statistics(
    columns: &Columns,
    wanted: &[bool],
    bounds: &[ColumnBounds],
    rows: u64,
    size_bytes: u64,
) -> Statistics {
    let column_statistics = columns
        .schema
        .fields()
        .iter()
        .enumerate()
        .map(|(index, field)| {
            wanted[index]
                .then(|| find(bounds, columns.field_ids[index]))
                .flatten()
                .map_or_else(ColumnStatistics::new_unknown, |known| {
                    column_statistics(known, field.data_type())
                })
        })
        .collect();
    Statistics {
        num_rows: Precision::Exact(usize::try_from(rows).unwrap_or(usize::MAX)),
        total_byte_size: Precision::Inexact(usize::try_from(size_bytes).unwrap_or(usize::MAX)),
        column_statistics,
    }
}

fn column_statistics(bounds: &ColumnBounds, data_type: &DataType) -> ColumnStatistics {
    let end = |literal: &Option<PrimitiveLiteral>| {
        let value = literal.as_ref().and_then(|value| scalar(value, data_type));
        match value {
            Some(value) if bounds.exact => Precision::Exact(value),
            Some(value) => Precision::Inexact(value),
            None => Precision::Absent,
        }
    };
    let nulls = bounds.nulls.and_then(|nulls| usize::try_from(nulls).ok());
    ColumnStatistics::new_unknown()
        .with_min_value(end(&bounds.min))
        .with_max_value(end(&bounds.max))
        .with_null_count(nulls.map_or(Precision::Absent, Precision::Exact))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day_range(day: i32) -> (PrimitiveLiteral, PrimitiveLiteral) {
        let day = PrimitiveLiteral::Int(day);
        source_range(Transform::Day, &PrimitiveType::Timestamptz, &day, &day).unwrap()
    }

    #[test]
    fn a_day_covers_its_first_and_last_microsecond() {
        let (min, max) = day_range(1);
        assert_eq!(min, PrimitiveLiteral::Long(MICROS_PER_DAY));
        assert_eq!(max, PrimitiveLiteral::Long(2 * MICROS_PER_DAY - 1));
    }

    #[test]
    fn a_day_before_1970_also_covers_what_old_writers_put_there() {
        assert_eq!(day_range(0).0, PrimitiveLiteral::Long(-MICROS_PER_DAY));
        assert_eq!(day_range(-2).0, PrimitiveLiteral::Long(-3 * MICROS_PER_DAY));
    }

    #[test]
    fn an_instant_out_of_range_saturates() {
        assert_eq!(day_range(i32::MAX).1, PrimitiveLiteral::Long(i64::MAX - 1));
    }

    #[test]
    fn transforms_that_lose_the_order_give_no_range() {
        let value = PrimitiveLiteral::Int(3);
        let range = |transform| source_range(transform, &PrimitiveType::String, &value, &value);
        assert_eq!(range(Transform::Bucket(16)), None);
        assert_eq!(range(Transform::Truncate(4)), None);
    }
}
