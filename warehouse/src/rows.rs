//! Rows in memory: put into a table's shape, ordered, compared and hashed.

use std::fmt::Write as _;

use arrow::array::{Array, ArrayRef, RecordBatch, new_null_array};
use arrow::compute::{SortColumn, cast, concat_batches, lexsort_to_indices, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use sha2::{Digest, Sha256};

/// Returns the rows as one batch with exactly the columns and types of `schema`; a column that the
/// rows lack is null.
pub(crate) fn conform(
    schema: &SchemaRef,
    batches: &[RecordBatch],
) -> Result<RecordBatch, ArrowError> {
    let shaped: Vec<RecordBatch> = batches
        .iter()
        .map(|batch| conform_one(schema, batch))
        .collect::<Result<_, _>>()?;
    concat_batches(schema, &shaped)
}

fn conform_one(schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) => cast(column, field.data_type()),
            None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        })
        .collect::<Result<_, _>>()?;
    RecordBatch::try_new(schema.clone(), columns)
}

/// Returns the rows ordered by the named columns, ascending, nulls first.
pub(crate) fn sorted(batch: &RecordBatch, by: &[String]) -> Result<RecordBatch, ArrowError> {
    if batch.num_rows() < 2 || by.is_empty() {
        return Ok(batch.clone());
    }
    let columns: Vec<SortColumn> = by
        .iter()
        .map(|name| {
            let values = batch.column_by_name(name).cloned();
            values
                .map(|values| SortColumn {
                    values,
                    options: None,
                })
                .ok_or_else(|| ArrowError::SchemaError(format!("no column `{name}` to sort by")))
        })
        .collect::<Result<_, _>>()?;
    take_record_batch(batch, &lexsort_to_indices(&columns, None)?)
}

/// Returns the names of the columns.
pub(crate) fn names(schema: &SchemaRef) -> Vec<String> {
    schema
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect()
}

/// Returns one line of text per row, which is equal exactly when the values are: each value is
/// preceded by its length, so that no two rows run together.
pub(crate) fn row_texts(batch: &RecordBatch) -> Result<Vec<String>, ArrowError> {
    let options = FormatOptions::default();
    let formatters: Vec<(ArrayRef, ArrayFormatter<'_>)> = batch
        .columns()
        .iter()
        .map(|column| Ok((column.clone(), ArrayFormatter::try_new(column, &options)?)))
        .collect::<Result<_, ArrowError>>()?;
    let mut texts = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let mut text = String::new();
        for (column, formatter) in &formatters {
            if column.is_null(row) {
                text.push('~');
            } else {
                let value = formatter.value(row).to_string();
                // Writing to a String cannot fail.
                let written = write!(text, "{}:{value}", value.len());
                debug_assert!(written.is_ok());
            }
            text.push(';');
        }
        texts.push(text);
    }
    Ok(texts)
}

/// Returns SHA-256 of the parts as 64 hexadecimal digits.
pub(crate) fn sha256<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    hasher
        .finalize()
        .iter()
        .fold(String::new(), |mut text, byte| {
            let written = write!(text, "{byte:02x}");
            debug_assert!(written.is_ok());
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use arrow::array::StringArray;
    use arrow::datatypes::{DataType, Field, Schema};

    #[test]
    fn neighbouring_values_do_not_run_together() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("a", DataType::Utf8, true),
            Field::new("b", DataType::Utf8, true),
        ]));
        let a = StringArray::from(vec![Some("x"), Some("x;1:y"), None]);
        let b = StringArray::from(vec![Some("y"), None, Some("~")]);
        let batch = RecordBatch::try_new(schema, vec![Arc::new(a), Arc::new(b)]).unwrap();
        let texts = row_texts(&batch).unwrap();
        assert_eq!(texts[0], "1:x;1:y;");
        assert_eq!(
            texts.iter().collect::<std::collections::HashSet<_>>().len(),
            3
        );
    }
}
