//! Looks into physical plans and results.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::util::pretty::pretty_format_batches;
use datafusion::datasource::physical_plan::ParquetSource;
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionContext;

/// What a plan reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Reads {
    pub(crate) scans: usize,
    pub(crate) files: usize,
    pub(crate) partitions: usize,
}

/// Returns what the optimised plan of a query reads.
pub(crate) async fn reads(context: &SessionContext, sql: &str) -> Reads {
    let frame = context.sql(sql).await.unwrap();
    let plan = frame.create_physical_plan().await.unwrap();
    let mut reads = Reads::default();
    visit(&plan, &mut reads);
    reads
}

fn visit(plan: &Arc<dyn ExecutionPlan>, reads: &mut Reads) {
    if let Some(source) = plan.downcast_ref::<DataSourceExec>()
        && let Some((config, _)) = source.downcast_to_file_source::<ParquetSource>()
    {
        let paths: HashSet<_> = config
            .file_groups
            .iter()
            .flat_map(|group| group.iter().map(|file| file.path().clone()))
            .collect();
        reads.scans += 1;
        reads.files += paths.len();
        reads.partitions += config.file_groups.len();
    }
    for child in plan.children() {
        visit(child, reads);
    }
}

/// Runs a query once and returns the result as a table of text with what it read.
pub(crate) async fn answer_and_reads(context: &SessionContext, sql: &str) -> (String, Reads) {
    let frame = context.sql(sql).await.unwrap();
    let plan = frame.create_physical_plan().await.unwrap();
    let mut reads = Reads::default();
    visit(&plan, &mut reads);
    let batches = collect(plan, context.task_ctx()).await.unwrap();
    (pretty_format_batches(&batches).unwrap().to_string(), reads)
}

/// Runs a query and returns the result as a table of text.
pub(crate) async fn answer(context: &SessionContext, sql: &str) -> String {
    let frame = context.sql(sql).await.unwrap();
    let batches = frame.collect().await.unwrap();
    pretty_format_batches(&batches).unwrap().to_string()
}

/// Runs a query with one row and one column and returns the value as text.
pub(crate) async fn value(context: &SessionContext, sql: &str) -> String {
    let text = answer(context, sql).await;
    let row = text.lines().nth(3).unwrap();
    row.trim_matches(|c: char| c == '|' || c.is_whitespace())
        .to_owned()
}
