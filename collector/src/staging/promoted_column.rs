//! A property that the tracking plan promotes, as a column of `raw.events` in the making.
//!
//! Place on the path: the last columns of each row that `event_rows.rs` fills. Promise: the column holds
//! what the view `events` would read from the JSON of the same row, because both ask
//! `headwater_tables::promoted`; a value of another type leaves it empty.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::Field;
use headwater_protocol::Event;
use headwater_tables::promoted::{ColumnType, Promoted, Scalar};

use crate::plan::scalar;

/// The column of one promoted property.
#[derive(Debug)]
pub(super) struct PromotedColumn {
    field: Field,
    values: Values,
}

#[derive(Debug)]
enum Values {
    String(StringBuilder),
    Long(Int64Builder),
    Double(Float64Builder),
    Boolean(BooleanBuilder),
    Timestamp(TimestampMicrosecondBuilder),
}

impl PromotedColumn {
    /// Begins the column.
    pub(super) fn new(promoted: &Promoted) -> Self {
        let data_type = promoted.column_type.data_type();
        Self {
            field: Field::new(&promoted.name, data_type, true),
            values: Values::new(promoted.column_type),
        }
    }

    /// Adds the value of an event; null where it has none or one of another type.
    pub(super) fn push(&mut self, event: &Event<'_>) {
        let value = event.properties.get(self.field.name()).map(scalar);
        match &mut self.values {
            Values::String(values) => values.append_option(value.and_then(Scalar::text)),
            Values::Long(values) => values.append_option(value.and_then(Scalar::long)),
            Values::Double(values) => values.append_option(value.and_then(Scalar::double)),
            Values::Boolean(values) => values.append_option(value.and_then(Scalar::boolean)),
            Values::Timestamp(values) => values.append_option(value.and_then(Scalar::timestamp)),
        }
    }

    /// Returns the column and its values.
    pub(super) fn finish(self) -> (Field, ArrayRef) {
        (self.field, self.values.finish())
    }
}

impl Values {
    fn new(column_type: ColumnType) -> Self {
        match column_type {
            ColumnType::String => Self::String(StringBuilder::new()),
            ColumnType::Long => Self::Long(Int64Builder::new()),
            ColumnType::Double => Self::Double(Float64Builder::new()),
            ColumnType::Boolean => Self::Boolean(BooleanBuilder::new()),
            ColumnType::Timestamp => {
                let values = TimestampMicrosecondBuilder::new();
                Self::Timestamp(values.with_data_type(column_type.data_type()))
            }
        }
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::String(mut values) => Arc::new(values.finish()),
            Self::Long(mut values) => Arc::new(values.finish()),
            Self::Double(mut values) => Arc::new(values.finish()),
            Self::Boolean(mut values) => Arc::new(values.finish()),
            Self::Timestamp(mut values) => Arc::new(values.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::TimestampMicrosecondType;
    use headwater_protocol::timestamp;

    use super::*;
    use crate::staging::event_rows::timestamptz;
    use crate::staging::time_rule::is_representable;

    /// A text after its microseconds, `-` where it is no time; the view `events` is tested by it, too.
    const CASES: &str = include_str!("../../../tables/testdata/timestamps.txt");

    /// What the column holds of texts.
    fn held<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Option<i64>> {
        let promoted = Promoted {
            name: "at".to_owned(),
            column_type: ColumnType::Timestamp,
        };
        let mut column = PromotedColumn::new(&promoted);
        for text in texts {
            let text = serde_json::to_string(text).unwrap();
            let body = format!(
                r#"{{"type":"track","event":"E","userId":"u","properties":{{"at":{text}}}}}"#
            );
            column.push(&Event::parse(body.as_bytes(), None, None).unwrap());
        }
        let (field, values) = column.finish();
        assert_eq!(field.data_type(), &timestamptz());
        assert_eq!(values.data_type(), &timestamptz());
        values
            .as_primitive::<TimestampMicrosecondType>()
            .iter()
            .collect()
    }

    /// What the rest of the collector makes of the text of a time, `format: date-time` above all.
    fn expected(text: &str) -> Option<i64> {
        timestamp::parse(text).filter(|time| is_representable(*time))
    }

    #[test]
    fn a_timestamp_column_holds_the_times_that_are_written_down() {
        let cases = CASES.lines().filter(|line| !line.starts_with('#'));
        let cases: Vec<(&str, &str)> = cases.map(|line| line.split_once('|').unwrap()).collect();
        let held = held(cases.iter().map(|(_, text)| *text));
        for ((micros, text), held) in cases.into_iter().zip(held) {
            assert_eq!(held, micros.parse().ok(), "{text}");
            assert_eq!(held, expected(text), "{text}");
        }
    }
}
