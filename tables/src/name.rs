//! Names of tables: `namespace.table`, as people write them in SQL.
//!
//! Place on the event's path: the key of every catalog call. Promise: a value of [`TableName`] is
//! always valid in the catalog, in a path and in SQL without quotes.

use std::fmt;
use std::str::FromStr;

use iceberg::{NamespaceIdent, TableIdent};

/// The name of one table, such as `raw.events`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    namespace: String,
    name: String,
}

/// The text is not a table name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a table name: write `namespace.table` in lower-case letters, digits and underscores, each part starting with a letter or underscore"
)]
pub struct InvalidTableName(pub String);

impl TableName {
    /// Makes a name of its two parts.
    pub fn new(namespace: &str, name: &str) -> Result<Self, InvalidTableName> {
        if !is_identifier(namespace) || !is_identifier(name) {
            return Err(InvalidTableName(format!("{namespace}.{name}")));
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// Returns the namespace, such as `raw`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the name inside the namespace, such as `events`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the name as the iceberg crate writes it.
    pub fn to_ident(&self) -> TableIdent {
        TableIdent::new(
            NamespaceIdent::new(self.namespace.clone()),
            self.name.clone(),
        )
    }
}

impl TryFrom<&TableIdent> for TableName {
    type Error = InvalidTableName;

    fn try_from(ident: &TableIdent) -> Result<Self, InvalidTableName> {
        Self::new(&ident.namespace().join("."), ident.name())
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.namespace, self.name)
    }
}

impl FromStr for TableName {
    type Err = InvalidTableName;

    fn from_str(text: &str) -> Result<Self, InvalidTableName> {
        let (namespace, name) = text
            .split_once('.')
            .ok_or_else(|| InvalidTableName(text.to_owned()))?;
        Self::new(namespace, name)
    }
}

pub(crate) fn is_identifier(text: &str) -> bool {
    let starts_well = text
        .bytes()
        .next()
        .is_some_and(|first| first.is_ascii_lowercase() || first == b'_');
    starts_well
        && text.len() <= 128
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_as_it_was_written() {
        let name: TableName = "raw.events".parse().unwrap();
        assert_eq!(
            (name.namespace(), name.name(), name.to_string().as_str()),
            ("raw", "events", "raw.events")
        );
    }

    #[test]
    fn names_that_need_quotes_or_leave_the_directory_are_refused() {
        for text in [
            "events",
            "raw.",
            ".events",
            "raw.a.b",
            "Raw.events",
            "raw.../x",
            "raw.1st",
            "",
        ] {
            assert!(text.parse::<TableName>().is_err(), "{text}");
        }
    }
}
