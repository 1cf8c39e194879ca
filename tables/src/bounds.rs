//! Column statistics of a written file, as Iceberg wants them.
//!
//! Place on the event's path: between a closed Parquet file and its entry in a manifest. The
//! statistics are read from the Parquet footer here because the iceberg crate's writer skips a bound
//! that was truncated in one row group and takes the file's bound from the others, which is too
//! narrow. Promise: a bound covers every value of the file, or is absent.

use std::collections::{HashMap, HashSet};

use iceberg::Error;
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, PrimitiveType, Schema,
    Struct, Type,
};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::statistics::Statistics;

/// Where a file is and what it belongs to.
pub(crate) struct WrittenFile {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) partition: Struct,
    pub(crate) partition_spec_id: i32,
}

/// Describes a written file, with counts and bounds of its top-level primitive columns.
pub(crate) fn describe(
    file: WrittenFile,
    schema: &Schema,
    footer: &ParquetMetaData,
) -> Result<DataFile, Error> {
    let mut columns = ColumnStatistics::default();
    for row_group in footer.row_groups() {
        for chunk in row_group.columns() {
            columns.add(schema, chunk)?;
        }
    }
    let rows = u64::try_from(footer.file_metadata().num_rows()).unwrap_or(0);
    let offsets = footer.row_groups().iter();
    let offsets = offsets.filter_map(|row_group| row_group.file_offset());
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_path(file.path)
        .file_format(DataFileFormat::Parquet)
        .partition(file.partition)
        .partition_spec_id(file.partition_spec_id)
        .record_count(rows)
        .file_size_in_bytes(file.bytes)
        .column_sizes(columns.sizes)
        .value_counts(columns.values)
        .null_value_counts(columns.nulls)
        .lower_bounds(columns.lower)
        .upper_bounds(columns.upper)
        .split_offsets(Some(offsets.collect()));
    builder.build().map_err(|error| {
        Error::new(
            iceberg::ErrorKind::Unexpected,
            "the data file is not described",
        )
        .with_source(error)
    })
}

#[derive(Default)]
struct ColumnStatistics {
    sizes: HashMap<i32, u64>,
    values: HashMap<i32, u64>,
    nulls: HashMap<i32, u64>,
    lower: HashMap<i32, Datum>,
    upper: HashMap<i32, Datum>,
    /// Columns with values in a row group that has no bound for them.
    unbounded: HashSet<i32>,
}

impl ColumnStatistics {
    fn add(&mut self, schema: &Schema, chunk: &ColumnChunkMetaData) -> Result<(), Error> {
        let [name] = chunk.column_path().parts() else {
            return Ok(());
        };
        let Some(field) = schema.field_by_name(name) else {
            return Ok(());
        };
        let Type::Primitive(primitive) = field.field_type.as_ref() else {
            return Ok(());
        };
        let count = |number: i64| u64::try_from(number).unwrap_or(0);
        let values = count(chunk.num_values());
        *self.sizes.entry(field.id).or_default() += count(chunk.compressed_size());
        *self.values.entry(field.id).or_default() += values;
        let Some(statistics) = chunk.statistics() else {
            self.drop_bounds(field.id);
            self.nulls.remove(&field.id);
            return Ok(());
        };
        let nulls = statistics.null_count_opt();
        if let Some(nulls) = nulls {
            *self.nulls.entry(field.id).or_default() += nulls;
        }
        if nulls != Some(values) {
            self.widen(field.id, primitive, statistics)?;
        }
        Ok(())
    }

    /// Widens the bounds by those of a row group. A truncated bound is still a bound: Parquet cuts the
    /// lower one and rounds the upper one up.
    fn widen(
        &mut self,
        id: i32,
        primitive: &PrimitiveType,
        statistics: &Statistics,
    ) -> Result<(), Error> {
        let bounds = (
            statistics
                .min_bytes_opt()
                .and_then(|min| encoded(primitive, statistics, min)),
            statistics
                .max_bytes_opt()
                .and_then(|max| encoded(primitive, statistics, max)),
        );
        let (Some(min), Some(max)) = bounds else {
            self.drop_bounds(id);
            return Ok(());
        };
        if self.unbounded.contains(&id) {
            return Ok(());
        }
        let min = Datum::try_from_bytes(&min, primitive.clone())?;
        let max = Datum::try_from_bytes(&max, primitive.clone())?;
        let lower = self.lower.entry(id).or_insert_with(|| min.clone());
        if min < *lower {
            *lower = min;
        }
        let upper = self.upper.entry(id).or_insert_with(|| max.clone());
        if max > *upper {
            *upper = max;
        }
        Ok(())
    }

    fn drop_bounds(&mut self, id: i32) {
        self.unbounded.insert(id);
        self.lower.remove(&id);
        self.upper.remove(&id);
    }
}

/// Returns a Parquet statistics value in Iceberg's single-value encoding. The two agree, except that
/// a decimal in Parquet may be a little-endian integer.
fn encoded(primitive: &PrimitiveType, statistics: &Statistics, bytes: &[u8]) -> Option<Vec<u8>> {
    match (primitive, statistics) {
        (PrimitiveType::Decimal { .. }, Statistics::Int32(_) | Statistics::Int64(_)) => {
            Some(bytes.iter().rev().copied().collect())
        }
        (_, Statistics::Int96(_)) => None,
        // A bound cut inside a character is no string.
        (PrimitiveType::String, _) => std::str::from_utf8(bytes).ok().map(|_| bytes.to_vec()),
        _ => Some(bytes.to_vec()),
    }
}
