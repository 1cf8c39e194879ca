//! `reports.*`: one table per model, one partition per report date.
//!
//! Place on the path: the last tables of the night. All reports are computed from the same pinned
//! snapshots before the first one is published; a day is published only when its rows
//! differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, Date32Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Date32Type, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use chrono::{Days, NaiveDate};
use headwater_tables::{Partition, TableSpec};

use crate::config::Config;
use crate::core::{date_list, dates, nullable, register_conversation_parts};
use crate::models::{Model, Refresh};
use crate::night::NightError;
use crate::progress::Progress;
use crate::publish::{Publisher, changed_days, conform_to_table};
use crate::rows::{conform, row_texts, sorted};
use crate::session::Session;

/// The column by which every report is partitioned.
const REPORT_DATE: &str = "report_date";

/// A report's rows, before they are compared with what is published.
struct Computed<'a> {
    model: &'a Model,
    days: BTreeSet<i32>,
    rows: RecordBatch,
}

/// Returns the dates that a night computes: `date` and the late days before it.
pub(crate) fn window(date: NaiveDate, late_days: u32) -> BTreeSet<i32> {
    (0..=u64::from(late_days))
        .filter_map(|back| date.checked_sub_days(Days::new(back)))
        .map(Date32Type::from_naive_date)
        .collect()
}

/// Computes all reports, then publishes the days that changed.
pub(crate) async fn publish(
    publisher: &mut Publisher<'_>,
    models: &[Model],
    config: &Config,
    date: NaiveDate,
    progress: &dyn Progress,
) -> Result<(), NightError> {
    let session = publisher.session()?;
    register_conversation_parts(&session).await?;
    let window = window(date, config.reports.late_days);
    let mut computed = Vec::new();
    for model in models {
        progress.started(&model.table.to_string(), None);
        let report = compute(&session, model, &window, config).await?;
        let rows = report.rows.num_rows();
        progress.finished(
            &model.table.to_string(),
            &format!("{rows} rows of {} days computed", report.days.len()),
        );
        computed.push(report);
    }
    progress.started("publish", Some(computed.len() as u64));
    let mut changed = 0;
    for (index, report) in computed.into_iter().enumerate() {
        changed += publish_one(publisher, &session, report).await?;
        progress.advanced("publish", index as u64 + 1);
    }
    progress.finished("publish", &format!("{changed} days of reports changed"));
    Ok(())
}

async fn compute<'a>(
    session: &Session,
    model: &'a Model,
    window: &BTreeSet<i32>,
    config: &Config,
) -> Result<Computed<'a>, NightError> {
    let failed = || NightError::query(&model.table);
    let days = match model.refresh {
        Refresh::Days => window.clone(),
        Refresh::Conversations => {
            let sql = format!(
                "SELECT DISTINCT v.report_date FROM core.conversations AS v LEFT SEMI JOIN \
                 (SELECT company_id, conversation_id FROM core.events WHERE report_date IN ({0})) AS e \
                 ON e.company_id = v.company_id AND e.conversation_id = v.conversation_id \
                 UNION SELECT report_date FROM core.conversations WHERE report_date IN ({0})",
                date_list(window)
            );
            let mut days = dates(&session.rows(&sql).await.map_err(failed())?);
            days.extend(window);
            days
        }
    };
    let schema = Arc::new(Schema::new(vec![Field::new(
        REPORT_DATE,
        DataType::Date32,
        false,
    )]));
    let column = Date32Array::from_iter_values(days.iter().copied());
    let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(column)])?;
    session
        .register_rows("run_days", schema, vec![rows])
        .map_err(failed())?;
    let limit = config.limits.report_rows_max;
    let (schema, rows) = session
        .rows_at_most(&model.sql, limit)
        .await
        .map_err(failed())?;
    let rows = conform(&Arc::new(nullable(&schema)), &rows)?;
    if rows.num_rows() > limit {
        return Err(invalid(
            model,
            format!("returns more than {limit} rows (`limits.report_rows_max`)"),
        ));
    }
    check_columns(model, &schema)?;
    check_rows(model, &rows, &days)?;
    Ok(Computed { model, days, rows })
}

