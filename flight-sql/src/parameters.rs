//! Parameters: `?` becomes `$n`, each gets a concrete type, bound rows become literals.
//!
//! Place on the event's path: between the text a client prepares and the plan. Promise: text inside
//! strings, comments and quoted names is never touched; every parameter has a type that JDBC can
//! bind (never "null"); timestamps are declared in milliseconds because JDBC writes milliseconds
//! whatever the unit, and cast to the column's type here.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode as _, TreeNodeRecursion};
use datafusion::logical_expr::{Cast, Expr, LogicalPlan, TryCast};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer, Whitespace};

use crate::error::StatementError;
use crate::result::{self, Timestamps};

/// Most parameters of one statement.
const PARAMETERS_MAX: usize = 1000;

/// Returns `sql` with each `?` replaced by `$1`, `$2`, … in order.
pub(crate) fn number(sql: &str) -> Result<String, StatementError> {
    rewrite(sql, |given, number| match given {
        "?" => format!("${number}"),
        numbered => numbered.to_owned(),
    })
}

/// Returns `sql` with the parameters of `untyped` (numbers from 1) cast to text, because nothing in
/// the statement tells their type.
pub(crate) fn cast_to_text(sql: &str, untyped: &[usize]) -> Result<String, StatementError> {
    rewrite(sql, |given, _| {
        let number = given
            .strip_prefix('$')
            .and_then(|digits| digits.parse().ok());
        match number {
            Some(number) if untyped.contains(&number) => format!("CAST({given} AS VARCHAR)"),
            _ => given.to_owned(),
        }
    })
}

/// Replaces each placeholder token by what `replace(token, count of placeholders so far)` says.
fn rewrite(sql: &str, replace: impl Fn(&str, usize) -> String) -> Result<String, StatementError> {
    let dialect = GenericDialect {};
    let tokens = Tokenizer::new(&dialect, sql)
        .with_unescape(false)
        .tokenize_with_location()
        .map_err(|error| {
            StatementError::Parameters(format!("the statement cannot be read: {error}"))
        })?;
    let mut places = LineStarts::of(sql);
    let mut out = String::with_capacity(sql.len());
    let mut copied = 0;
    let mut marks = 0;
    let mut numbered = false;
    for token in &tokens {
        let Some(placeholder) = placeholder(&token.token) else {
            continue;
        };
        if placeholder == "?" {
            marks += 1;
        } else {
            numbered = true;
        }
        if marks > PARAMETERS_MAX {
            return Err(StatementError::Parameters(format!(
                "the statement has more than {PARAMETERS_MAX} parameters"
            )));
        }
        let start = places.offset(token.span.start.line, token.span.start.column);
        out.push_str(&sql[copied..start]);
        out.push_str(&replace(&placeholder, marks));
        copied = start + placeholder.len();
    }
    if marks > 0 && numbered {
        return Err(StatementError::Parameters(
            "the statement mixes `?` and `$n` parameters; use one of them".to_owned(),
        ));
    }
    out.push_str(&sql[copied..]);
    Ok(out)
}

/// Returns the placeholder that `token` is or begins with. The PostgreSQL operators that begin with
/// `?` do not exist in this server, so their `?` is a parameter (`?||'x'`, `?-1`).
fn placeholder(token: &Token) -> Option<String> {
    match token {
        Token::Placeholder(text) => Some(text.clone()),
        Token::Question
        | Token::QuestionAnd
        | Token::QuestionPipe
        | Token::QuestionMarkDash
        | Token::QuestionMarkSharp
        | Token::QuestionMarkDashVerticalBar
        | Token::QuestionMarkDoubleVerticalBar => Some("?".to_owned()),
        Token::Whitespace(
            Whitespace::SingleLineComment { .. } | Whitespace::MultiLineComment(_),
        ) => None,
        _ => None,
    }
}

/// Turns the tokenizer's (line, column), both from 1 and in characters, into byte offsets.
struct LineStarts<'a> {
    sql: &'a str,
    line: u64,
    column: u64,
    offset: usize,
}

impl<'a> LineStarts<'a> {
    fn of(sql: &'a str) -> Self {
        Self {
            sql,
            line: 1,
            column: 1,
            offset: 0,
        }
    }

