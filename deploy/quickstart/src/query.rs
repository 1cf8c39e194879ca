//! Questions to the tables from within the process, without a SQL client.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, UInt64Type};
use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use headwater_tables::query::{Pins, QueryError, SessionOptions, session};
use headwater_tables::{Catalog, CatalogError};

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryFailed {
    /// The catalog cannot be read.
    #[error("cannot read the catalog: {0}")]
    Catalog(#[from] CatalogError),
    /// The session cannot be opened.
    #[error("cannot open the tables: {0}")]
    Session(#[from] QueryError),
    /// The statement failed.
    #[error("cannot read the tables: {0}")]
    Statement(#[from] DataFusionError),
    /// A column is not what was asked for.
    #[error("cannot read a column of the answer: {0}")]
    Column(#[from] ArrowError),
}

/// Asks the tables of a catalog; each question sees them as they are then.
#[derive(Clone)]
pub struct Query {
    catalog: Catalog,
}

impl Query {
    /// Asks the tables of `catalog`.
    pub fn new(catalog: Catalog) -> Self {
        Self { catalog }
    }

    async fn batches(&self, sql: &str) -> Result<Vec<RecordBatch>, QueryFailed> {
        let pins = Pins::take(&self.catalog).await?;
        let context = session(&pins, &SessionOptions::default())?;
        Ok(context.sql(sql).await?.collect().await?)
    }

    /// Returns the one row of `sql`, all of whose columns are numbers.
    ///
    /// # Errors
    /// See [`QueryFailed`].
    pub async fn numbers(&self, sql: &str) -> Result<Vec<u64>, QueryFailed> {
        let mut numbers = Vec::new();
        for batch in self.batches(sql).await? {
            for column in batch.columns() {
                let column = cast(column, &DataType::UInt64)?;
                numbers.extend(column.as_primitive::<UInt64Type>().values());
            }
        }
        Ok(numbers)
    }

    /// Returns the rows of `sql` as text, missing values as `None`.
    ///
    /// # Errors
    /// See [`QueryFailed`].
    pub async fn text(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, QueryFailed> {
        let mut rows = Vec::new();
        for batch in self.batches(sql).await? {
            let first = rows.len();
            rows.resize_with(first + batch.num_rows(), Vec::new);
            for column in batch.columns() {
                let column = cast(column, &DataType::Utf8)?;
                let column = column.as_string::<i32>();
                for row in 0..column.len() {
                    let value = column.is_valid(row).then(|| column.value(row).to_owned());
                    rows[first + row].push(value);
                }
            }
        }
        Ok(rows)
    }
}
