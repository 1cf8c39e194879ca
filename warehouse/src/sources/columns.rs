//! Text of the operational database → typed Arrow columns.
//!
//! Both databases are asked for text, so that one parser decides what a value means.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Date32Builder, Decimal128Builder, Int64Builder, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, NaiveDate, NaiveDateTime};

use super::{SourceError, SourceTable};

/// Digits before and after the point of a decimal column.
const DECIMAL: (u8, i8) = (18, 8);

/// The type of a declared column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// Text.
    Text,
    /// A whole number of 64 bits; money in minor units too.
    Int,
    /// True or false.
    Bool,
    /// A point in time, UTC, microseconds.
    Timestamp,
    /// A calendar date.
    Date,
    /// A decimal number with eight digits after the point.
    Decimal,
}

impl ColumnType {
    /// Returns the Arrow type.
    pub fn arrow(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Int => DataType::Int64,
            Self::Bool => DataType::Boolean,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
            Self::Date => DataType::Date32,
            Self::Decimal => DataType::Decimal128(DECIMAL.0, DECIMAL.1),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Int => "a whole number of 64 bits",
            Self::Bool => "a boolean",
            Self::Timestamp => "an ISO 8601 time in UTC",
            Self::Date => "a date such as `2026-11-20`",
            Self::Decimal => "a decimal number of at most 10 + 8 digits",
        }
    }
}

enum Builder {
    Text(StringBuilder),
    Int(Int64Builder),
    Bool(BooleanBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Date(Date32Builder),
    Decimal(Decimal128Builder),
}

impl Builder {
    fn new(kind: ColumnType) -> Self {
        match kind {
            ColumnType::Text => Self::Text(StringBuilder::new()),
            ColumnType::Int => Self::Int(Int64Builder::new()),
            ColumnType::Bool => Self::Bool(BooleanBuilder::new()),
            ColumnType::Timestamp => Self::Timestamp(
                TimestampMicrosecondBuilder::new().with_data_type(ColumnType::Timestamp.arrow()),
            ),
            ColumnType::Date => Self::Date(Date32Builder::new()),
            ColumnType::Decimal => {
                Self::Decimal(Decimal128Builder::new().with_data_type(ColumnType::Decimal.arrow()))
            }
        }
    }

    /// Appends a value; false when the text does not have the type.
    fn push(&mut self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::Text(builder), value) => builder.append_option(value),
            (Self::Int(builder), None) => builder.append_null(),
            (Self::Bool(builder), None) => builder.append_null(),
            (Self::Timestamp(builder), None) => builder.append_null(),
            (Self::Date(builder), None) => builder.append_null(),
            (Self::Decimal(builder), None) => builder.append_null(),
            (Self::Int(builder), Some(text)) => match text.parse() {
                Ok(value) => builder.append_value(value),
                Err(_) => return false,
            },
            (Self::Bool(builder), Some(text)) => match boolean(text) {
                Some(value) => builder.append_value(value),
                None => return false,
            },
            (Self::Timestamp(builder), Some(text)) => match timestamp(text) {
                Some(value) => builder.append_value(value),
                None => return false,
            },
            (Self::Date(builder), Some(text)) => match date(text) {
                Some(value) => builder.append_value(value),
                None => return false,
            },
            (Self::Decimal(builder), Some(text)) => match decimal(text) {
                Some(value) => builder.append_value(value),
                None => return false,
            },
        }
        true
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Text(builder) => Arc::new(builder.finish()),
            Self::Int(builder) => Arc::new(builder.finish()),
            Self::Bool(builder) => Arc::new(builder.finish()),
            Self::Timestamp(builder) => Arc::new(builder.finish()),
            Self::Date(builder) => Arc::new(builder.finish()),
            Self::Decimal(builder) => Arc::new(builder.finish()),
        }
    }
}

/// Collects the rows of one table into batches.
pub(super) struct TableReader {
    table: &'static SourceTable,
    schema: SchemaRef,
    builders: Vec<Builder>,
    rows: usize,
    batch_rows: usize,
    total: u64,
    rows_max: u64,
    batches: Vec<RecordBatch>,
}