    /// Returns the offset of a place that is not before the last one asked for.
    fn offset(&mut self, line: u64, column: u64) -> usize {
        for character in self.sql[self.offset..].chars() {
            if (self.line, self.column) >= (line, column) {
                break;
            }
            self.offset += character.len_utf8();
            if character == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.offset
    }
}

/// Parameter types as far as the plan tells them, by number from 1; `None` where it does not.
pub(crate) fn types(plan: &LogicalPlan) -> Result<Vec<Option<DataType>>, StatementError> {
    let mut known: HashMap<String, Option<DataType>> = plan.get_parameter_types()?;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Limit(limit) = node {
            for count in [&limit.skip, &limit.fetch].into_iter().flatten() {
                note(&mut known, count, &DataType::Int64);
            }
        }
        node.apply_expressions(|expression| {
            expression.apply(|expression| {
                if let Expr::Cast(Cast { expr, field }) | Expr::TryCast(TryCast { expr, field }) =
                    expression
                {
                    note(&mut known, expr, field.data_type());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    let mut types = Vec::new();
    for (name, data_type) in known {
        let number = name
            .strip_prefix('$')
            .and_then(|digits| digits.parse::<usize>().ok())
            .filter(|number| (1..=PARAMETERS_MAX).contains(number))
            .ok_or_else(|| {
                StatementError::Parameters(format!(
                    "parameter `{name}` is not supported; write `?` or `$1` to `${PARAMETERS_MAX}`"
                ))
            })?;
        if types.len() < number {
            types.resize(number, None);
        }
        types[number - 1] = data_type.filter(|data_type| *data_type != DataType::Null);
    }
    Ok(types)
}

fn note(known: &mut HashMap<String, Option<DataType>>, expression: &Expr, data_type: &DataType) {
    if let Expr::Placeholder(placeholder) = expression {
        let entry = known.entry(placeholder.id.clone()).or_insert(None);
        if entry.is_none() {
            *entry = Some(data_type.clone());
        }
    }
}

/// Returns the schema that clients bind: the plan's types as JDBC and ADBC can write them.
pub(crate) fn client_schema(types: &[DataType]) -> SchemaRef {
    let fields: Vec<FieldRef> = types
        .iter()
        .enumerate()
        .map(|(index, data_type)| {
            let name = format!("${}", index + 1);
            Arc::new(Field::new(name, client_type(data_type), true))
        })
        .collect();
    Arc::new(Schema::new(fields))
}

fn client_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Millisecond, zone.clone()),
        // JDBC has no unsigned or 32/64-bit decimal setters; the cast back is checked.
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        other => result::client_type(other, Timestamps::Zoned),
    }
}

/// Turns one bound row into literals of the plan's types.
pub(crate) fn literals(
    batch: &RecordBatch,
    row: usize,
    types: &[DataType],
) -> Result<Vec<ScalarValue>, StatementError> {
    if batch.num_columns() != types.len() {
        return Err(StatementError::Parameters(format!(
            "{} parameters are bound, the statement has {}",
            batch.num_columns(),
            types.len()
        )));
    }
    batch
        .columns()
        .iter()
        .zip(types)
        .enumerate()
        .map(|(index, (column, data_type))| {
            literal(column.as_ref(), row, data_type).map_err(|error| {
                StatementError::Parameters(format!(
                    "parameter ${} of type `{}` cannot be read as `{data_type}`: {error}",
                    index + 1,
                    column.data_type()
                ))
            })
        })
        .collect()
}

fn literal(
    column: &dyn Array,
    row: usize,
    data_type: &DataType,
) -> Result<ScalarValue, datafusion::error::DataFusionError> {
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let value = column.slice(row, 1);
    if value.is_null(0) || *value.data_type() == DataType::Null {
        return ScalarValue::try_from(data_type);
    }
    let value = cast_with_options(&value, data_type, &strict)?;
    ScalarValue::try_from_array(&value, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray, TimestampMillisecondArray};

    fn numbered(sql: &str) -> String {
        number(sql).unwrap()
    }

    #[test]
    fn question_marks_are_numbered_in_order() {
        assert_eq!(numbered("a=? AND b=?"), "a=$1 AND b=$2");
        assert_eq!(
            numbered("SELECT ?||'x', ?-1, -?"),
            "SELECT $1||'x', $2-1, -$3"
        );
        assert_eq!(numbered("é=?\n AND ü = ? -- ?"), "é=$1\n AND ü = $2 -- ?");
    }

    #[test]
    fn strings_comments_and_quoted_names_are_untouched() {
        for sql in [
            "SELECT 'a?b', 'it''s ?'",
            "SELECT \"col?\" FROM t -- why?\n",
            "/* ? */ SELECT 1 /* nested /* ? */ ? */",
            "SELECT $1, $2",
            "SELECT 'multi\nline ?' || $1",
        ] {
            assert_eq!(numbered(sql), sql);
        }
    }

    #[test]
    fn mixed_styles_are_refused() {
        assert!(number("SELECT ?, $1").is_err());
    }

    #[test]
    fn only_untyped_parameters_are_cast() {
        assert_eq!(
            cast_to_text("SELECT $1, $2, '$1', $11", &[1]).unwrap(),
            "SELECT CAST($1 AS VARCHAR), $2, '$1', $11"
        );
    }

    #[test]
    fn bound_values_take_the_type_of_the_plan() {
        let batch = RecordBatch::try_from_iter([
            ("1", Arc::new(StringArray::from(vec!["7"])) as _),
            (
                "2",
                Arc::new(TimestampMillisecondArray::from(vec![1_500])) as _,
            ),
            ("3", Arc::new(Int64Array::from(vec![None])) as _),
        ])
        .unwrap();
        let types = [
            DataType::Int32,
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            DataType::Utf8,
        ];
        let literals = literals(&batch, 0, &types).unwrap();
        assert_eq!(literals[0], ScalarValue::Int32(Some(7)));
        assert_eq!(
            literals[1],
            ScalarValue::TimestampMicrosecond(Some(1_500_000), Some("UTC".into()))
        );
        assert_eq!(literals[2], ScalarValue::Utf8(None));
    }

    #[test]
    fn value_that_does_not_fit_is_an_error() {
        let batch =
            RecordBatch::try_from_iter([("1", Arc::new(StringArray::from(vec!["x"])) as _)])
                .unwrap();
        let error = literals(&batch, 0, &[DataType::Int32]).unwrap_err();
        assert!(error.to_string().contains("parameter $1"), "{error}");
        assert!(literals(&batch, 0, &[]).is_err());
    }
}