/// Publishes the days of one report that changed; returns how many.
async fn publish_one(
    publisher: &mut Publisher<'_>,
    session: &Session,
    report: Computed<'_>,
) -> Result<usize, NightError> {
    let Computed { model, days, rows } = report;
    let name = &model.table;
    let schema = rows.schema();
    let spec = TableSpec::from_arrow(
        name.clone(),
        &schema,
        Partition::Identity(REPORT_DATE.to_owned()),
    )?;
    let table = publisher.ensure(&spec).await?;
    let provider = headwater_tables::query::IcebergProvider::new(table.clone())
        .map_err(|error| NightError::query(name)(error.into()))?;
    session
        .register("reports", name.name(), Arc::new(provider))
        .map_err(NightError::query(name))?;
    let published = format!(
        "SELECT * FROM {name} WHERE report_date IN ({})",
        date_list(&days)
    );
    let published = session
        .rows(&published)
        .await
        .map_err(NightError::query(name))?;
    let mut order = vec![REPORT_DATE.to_owned()];
    order.extend(model.grain.iter().cloned());
    let published = sorted(&conform_to_table(name, &table, &published)?, &order)?;
    let computed = sorted(&conform_to_table(name, &table, &[rows])?, &order)?;
    let changed = changed_days(&by_day(&published)?, &by_day(&computed)?);
    if changed.is_empty() {
        return Ok(0);
    }
    let is_changed = report_dates(&computed)
        .iter()
        .map(|day| day.map(|day| changed.contains(&day)))
        .collect();
    let rows = filter_record_batch(&computed, &is_changed)?;
    let files = if rows.num_rows() == 0 {
        Vec::new()
    } else {
        publisher.write(name, &table, vec![rows]).await?
    };
    publisher
        .replace_days(name, &changed, files, BTreeMap::new())
        .await?;
    Ok(changed.len())
}

fn check_columns(model: &Model, schema: &SchemaRef) -> Result<(), NightError> {
    for column in &model.grain {
        if schema.index_of(column).is_err() {
            return Err(invalid(
                model,
                format!("has no column `{column}`, which its grain names"),
            ));
        }
    }
    match schema.field_with_name(REPORT_DATE) {
        Ok(field) if field.data_type() == &DataType::Date32 => Ok(()),
        _ => Err(invalid(
            model,
            "has no column `report_date` of type DATE".to_owned(),
        )),
    }
}

/// Fails when a row is of a day that was not asked for, or when two rows have the same grain.
fn check_rows(model: &Model, rows: &RecordBatch, days: &BTreeSet<i32>) -> Result<(), NightError> {
    if report_dates(rows)
        .iter()
        .any(|day| day.is_none_or(|day| !days.contains(&day)))
    {
        return Err(invalid(
            model,
            "returned a day that is not in `run_days`; join it".to_owned(),
        ));
    }
    let grain: Vec<usize> = model
        .grain
        .iter()
        .map(|column| rows.schema().index_of(column))
        .collect::<Result<_, _>>()?;
    let mut texts = row_texts(&rows.project(&grain)?)?;
    texts.sort_unstable();
    if texts.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(invalid(
            model,
            format!("returned two rows for one ({})", model.grain.join(", ")),
        ));
    }
    Ok(())
}

fn report_dates(rows: &RecordBatch) -> Date32Array {
    rows.column_by_name(REPORT_DATE)
        .and_then(|column| column.as_primitive_opt::<Date32Type>())
        .cloned()
        .unwrap_or_else(|| Date32Array::new_null(rows.num_rows()))
}

fn by_day(rows: &RecordBatch) -> Result<BTreeMap<i32, Vec<String>>, NightError> {
    let mut days: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    for (day, text) in report_dates(rows).iter().zip(row_texts(rows)?) {
        days.entry(day.unwrap_or_default()).or_default().push(text);
    }
    Ok(days)
}

fn invalid(model: &Model, reason: String) -> NightError {
    NightError::Report {
        table: model.table.to_string(),
        reason,
    }
}
