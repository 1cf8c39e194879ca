//! Changes that replace whole partitions, or the whole table.
//!
//! Place on the event's path: the warehouse publishes a night with them. Promise: a swap removes
//! exactly the live files of the named days and adds only files of those days, in one commit, so that
//! running a night again changes nothing.

use std::collections::{BTreeSet, HashSet};

use chrono::{Days, NaiveDate};
use iceberg::spec::{DataFile, Literal, PrimitiveLiteral};
use iceberg::table::Table;

use crate::commit::{Change, Operation};
use crate::write::{self, WriteError};

/// Why a swap of days is not possible.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// The table's files cannot be listed.
    #[error(transparent)]
    List(#[from] WriteError),
    /// The table is not partitioned by a day or date.
    #[error("table `{0}` is not partitioned by day or date, so no day of it can be swapped")]
    NotByDay(String),
    /// A file to add belongs to another day. Its rows would be there twice after the next run.
    #[error("file `{path}` holds rows of {found}, which is not among the days to swap")]
    OtherDay {
        /// The file.
        path: String,
        /// Its day.
        found: String,
    },
}

/// Returns the day that a file of a table partitioned by day or date belongs to, `None` for rows
/// without one.
pub fn day_of(file: &DataFile) -> Option<NaiveDate> {
    match file.partition().fields() {
        [Some(Literal::Primitive(PrimitiveLiteral::Int(days)))] => date(*days),
        _ => None,
    }
}

fn date(days_since_epoch: i32) -> Option<NaiveDate> {
    let epoch = NaiveDate::default();
    let distance = Days::new(u64::from(days_since_epoch.unsigned_abs()));
    if days_since_epoch < 0 {
        epoch.checked_sub_days(distance)
    } else {
        epoch.checked_add_days(distance)
    }
}

impl Change {
    /// Returns a change that replaces everything in the table by `add`.
    pub async fn replace_all(table: &Table, add: Vec<DataFile>) -> Result<Self, WriteError> {
        let live = write::live_files(table).await?;
        Ok(Self::overwrite(&live, add))
    }

    /// Returns a change that replaces the partitions of `days` by `add`; other days stay. Several
    /// days are one commit; a day without files in `add` becomes empty.
    pub async fn swap_days(
        table: &Table,
        days: &BTreeSet<NaiveDate>,
        add: Vec<DataFile>,
    ) -> Result<Self, SwapError> {
        let partition = table.metadata().default_partition_type().fields();
        let is_date = |field: &iceberg::spec::NestedFieldRef| {
            let primitive = field.field_type.as_primitive_type();
            // day(…) has the result type date in this crate and int in the specification.
            primitive
                .is_some_and(|primitive| matches!(primitive.to_string().as_str(), "date" | "int"))
        };
        if partition.len() != 1 || !partition.iter().all(is_date) {
            return Err(SwapError::NotByDay(table.identifier().to_string()));
        }
        let is_named = |file: &DataFile| day_of(file).is_some_and(|day| days.contains(&day));
        if let Some(other) = add.iter().find(|file| !is_named(file)) {
            return Err(SwapError::OtherDay {
                path: other.file_path().to_owned(),
                found: day_of(other).map_or_else(|| "no day".to_owned(), |day| day.to_string()),
            });
        }
        let mut live = write::live_files(table).await?;
        live.retain(is_named);
        Ok(Self::overwrite(&live, add))
    }

    fn overwrite(live: &[DataFile], add: Vec<DataFile>) -> Self {
        let paths = live.iter().map(|file| file.file_path().to_owned());
        let remove: HashSet<String> = paths.collect();
        Self {
            operation: Operation::Overwrite,
            add,
            remove,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_before_1970_are_dates_too() {
        assert_eq!(date(0), NaiveDate::from_ymd_opt(1970, 1, 1));
        assert_eq!(date(-1), NaiveDate::from_ymd_opt(1969, 12, 31));
        assert_eq!(date(20_777), NaiveDate::from_ymd_opt(2026, 11, 20));
    }
}
