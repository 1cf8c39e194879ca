//! Rows as SQL text that PostgreSQL and SQLite both read.
//!
//! Literals and not parameters, because one statement carries hundreds of rows and every value is
//! made here; text is quoted by doubling the quotes.

use std::fmt::Write as _;

use crate::world::time::{Millis, iso};

/// Rows in one INSERT.
const ROWS_PER_STATEMENT: usize = 400;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// SQL NULL.
    Null,
    /// Text, also dates and decimals.
    Text(String),
    /// Whole number.
    Int(i64),
    /// Truth.
    Bool(bool),
    /// Instant.
    Time(Millis),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<bool> for Cell {
    fn from(truth: bool) -> Self {
        Self::Bool(truth)
    }
}

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Returns an instant as a cell.
pub(super) fn time(at: Millis) -> Cell {
    Cell::Time(at)
}

/// Returns an instant that may be missing as a cell.
pub(super) fn maybe_time(at: Option<Millis>) -> Cell {
    at.map_or(Cell::Null, Cell::Time)
}

impl Cell {
    fn write_to(&self, out: &mut String) {
        let written = match self {
            Self::Null => write!(out, "NULL"),
            Self::Int(number) => write!(out, "{number}"),
            Self::Bool(truth) => write!(out, "{}", if *truth { "TRUE" } else { "FALSE" }),
            Self::Text(text) => write!(out, "'{}'", text.replace('\'', "''")),
            Self::Time(at) => {
                // Six digits of a second, the form that the schema asks for.
                let text = iso(*at);
                write!(out, "'{}000Z'", text.trim_end_matches('Z'))
            }
        };
        written.expect("writing to memory cannot fail");
    }
}

/// A table and its rows.
#[derive(Debug)]
pub struct Table {
    /// Name.
    pub name: &'static str,
    /// Columns, in the order of the cells.
    pub columns: &'static [&'static str],
    /// Rows.
    pub rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Returns the INSERT statements of all rows.
    pub(super) fn inserts(&self) -> impl Iterator<Item = String> {
        self.rows.chunks(ROWS_PER_STATEMENT).map(|rows| {
            let mut sql = format!(
                "INSERT INTO {} ({}) VALUES ",
                self.name,
                self.columns.join(", ")
            );
            for (index, row) in rows.iter().enumerate() {
                debug_assert_eq!(row.len(), self.columns.len(), "{}", self.name);
                sql.push_str(if index == 0 { "(" } else { ", (" });
                for (column, cell) in row.iter().enumerate() {
                    if column > 0 {
                        sql.push_str(", ");
                    }
                    cell.write_to(&mut sql);
                }
                sql.push(')');
            }
            sql
        })
    }

    /// Returns the values of a column.
    ///
    /// # Panics
    /// When there is no such column.
    pub fn column(&self, name: &str) -> Vec<&Cell> {
        let index = self
            .columns
            .iter()
            .position(|column| *column == name)
            .expect("the column exists");
        self.rows.iter().map(|row| &row[index]).collect()
    }
}

/// Splits a script into its statements; comments go.
pub(super) fn statements(script: &str) -> Vec<String> {
    let without_comments: String = script
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n");
    without_comments
        .split(';')
        .map(str::trim)
        .filter(|statement| !statement.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_in_text_stay_text() {
        let table = Table {
            name: "people",
            columns: &["name", "since", "left", "age"],
            rows: vec![vec![
                "O'Brien".into(),
                time(0),
                Cell::from(None::<String>),
                7.into(),
            ]],
        };
        let sql: Vec<String> = table.inserts().collect();
        assert_eq!(
            sql,
            [
                "INSERT INTO people (name, since, left, age) VALUES ('O''Brien', '1970-01-01T00:00:00.000000Z', NULL, 7)"
            ]
        );
    }
}