impl TableReader {
    pub(super) fn new(table: &'static SourceTable, batch_rows: usize, rows_max: u64) -> Self {
        Self {
            table,
            schema: table.schema(),
            builders: table
                .columns
                .iter()
                .map(|(_, kind)| Builder::new(*kind))
                .collect(),
            rows: 0,
            batch_rows,
            total: 0,
            rows_max,
            batches: Vec::new(),
        }
    }

    /// Appends one value of the present row.
    pub(super) fn value(&mut self, index: usize, value: Option<&str>) -> Result<(), SourceError> {
        let (column, kind) = self.table.columns[index];
        if value.is_none() && self.table.key.contains(&column) {
            return Err(SourceError::NullKey {
                table: self.table.name,
                column,
            });
        }
        if self.builders[index].push(value) {
            return Ok(());
        }
        Err(SourceError::BadValue {
            table: self.table.name,
            column,
            value: value.unwrap_or_default().chars().take(64).collect(),
            expected: kind.words(),
        })
    }

    /// Ends the present row.
    pub(super) fn end_row(&mut self) -> Result<(), SourceError> {
        self.rows += 1;
        self.total += 1;
        if self.total > self.rows_max {
            return Err(SourceError::TooLarge {
                table: self.table.name,
                max: self.rows_max,
            });
        }
        if self.rows == self.batch_rows {
            self.end_batch()?;
        }
        Ok(())
    }

    /// Returns all batches.
    pub(super) fn finish(mut self) -> Result<Vec<RecordBatch>, SourceError> {
        if self.rows > 0 {
            self.end_batch()?;
        }
        Ok(self.batches)
    }

    fn end_batch(&mut self) -> Result<(), SourceError> {
        let columns = self.builders.iter_mut().map(Builder::finish).collect();
        let batch = RecordBatch::try_new(self.schema.clone(), columns).map_err(|error| {
            SourceError::Read {
                table: self.table.name,
                reason: error.to_string(),
            }
        })?;
        self.batches.push(batch);
        self.rows = 0;
        Ok(())
    }
}

impl SourceTable {
    /// Returns the Arrow schema of the copy; key columns are required.
    pub fn schema(&self) -> SchemaRef {
        let fields: Vec<Field> = self
            .columns
            .iter()
            .map(|(name, kind)| Field::new(*name, kind.arrow(), !self.key.contains(name)))
            .collect();
        Arc::new(Schema::new(fields))
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "true" => Some(true),
        "0" | "f" | "false" => Some(false),
        _ => None,
    }
}

/// Reads `2026-11-20T21:04:05.123456Z`, with any offset, or without one (then UTC), or a date alone.
fn timestamp(text: &str) -> Option<i64> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_micros());
    }
    for format in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, format) {
            return Some(time.and_utc().timestamp_micros());
        }
    }
    date(text).map(|days| i64::from(days) * 86_400_000_000)
}

fn date(text: &str) -> Option<i32> {
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    i32::try_from((date - NaiveDate::default()).num_days()).ok()
}

/// Reads a decimal exactly; more digits than the column holds are refused, never rounded.
fn decimal(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction = fraction.trim_end_matches('0');
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let scale = usize::from(DECIMAL.1.unsigned_abs());
    if whole.is_empty() || whole.len() > 10 || fraction.len() > scale {
        return None;
    }
    if !all_digits(whole) || !all_digits(fraction) {
        return None;
    }
    let value: i128 = format!("{whole}{fraction:0<scale$}").parse().ok()?;
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_microseconds_and_offsets() {
        assert_eq!(timestamp("1970-01-01T00:00:00.000001Z"), Some(1));
        assert_eq!(timestamp("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(timestamp("1970-01-01 00:00:01"), Some(1_000_000));
        assert_eq!(timestamp("1970-01-02"), Some(86_400_000_000));
        assert_eq!(timestamp("yesterday"), None);
    }

    #[test]
    fn decimals_are_exact_or_refused() {
        assert_eq!(decimal("1.08450000"), Some(108_450_000));
        assert_eq!(decimal("-0.5"), Some(-50_000_000));
        assert_eq!(decimal("156"), Some(15_600_000_000));
        for text in ["1.123456789", "1e3", "", ".5", "12345678901"] {
            assert_eq!(decimal(text), None, "{text}");
        }
    }
}
