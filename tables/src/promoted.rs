//! Promoted properties: columns of `raw.events` that a tracking plan adds for what is also in the JSON
//! of `properties`.
//!
//! Place on the event's path: the collector adds the columns before it writes the first row with them,
//! and fills them; the view `events` reads the JSON where a row was written before. Promise: column
//! and JSON give the same value, because both are read by [`ColumnType`]'s rules; a value of another
//! type is null in the column and stays in the JSON.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, TimeUnit};
use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};
use iceberg::table::Table;
use serde::Deserialize;
use serde_json::{Number, Value};

use crate::name::is_identifier;
use crate::schema::{SchemaError, TableSpec, raw_events};
use crate::timestamp;

/// Start of the table property that names a promoted column; its value is the type.
const PREFIX: &str = "headwater.promoted.";

/// Most promoted columns: each costs every file and every scan of all columns something.
pub const PROMOTED_MAX: usize = 200;

/// Columns that `core.events` and the view `events` have beside those of `raw.events`.
const TAKEN: [&str; 5] = [
    "first_received_at",
    "copies",
    "plan_id_at_event",
    "subscription_status_at_event",
    "report_date",
];

/// Type of a promoted column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// Text as it is, and numbers as their digits, because ids come as both.
    String,
    /// Whole numbers of 64 bits.
    Long,
    /// Numbers.
    Double,
    /// `true` and `false`.
    Boolean,
    /// Points in time, written as text with an offset; without one they are UTC.
    Timestamp,
}

impl ColumnType {
    const ALL: [(&'static str, Self); 5] = [
        ("string", Self::String),
        ("long", Self::Long),
        ("double", Self::Double),
        ("boolean", Self::Boolean),
        ("timestamp", Self::Timestamp),
    ];

    /// Returns the name in a plan and in table properties.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }

    fn parse(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, column_type)| *column_type)
    }

    /// Returns the type in Arrow.
    pub fn data_type(self) -> DataType {
        match self {
            Self::String => DataType::Utf8,
            Self::Long => DataType::Int64,
            Self::Double => DataType::Float64,
            Self::Boolean => DataType::Boolean,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
        }
    }

    fn primitive(self) -> PrimitiveType {
        match self {
            Self::String => PrimitiveType::String,
            Self::Long => PrimitiveType::Long,
            Self::Double => PrimitiveType::Double,
            Self::Boolean => PrimitiveType::Boolean,
            Self::Timestamp => PrimitiveType::Timestamptz,
        }
    }

    /// Says whether the column can hold this value; anything holds null.
    pub fn holds(self, value: Scalar<'_>) -> bool {
        matches!(value, Scalar::Null)
            || match self {
                Self::String => value.text().is_some(),
                Self::Long => value.long().is_some(),
                Self::Double => value.double().is_some(),
                Self::Boolean => value.boolean().is_some(),
                Self::Timestamp => value.timestamp().is_some(),
            }
    }
}

/// A JSON value as a column sees it.
#[derive(Debug, Clone, Copy)]
pub enum Scalar<'a> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Boolean(bool),
    /// A number.
    Number(&'a Number),
    /// A text.
    Text(&'a str),
    /// A list or an object: no column holds one.
    Other,
}

impl<'a> Scalar<'a> {
    /// Returns what a `string` column holds of the value.
    pub fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(Cow::Borrowed(text)),
            Self::Number(number) => Some(Cow::Owned(number.to_string())),
            _ => None,
        }
    }

    /// Returns what a `long` column holds of the value.
    pub fn long(self) -> Option<i64> {
        self.number().and_then(Number::as_i64)
    }

    /// Returns what a `double` column holds of the value.
    pub fn double(self) -> Option<f64> {
        self.number().and_then(Number::as_f64)
    }

    /// Returns what a `boolean` column holds of the value.
    pub fn boolean(self) -> Option<bool> {
        match self {
            Self::Boolean(value) => Some(value),
            _ => None,
        }
    }

    /// Returns what a `timestamp` column holds of the value: microseconds since the Unix epoch.
    pub fn timestamp(self) -> Option<i64> {
        match self {
            Self::Text(text) => timestamp::parse(text),
            _ => None,
        }
    }

    fn number(self) -> Option<&'a Number> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }
}

impl<'a> From<&'a Value> for Scalar<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Boolean(*value),
            Value::Number(number) => Self::Number(number),
            Value::String(text) => Self::Text(text),
            Value::Array(_) | Value::Object(_) => Self::Other,
        }
    }
}

/// A promoted property: column and property have the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promoted {
    /// The name.
    pub name: String,
    /// The column's type.
    pub column_type: ColumnType,
}

/// Says why a property cannot become a column.
pub fn check_name(name: &str) -> Result<(), String> {
    if !is_identifier(name) || name.starts_with('_') {
        return Err(format!(
            "`{name}` cannot be a column: use lower-case letters, digits and underscores, and begin with a letter"
        ));
    }
    let is_there = raw_events().schema.field_by_name(name).is_some();
    if is_there || TAKEN.contains(&name) {
        return Err(format!("`{name}` is a column already"));
    }
    Ok(())
}

/// Returns the promoted columns of `raw.events`, in order of their names.
pub fn of(table: &Table) -> Vec<Promoted> {
    let properties: BTreeMap<_, _> = table.metadata().properties().iter().collect();
    let promoted = properties.into_iter().filter_map(|(key, value)| {
        Some(Promoted {
            name: key.strip_prefix(PREFIX)?.to_owned(),
            column_type: ColumnType::parse(value)?,
        })
    });
    promoted.collect()
}

/// Returns the spec of `raw.events` with these columns at its end.
///
/// # Errors
/// When a name is there already, which [`check_name`] tells beforehand.
pub fn raw_events_with(promoted: &[Promoted]) -> Result<TableSpec, SchemaError> {
    let mut spec = raw_events();
    let mut fields = spec.schema.as_struct().fields().to_vec();
    for (id, it) in (spec.schema.highest_field_id() + 1..).zip(promoted) {
        let field_type = Type::Primitive(it.column_type.primitive());
        fields.push(Arc::new(NestedField::optional(id, &it.name, field_type)));
    }
    spec.schema = Schema::builder().with_fields(fields).build()?;
    Ok(promoted.iter().fold(spec, |spec, it| {
        spec.with_property(&format!("{PREFIX}{}", it.name), it.column_type.as_str())
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_column_holds_values_of_its_type_and_null() {
        let time = json!("2026-11-20T10:00:00+01:00");
        let values = [
            json!("a"),
            json!(1),
            json!(1.5),
            json!(true),
            json!([]),
            time,
        ];
        let cases = [
            (ColumnType::String, [true, true, true, false, false, true]),
            (ColumnType::Long, [false, true, false, false, false, false]),
            (ColumnType::Double, [false, true, true, false, false, false]),
            (
                ColumnType::Boolean,
                [false, false, false, true, false, false],
            ),
            (
                ColumnType::Timestamp,
                [false, false, false, false, false, true],
            ),
        ];
        for (column_type, expected) in cases {
            let held = values
                .each_ref()
                .map(|value| column_type.holds(value.into()));
            assert_eq!(held, expected, "{column_type:?}");
            assert!(column_type.holds(Scalar::Null));
            assert_eq!(ColumnType::parse(column_type.as_str()), Some(column_type));
        }
    }

    #[test]
    fn names_of_other_columns_and_names_that_need_quotes_are_refused() {
        assert_eq!(check_name("subject_length"), Ok(()));
        for name in ["event_time", "copies", "_copy", "Total", "a b", "", "a.b"] {
            check_name(name).unwrap_err();
        }
    }
}
