//! A statement: parsed, checked to be read-only, planned over one snapshot set.
//!
//! Place on the event's path: SQL text comes in, a plan that only reads goes out; nothing runs here.
//! Promise: the kinds of statement and of plan node that are allowed are listed; everything
//! else is refused, on every path, because every path plans through [`plan`].

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::ParamValues;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::{DFParserBuilder, Statement as DFStatement};
use datafusion::sql::sqlparser::ast::{ObjectName, ObjectNamePart, Statement as Ast};
use datafusion::sql::sqlparser::dialect::GenericDialect;

use crate::error::StatementError;
use crate::parameters;
use crate::result::{self, Timestamps};

/// Deepest nesting of a statement the parser follows.
const RECURSION_MAX: usize = 50;

/// What `SHOW SCHEMAS` means.
const SHOW_SCHEMAS: &str = "SELECT catalog_name, schema_name FROM information_schema.schemata
    WHERE schema_name <> 'information_schema' ORDER BY schema_name";

/// A read-only statement, planned.
pub(crate) struct Planned {
    plan: LogicalPlan,
    /// Columns of the result, exactly as every answer about the statement gives them.
    pub(crate) schema: SchemaRef,
    /// Types of the parameters `$1`, `$2`, ….
    pub(crate) parameters: Vec<DataType>,
}

/// Plans `sql` over the tables of `context`.
pub(crate) async fn plan(
    context: &SessionContext,
    sql: &str,
    timestamps: Timestamps,
) -> Result<Planned, StatementError> {
    let numbered = parameters::number(sql)?;
    let plan = plan_text(context, &numbered).await?;
    let types = parameters::types(&plan)?;
    let untyped: Vec<usize> = (1..=types.len())
        .filter(|number| types[number - 1].is_none())
        .collect();
    if untyped.is_empty() {
        return Ok(planned(plan, types, timestamps));
    }
    let plan = plan_text(context, &parameters::cast_to_text(&numbered, &untyped)?).await?;
    let types = parameters::types(&plan)?;
    Ok(planned(plan, types, timestamps))
}

fn planned(plan: LogicalPlan, types: Vec<Option<DataType>>, timestamps: Timestamps) -> Planned {
    Planned {
        schema: result::client_schema(plan.schema().as_arrow(), timestamps),
        parameters: types
            .into_iter()
            .map(|data_type| data_type.unwrap_or(DataType::Utf8))
            .collect(),
        plan,
    }
}

impl Planned {
    /// Returns the plans to run, in order: one for each bound row, or one for a statement without
    /// parameters.
    pub(crate) fn bind(self, rows: &[RecordBatch]) -> Result<Vec<LogicalPlan>, StatementError> {
        let bound: usize = rows.iter().map(RecordBatch::num_rows).sum();
        if self.parameters.is_empty() {
            return Ok(vec![self.plan]);
        }
        if bound == 0 {
            return Err(StatementError::Parameters(format!(
                "the statement has {} parameters and none is bound; prepare it and bind them",
                self.parameters.len()
            )));
        }
        let mut plans = Vec::with_capacity(bound);
        for batch in rows {
            for row in 0..batch.num_rows() {
                let values = parameters::literals(batch, row, &self.parameters)?;
                let values = ParamValues::from(values);
                plans.push(self.plan.clone().replace_params_with_values(&values)?);
            }
        }
        Ok(plans)
    }
}

async fn plan_text(context: &SessionContext, sql: &str) -> Result<LogicalPlan, StatementError> {
    let mut statement = parse(sql)?;
    check_statement(&statement)?;
    let state = context.state();
    resolve(
        &mut statement,
        &state.config_options().catalog.default_schema,
    )?;
    let plan = state.statement_to_plan(statement).await?;
    check_plan(&plan)?;
    Ok(plan)
}

fn parse(sql: &str) -> Result<DFStatement, StatementError> {
    let mut statements = DFParserBuilder::new(sql)
        .with_dialect(&GenericDialect {})
        .with_recursion_limit(RECURSION_MAX)
        .build()?
        .parse_statements()?;
    let count = statements.len();
    match statements.pop_front() {
        Some(statement) if count == 1 => Ok(statement),
        _ => Err(StatementError::Count { count }),
    }
}

/// Says what DataFusion leaves open: `SHOW SCHEMAS` becomes a query, and `SHOW COLUMNS` of a bare name
/// means the table of the default schema, not every table of that name.
fn resolve(statement: &mut DFStatement, default_schema: &str) -> Result<(), StatementError> {
    let DFStatement::Statement(inner) = statement else {
        return Ok(());
    };
    match inner.as_mut() {
        Ast::ShowSchemas { .. } => *statement = parse(SHOW_SCHEMAS)?,
        Ast::ShowColumns { show_options, .. } => {
            let name = show_options
                .show_in
                .as_mut()
                .and_then(|show_in| show_in.parent_name.as_mut());
            if let Some(ObjectName(parts)) = name
                && parts.len() == 1
            {
                parts.insert(0, ObjectNamePart::Identifier(default_schema.into()));
            }
        }
        _ => {}
    }
    Ok(())
}

