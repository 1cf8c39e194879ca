//! The column `errors` of `raw.quarantine`: what is wrong with an event, in parts that SQL can group by.
//!
//! Place on the path: staging writes it, the commands on the quarantine read it. Promise: what is read
//! is what was written. No part holds a value of the event: paths and expectations are those of the
//! rules and of the tracking plan.

use std::fmt;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StringBuilder, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields};
use arrow::error::ArrowError;
use headwater_protocol::Invalid;
use serde::Serialize;

use crate::plan::schema::Violation;

/// One thing that is wrong with an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flaw {
    /// Where: a JSON path, `$` for the whole event.
    pub path: String,
    /// Which rule is broken: `type`, `required`, `format` and so on.
    pub keyword: String,
    /// What is wrong, in words.
    pub message: String,
    /// What the tracking plan wants; `None` for a rule that holds without a plan.
    pub expected: Option<String>,
    /// The type of what is there, `missing` where nothing is; as `expected`.
    pub actual_type: Option<String>,
}

impl From<&Invalid> for Flaw {
    fn from(invalid: &Invalid) -> Self {
        Self {
            path: invalid.path.to_owned(),
            keyword: invalid.keyword.to_owned(),
            message: invalid.message.to_owned(),
            expected: None,
            actual_type: None,
        }
    }
}

impl From<&Violation> for Flaw {
    fn from(violation: &Violation) -> Self {
        Self {
            path: violation.path.clone(),
            keyword: violation.keyword.to_owned(),
            message: violation.message(),
            expected: Some(violation.expected.clone()),
            actual_type: Some(violation.actual_type.to_owned()),
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            keyword,
            message,
            expected,
            ..
        } = self;
        match expected {
            // The keyword is the plan's own, so its author looks for it.
            Some(_) => write!(f, "{path}: {keyword}: {message}"),
            None => write!(f, "{path}: {message}"),
        }
    }
}

static FIELDS: LazyLock<Fields> = LazyLock::new(|| {
    let text = |name, nullable| Field::new(name, DataType::Utf8, nullable);
    Fields::from(vec![
        text("path", false),
        text("keyword", false),
        text("message", false),
        text("expected", true),
        text("actual_type", true),
    ])
});

fn element() -> Field {
    Field::new_list_field(DataType::Struct(FIELDS.clone()), false)
}

/// Returns the type of the column.
pub(super) fn data_type() -> DataType {
    DataType::List(Arc::new(element()))
}

/// The column in the making.
#[derive(Debug, Default)]
pub(super) struct FlawsBuilder {
    /// Flaws of each row.
    lengths: Vec<usize>,
    path: StringBuilder,
    keyword: StringBuilder,
    message: StringBuilder,
    expected: StringBuilder,
    actual_type: StringBuilder,
}

impl FlawsBuilder {
    /// Adds the flaws of one event.
    pub(super) fn push(&mut self, flaws: impl IntoIterator<Item = Flaw>) {
        let mut length = 0;
        for flaw in flaws {
            self.path.append_value(flaw.path);
            self.keyword.append_value(flaw.keyword);
            self.message.append_value(flaw.message);
            self.expected.append_option(flaw.expected);
            self.actual_type.append_option(flaw.actual_type);
            length += 1;
        }
        self.lengths.push(length);
    }

    /// Returns the column.
    ///
    /// # Errors
    /// Only when the parts do not fit their type, which a test excludes.
    pub(super) fn finish(mut self) -> Result<ArrayRef, ArrowError> {
        let parts: Vec<ArrayRef> = vec![
            Arc::new(self.path.finish()),
            Arc::new(self.keyword.finish()),
            Arc::new(self.message.finish()),
            Arc::new(self.expected.finish()),
            Arc::new(self.actual_type.finish()),
        ];
        let flaws = StructArray::try_new(FIELDS.clone(), parts, None)?;
        let offsets = OffsetBuffer::from_lengths(self.lengths);
        let column = ListArray::try_new(Arc::new(element()), offsets, Arc::new(flaws), None)?;
        Ok(Arc::new(column))
    }
}

/// Returns the flaws of each row of a column as a table gives it back: the same parts, with the table's
/// own names and ids around them.
///
/// # Errors
/// When the column is of another type.
pub(crate) fn read(column: &dyn Array) -> Result<Vec<Vec<Flaw>>, ArrowError> {
    let column = cast(column, &data_type())?;
    let rows = column.as_list::<i32>();
    (0..rows.len())
        .map(|row| of_row(&rows.value(row)))
        .collect()
}

fn of_row(flaws: &ArrayRef) -> Result<Vec<Flaw>, ArrowError> {
    let flaws = flaws.as_struct();
    let part = |at: usize, row: usize| {
        let texts = flaws.column(at).as_string::<i32>();
        texts.is_valid(row).then(|| texts.value(row).to_owned())
    };
    let required = |at: usize, row: usize| {
        part(at, row).ok_or_else(|| {
            let name = FIELDS[at].name();
            ArrowError::InvalidArgumentError(format!("an error has no `{name}`"))
        })
    };
    let flaw = |row| {
        Ok(Flaw {
            path: required(0, row)?,
            keyword: required(1, row)?,
            message: required(2, row)?,
            expected: part(3, row),
            actual_type: part(4, row),
        })
    };
    (0..flaws.len()).map(flaw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violation() -> Violation {
        Violation {
            path: "$.properties.rating".to_owned(),
            keyword: "type",
            expected: "integer".to_owned(),
            actual_type: "string",
        }
    }

    #[test]
    fn a_flaw_is_one_line_for_people_and_parts_for_sql() {
        let planned = Flaw::from(&violation());
        assert_eq!(
            planned.to_string(),
            "$.properties.rating: type: integer expected, string found"
        );
        assert_eq!(planned.message, "integer expected, string found");
        let unplanned = Flaw::from(&Invalid::NOT_A_RECORD);
        assert_eq!(unplanned.to_string(), "$: is not a record");
        let json = serde_json::to_value(&unplanned).unwrap();
        let expected = serde_json::json!({
            "path": "$", "keyword": "encoding", "message": "is not a record",
            "expected": null, "actual_type": null
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let (one, two) = (Flaw::from(&violation()), Flaw::from(&Invalid::NOT_A_RECORD));
        let rows = vec![
            vec![one.clone(), two.clone()],
            Vec::new(),
            vec![two],
            vec![one],
        ];
        let mut builder = FlawsBuilder::default();
        for row in &rows {
            builder.push(row.clone());
        }
        let column = builder.finish().unwrap();
        assert_eq!(read(&column).unwrap(), rows);
        assert_eq!(read(&column.slice(2, 2)).unwrap(), rows[2..]);
        let other = arrow::array::StringArray::from(vec!["$: is not a record"]);
        read(&other).unwrap_err();
    }
}
