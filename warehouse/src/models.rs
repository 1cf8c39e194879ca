//! Models: one SQL file each, with a header that says what the table is.
//!
//! A report model looks like this; every output column has a `column` line:
//!
//! ```sql
//! -- name: busiest_hour
//! -- grain: company_id, report_date
//! -- partition: report_date
//! -- refresh: days
//! -- depends: core.events
//! -- doc: The busiest hour of each company and day.
//! -- column company_id: The paying tenant.
//! SELECT company_id, report_date, ... FROM core.events JOIN run_days USING (report_date) ...
//! ```
//!
//! `refresh: days` computes the days of the night; `refresh: conversations` the days on which the
//! conversations began that had an event on those days. Either way `run_days(report_date)` holds
//! the days to compute, and rows of other days are an error.

use std::path::{Path, PathBuf};

use headwater_tables::TableName;

use crate::rows::sha256;

/// Report models that are part of the program.
const BUILT_IN: &[(&str, &str)] = &[
    (
        "company_day.sql",
        include_str!("../models/reports/company_day.sql"),
    ),
    (
        "admin_day.sql",
        include_str!("../models/reports/admin_day.sql"),
    ),
    (
        "conversation.sql",
        include_str!("../models/reports/conversation.sql"),
    ),
];

/// View `conversation_parts`: the events of conversations, classified once for all models.
pub(crate) const CONVERSATION_PARTS: &str = include_str!("../models/core/conversation_parts.sql");
/// `core.events`: the events that a night adds, deduplicated against what is there.
pub(crate) const CORE_EVENTS: &str = include_str!("../models/core/events.sql");
/// `core.conversations`: the latest state of each conversation.
pub(crate) const CORE_CONVERSATIONS: &str = include_str!("../models/core/conversations.sql");

/// Which days a night computes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// The date of the night and the late days before it.
    Days,
    /// The days on which conversations began that had an event on those days.
    Conversations,
}

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The table, `reports.<name>`.
    pub table: TableName,
    /// Columns that identify a row; rows are stored in their order.
    pub grain: Vec<String>,
    /// Which days are computed.
    pub refresh: Refresh,
    /// Tables that it reads.
    pub depends: Vec<TableName>,
    /// What it says.
    pub doc: String,
    /// Columns and what each means.
    pub columns: Vec<(String, String)>,
    /// The query.
    pub sql: String,
    /// SHA-256 of the file, recorded with each run.
    pub digest: String,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The directory or a file in it cannot be read.
    #[error("cannot read models from `{}`: {source}; check `reports.models_directory`", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// The header is not complete.
    #[error("report model `{file}`: {reason}")]
    Header {
        /// The file.
        file: String,
        /// What is missing or wrong.
        reason: String,
    },
}

/// Returns the built-in reports and those of `directory`, which win over built-in ones of the same
/// name, ordered by name.
///
/// # Errors
/// See [`ModelError`].
pub fn load(directory: Option<&Path>) -> Result<Vec<Model>, ModelError> {
    let mut models = Vec::new();
    for (file, text) in BUILT_IN {
        models.push(parse(file, text)?);
    }
    for (file, text) in directory
        .map(read_directory)
        .transpose()?
        .unwrap_or_default()
    {
        let model = parse(&file, &text)?;
        models.retain(|other| other.table != model.table);
        models.push(model);
    }
    models.sort_by(|a, b| a.table.cmp(&b.table));
    Ok(models)
}

fn read_directory(directory: &Path) -> Result<Vec<(String, String)>, ModelError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ModelError::Read { path, source }
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed(directory))? {
        let path = entry.map_err(failed(directory))?.path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            let text = std::fs::read_to_string(&path).map_err(failed(&path))?;
            files.push((path.display().to_string(), text));
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one model file.
///
/// # Errors
/// Says which header line is missing or wrong.
pub fn parse(file: &str, text: &str) -> Result<Model, ModelError> {
    let header = Header { file, text };
    let name = header.required("name")?;
    let table =
        TableName::new("reports", name).map_err(|error| header.wrong(&error.to_string()))?;
    let partition = header.required("partition")?;
    if partition != "report_date" {
        return Err(header.wrong("`-- partition:` must be `report_date`"));
    }
    let refresh = match header.get("refresh") {
        None | Some("days") => Refresh::Days,
        Some("conversations") => Refresh::Conversations,
        Some(_) => return Err(header.wrong("`-- refresh:` must be `days` or `conversations`")),
    };
    let depends = list(header.required("depends")?)
        .iter()
        .map(|name| {
            name.parse()
                .map_err(|_| header.wrong("`-- depends:` needs table names"))
        })
        .collect::<Result<Vec<TableName>, _>>()?;
    if depends.iter().any(|name| name.namespace() == "reports") {
        return Err(header.wrong("a report cannot depend on a report"));
    }
    Ok(Model {
        table,
        grain: list(header.required("grain")?),
        refresh,
        depends,
        doc: header.required("doc")?.to_owned(),
        columns: header.columns(),
        sql: text.trim().trim_end_matches(';').to_owned(),
        digest: sha256([text]),
    })
}

struct Header<'a> {
    file: &'a str,
    text: &'a str,
}

impl<'a> Header<'a> {
    fn lines(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.text
            .lines()
            .map_while(|line| line.strip_prefix("--"))
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.trim(), value.trim()))
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.lines()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    fn required(&self, key: &str) -> Result<&'a str, ModelError> {
        self.get(key)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| self.wrong(&format!("its first lines need `-- {key}: ...`")))
    }

    fn columns(&self) -> Vec<(String, String)> {
        self.lines()
            .filter_map(|(key, doc)| Some((key.strip_prefix("column ")?.trim(), doc)))
            .map(|(name, doc)| (name.to_owned(), doc.to_owned()))
            .collect()
    }

    fn wrong(&self, reason: &str) -> ModelError {
        ModelError::Header {
            file: self.file.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',')
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_models_have_whole_headers() {
        let models = load(None).unwrap();
        assert_eq!(models.len(), BUILT_IN.len());
        for model in models {
            assert!(model.columns.len() > 5, "{}", model.table);
            for column in &model.grain {
                assert!(
                    model.columns.iter().any(|(name, _)| name == column),
                    "{column}"
                );
            }
        }
    }

    #[test]
    fn an_incomplete_header_says_what_is_missing() {
        let error = parse("x.sql", "-- name: x\n-- partition: report_date\nSELECT 1").unwrap_err();
        assert!(error.to_string().contains("depends"), "{error}");
    }
}