/// refuses every kind of statement that is not listed.
fn check_statement(statement: &DFStatement) -> Result<(), StatementError> {
    match statement {
        DFStatement::Statement(statement) => check_ast(statement),
        DFStatement::Explain(explain) => check_statement(&explain.statement),
        DFStatement::CreateExternalTable(_) => {
            Err(StatementError::read_only("CREATE EXTERNAL TABLE"))
        }
        DFStatement::CopyTo(_) => Err(StatementError::read_only("COPY")),
        DFStatement::Reset(_) => Err(StatementError::read_only("RESET")),
    }
}

fn check_ast(statement: &Ast) -> Result<(), StatementError> {
    match statement {
        Ast::Query(_)
        | Ast::ExplainTable { .. }
        | Ast::ShowVariable { .. }
        | Ast::ShowTables { .. }
        | Ast::ShowSchemas { .. }
        | Ast::ShowColumns { .. }
        | Ast::ShowFunctions { .. }
        | Ast::ShowCreate { .. } => Ok(()),
        Ast::Explain { statement, .. } => check_ast(statement),
        other => {
            let text = other.to_string();
            let words: Vec<&str> = text.split_whitespace().take(2).collect();
            Err(StatementError::read_only(words.join(" ")))
        }
    }
}

/// refuses every plan with a node that is not listed, in subqueries and under EXPLAIN too.
fn check_plan(plan: &LogicalPlan) -> Result<(), StatementError> {
    let mut refused = None;
    plan.apply_with_subqueries(|node| {
        if is_read(node) {
            return Ok(TreeNodeRecursion::Continue);
        }
        refused = Some(node.display().to_string());
        Ok(TreeNodeRecursion::Stop)
    })?;
    match refused {
        Some(what) => Err(StatementError::read_only(what)),
        None => Ok(()),
    }
}

fn is_read(node: &LogicalPlan) -> bool {
    matches!(
        node,
        LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::Window(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Join(_)
            | LogicalPlan::Repartition(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::TableScan(_)
            | LogicalPlan::EmptyRelation(_)
            | LogicalPlan::Subquery(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Limit(_)
            | LogicalPlan::Values(_)
            | LogicalPlan::Explain(_)
            | LogicalPlan::Analyze(_)
            | LogicalPlan::Distinct(_)
            | LogicalPlan::DescribeTable(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::RecursiveQuery(_)
    )
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionConfig;

    use super::*;

    async fn planned(sql: &str) -> Result<Planned, StatementError> {
        let context = SessionContext::new();
        let table = "CREATE TABLE t (a INT, b VARCHAR, c TIMESTAMP) AS VALUES (1, 'x', now())";
        context.sql(table).await.unwrap();
        plan(&context, sql, Timestamps::Zoned).await
    }

    #[tokio::test]
    async fn parameters_take_the_type_of_their_place() {
        for (sql, types) in [
            ("SELECT * FROM t WHERE a = ?", vec![DataType::Int32]),
            ("SELECT ?", vec![DataType::Utf8]),
            (
                "SELECT CAST(? AS INT), ?::double",
                vec![DataType::Int32, DataType::Float64],
            ),
            (
                "SELECT * FROM t LIMIT ? OFFSET ?",
                vec![DataType::Int64, DataType::Int64],
            ),
            (
                "SELECT a FROM t WHERE b LIKE ? AND a IN (?, ?)",
                vec![DataType::Utf8, DataType::Int32, DataType::Int32],
            ),
            (
                "SELECT a FROM t WHERE a > (SELECT max(a) FROM t WHERE b = $1)",
                vec![DataType::Utf8],
            ),
        ] {
            let mut got = planned(sql).await.unwrap().parameters;
            for data_type in &mut got {
                *data_type = result::client_type(data_type, Timestamps::Zoned);
            }
            assert_eq!(got, types, "{sql}");
        }
    }

    #[tokio::test]
    async fn reading_statements_are_allowed() {
        for sql in [
            "SELECT 1",
            "WITH x AS (SELECT a FROM t) SELECT * FROM x UNION ALL SELECT 2",
            "EXPLAIN SELECT * FROM t",
            "EXPLAIN ANALYZE SELECT * FROM t",
            "DESCRIBE t",
            "VALUES (1), (2)",
            "SELECT 'INSERT INTO t' AS text;",
        ] {
            planned(sql)
                .await
                .map_err(|error| format!("{sql}: {error}"))
                .unwrap();
        }
    }

    #[tokio::test]
    async fn show_says_what_there_is() {
        let config = SessionConfig::new().with_information_schema(true);
        let context = SessionContext::new_with_config(config);
        for sql in [
            "CREATE TABLE t (a INT, b INT) AS VALUES (1, 2)",
            "CREATE SCHEMA other",
            "CREATE TABLE other.t (c INT) AS VALUES (1)",
        ] {
            context.sql(sql).await.unwrap().collect().await.unwrap();
        }
        for (sql, rows) in [
            ("SHOW SCHEMAS", 2),
            ("SHOW COLUMNS FROM t", 2),
            ("SHOW COLUMNS FROM other.t", 1),
        ] {
            let plan = plan_text(&context, sql).await.unwrap();
            let frame = context.execute_logical_plan(plan).await.unwrap();
            assert_eq!(frame.count().await.unwrap(), rows, "{sql}");
        }
    }

    #[tokio::test]
    async fn several_statements_are_refused() {
        for sql in ["SELECT 1; SELECT 2", "", ";", "-- nothing"] {
            assert!(planned(sql).await.is_err(), "{sql}");
        }
    }
}
