//! Errors of statements, and the gRPC status a client sees.
//!
//! Place on the event's path: the last word on a failed statement. Promise: the code tells a driver
//! what to do (fix the SQL, try again, reconnect), the message is one line and names the value.

use datafusion::error::DataFusionError;
use tonic::{Code, Status};

use crate::metrics;

/// Why a statement is not run.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// It could write or change something: run it elsewhere.
    #[error(
        "this server is read-only: {what} is refused; send one SELECT, EXPLAIN, SHOW or DESCRIBE"
    )]
    ReadOnly {
        /// Kind of statement.
        what: String,
    },
    /// More or less than one statement: send them one by one.
    #[error("send exactly one statement, got {count}")]
    Count {
        /// Statements in the text.
        count: usize,
    },
    /// The text is longer than allowed.
    #[error("the statement has {got} bytes, more than `limits.statement_bytes_max` = {max}")]
    TooLong {
        /// Bytes of the text.
        got: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The parameters do not fit the statement: bind others.
    #[error("{0}")]
    Parameters(String),
    /// DataFusion cannot plan or run it.
    #[error("{}", .0.strip_backtrace())]
    Query(#[from] DataFusionError),
    /// The catalog cannot be read: try again.
    #[error("the catalog cannot be read: {0}; try again")]
    Catalog(String),
    /// A bug: the work panicked.
    #[error("the query stopped unexpectedly; see the server's log")]
    Panicked,
    /// A table changed its columns since the statement was prepared: prepare again.
    #[error("the columns of the result changed since the statement was prepared; prepare it again")]
    Changed,
}

impl StatementError {
    /// Returns a refusal of a write and counts it.
    pub(crate) fn read_only(what: impl Into<String>) -> Self {
        ::metrics::counter!(metrics::STATEMENTS_REFUSED).increment(1);
        Self::ReadOnly { what: what.into() }
    }

    fn code(&self) -> Code {
        match self {
            Self::ReadOnly { .. } => Code::PermissionDenied,
            Self::Count { .. } | Self::TooLong { .. } | Self::Parameters(_) => {
                Code::InvalidArgument
            }
            Self::Query(error) => code_of(error),
            Self::Catalog(_) => Code::Unavailable,
            Self::Panicked => Code::Internal,
            Self::Changed => Code::FailedPrecondition,
        }
    }
}

impl From<StatementError> for Status {
    fn from(error: StatementError) -> Self {
        let message = error.to_string().replace('\n', " ");
        Self::new(error.code(), message)
    }
}

fn code_of(error: &DataFusionError) -> Code {
    match error.find_root() {
        DataFusionError::ResourcesExhausted(_) => Code::ResourceExhausted,
        DataFusionError::SQL(..)
        | DataFusionError::Plan(_)
        | DataFusionError::SchemaError(..)
        | DataFusionError::NotImplemented(_)
        | DataFusionError::Configuration(_)
        | DataFusionError::Execution(_)
        | DataFusionError::ArrowError(..) => Code::InvalidArgument,
        DataFusionError::Collection(errors) => errors.first().map_or(Code::Internal, code_of),
        _ => Code::Internal,
    }
}
