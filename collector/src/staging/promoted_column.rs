//! A property that the tracking plan promotes, as a column of `raw.events` in the making.
//!
//! Place on the path: the last columns of each row that `event_rows.rs` fills. Promise: the column holds
//! what the view `events` would read from the JSON of the same row, because both ask
//! `headwater_tables::promoted`; a value of another type leaves it empty.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, StringBuilder};
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
        }
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::String(mut values) => Arc::new(values.finish()),
            Self::Long(mut values) => Arc::new(values.finish()),
            Self::Double(mut values) => Arc::new(values.finish()),
            Self::Boolean(mut values) => Arc::new(values.finish()),
        }
    }
}
