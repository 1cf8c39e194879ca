//! `core.company_plans`: which plan a company was on at each moment, and what it paid.
//!
//! Place on the path: after `ops.*`, before `core.events`, whose as-of columns it feeds.
//!
//! The plan of a subscription comes exactly from `subscription_changes` where it has rows there, and
//! else from the history of its items; its status from the history of subscriptions. Among several
//! subscriptions the highest status wins, then the highest MRR, then the lowest id. Before the first
//! known version the first version holds (`is_backfilled`).

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimestampMicrosecondType};
use headwater_service::clock::Micros;
use headwater_tables::TableName;

use crate::night::NightError;
use crate::progress::Progress;
use crate::publish::Publisher;
use crate::session::Session;
use headwater_tables::query::functions::timestamp_type;
use timeline::{InForce, PlanChange, Price, Prices, Subscription, Version, timeline};

mod timeline;

type Companies = BTreeMap<String, BTreeMap<String, Subscription>>;

/// Computes the intervals from `ops.*` and publishes them when they changed.
pub(crate) async fn publish(
    publisher: &mut Publisher<'_>,
    progress: &dyn Progress,
) -> Result<(), NightError> {
    progress.started("core.company_plans", None);
    let session = publisher.session()?;
    let name = TableName::new("core", "company_plans")?;
    let (companies, prices) = load(&session).await.map_err(NightError::query(&name))?;
    let mut rows = Vec::new();
    for (company_id, subscriptions) in &companies {
        for version in timeline(subscriptions, &prices) {
            rows.push((company_id.clone(), version));
        }
    }
    let batch = to_batch(&rows)?;
    let is_changed = publisher.replace_all(&name, &batch).await?;
    let detail = if is_changed { "changed" } else { "unchanged" };
    progress.finished(
        "core.company_plans",
        &format!("{} intervals, {detail}", rows.len()),
    );
    Ok(())
}

async fn load(session: &Session) -> datafusion::common::Result<(Companies, Prices)> {
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    let mut subscriptions: BTreeMap<String, Subscription> = BTreeMap::new();
    let rows = Rows(
        session
            .rows(
                "SELECT subscription_id, company_id, status, start_date, valid_from, valid_to \
         FROM ops.subscriptions_history ORDER BY subscription_id, valid_from",
            )
            .await?,
    );
    rows.each(|row| {
        let Some(id) = row.text(0) else { return };
        owners.insert(id.clone(), row.text(1).unwrap_or_default());
        let subscription = subscriptions.entry(id).or_insert_with(|| Subscription {
            start: row.time(3).unwrap_or_default(),
            ..Subscription::default()
        });
        let value = row.text(2).unwrap_or_default();
        subscription.statuses.push(row.version(4, 5, value));
    });
    let rows = Rows(session.rows(
        "SELECT item_id, subscription_id, plan_id, quantity, valid_from, \
         CASE WHEN deleted_at < coalesce(valid_to, deleted_at + INTERVAL '1 day') THEN deleted_at ELSE valid_to END \
         FROM ops.subscription_items_history ORDER BY item_id, valid_from").await?);
    rows.each(|row| {
        let (Some(id), Some(subscription)) = (row.text(0), row.text(1)) else {
            return;
        };
        let Some(subscription) = subscriptions.get_mut(&subscription) else {
            return;
        };
        let value = (
            row.text(2).unwrap_or_default(),
            row.int(3).unwrap_or_default(),
        );
        subscription
            .items
            .entry(id)
            .or_default()
            .push(row.version(4, 5, value));
    });
    let rows = Rows(session.rows(
        "SELECT subscription_id, changed_at, old_plan_id, old_quantity, new_plan_id, new_quantity \
         FROM ops.subscription_changes ORDER BY subscription_id, changed_at, change_id").await?);
    rows.each(|row| {
        let Some(subscription) = row.text(0).and_then(|id| subscriptions.get_mut(&id)) else {
            return;
        };
        let new = (
            row.text(4).unwrap_or_default(),
            row.int(5).unwrap_or_default(),
        );
        subscription.changes.push(PlanChange {
            at: row.time(1).unwrap_or_default(),
            old: row.text(2).map(|plan| (plan, row.int(3).unwrap_or(new.1))),
            new,
        });
    });
    let mut companies = Companies::new();
    for (id, subscription) in subscriptions {
        let owner = owners.remove(&id).unwrap_or_default();
        companies.entry(owner).or_default().insert(id, subscription);
    }
    Ok((companies, load_prices(session).await?))
}

async fn load_prices(session: &Session) -> datafusion::common::Result<Prices> {
    let mut prices = Prices::new();
    let rows = Rows(session.rows(
        "SELECT plan_id, unit_amount_minor, currency, billing_interval, interval_count, usage_type, \
         included_seats, valid_from, valid_to FROM ops.plans_history ORDER BY plan_id, valid_from").await?);
    rows.each(|row| {
        let Some(id) = row.text(0) else { return };
        let price = Price {
            amount_minor: row.int(1).unwrap_or_default(),
            currency: row.text(2).unwrap_or_default(),
            interval: row.text(3).unwrap_or_default(),
            interval_count: row.int(4).unwrap_or(1),
            is_licensed: row.text(5).as_deref() != Some("metered"),
            included_seats: row.int(6),
        };
        prices.entry(id).or_default().push(row.version(7, 8, price));
    });
    Ok(prices)
}

/// Rows of a query, read by position.
struct Rows(Vec<RecordBatch>);

struct Row<'a> {
    batch: &'a RecordBatch,
    index: usize,
}

impl Rows {
    fn each(&self, mut visit: impl FnMut(Row<'_>)) {
        for batch in &self.0 {
            for index in 0..batch.num_rows() {
                visit(Row { batch, index });
            }
        }
    }
}

impl Row<'_> {
    fn text(&self, column: usize) -> Option<String> {
        let array = self.batch.column(column).as_string_opt::<i32>()?;
        array
            .is_valid(self.index)
            .then(|| array.value(self.index).to_owned())
    }

    fn int(&self, column: usize) -> Option<i64> {
        let array = self.batch.column(column).as_primitive_opt::<Int64Type>()?;
        array.is_valid(self.index).then(|| array.value(self.index))
    }

    fn time(&self, column: usize) -> Option<Micros> {
        let array = self
            .batch
            .column(column)
            .as_primitive_opt::<TimestampMicrosecondType>()?;
        array.is_valid(self.index).then(|| array.value(self.index))
    }

    fn version<T>(&self, from: usize, to: usize, value: T) -> Version<T> {
        Version {
            from: self.time(from).unwrap_or_default(),
            to: self.time(to),
            value,
        }
    }
}

fn to_batch(rows: &[(String, Version<InForce>)]) -> Result<RecordBatch, NightError> {
    let texts = |read: &dyn Fn(&InForce) -> Option<String>| -> ArrayRef {
        Arc::new(
            rows.iter()
                .map(|(_, version)| read(&version.value))
                .collect::<StringArray>(),
        )
    };
    let ints = |read: &dyn Fn(&InForce) -> Option<i64>| -> ArrayRef {
        Arc::new(
            rows.iter()
                .map(|(_, version)| read(&version.value))
                .collect::<Int64Array>(),
        )
    };
    let times = |read: &dyn Fn(&Version<InForce>) -> Option<Micros>| -> ArrayRef {
        let times: TimestampMicrosecondArray =
            rows.iter().map(|(_, version)| read(version)).collect();
        Arc::new(times.with_timezone("+00:00"))
    };
    let companies: StringArray = rows
        .iter()
        .map(|(company, _)| Some(company.as_str()))
        .collect();
    let backfilled: BooleanArray = rows
        .iter()
        .map(|(_, version)| Some(version.value.is_backfilled))
        .collect();
    let schema = Schema::new(vec![
        Field::new("company_id", DataType::Utf8, false),
        Field::new("valid_from", timestamp_type(), false),
        Field::new("valid_to", timestamp_type(), true),
        Field::new("subscription_id", DataType::Utf8, false),
        Field::new("subscription_status", DataType::Utf8, false),
        Field::new("plan_id", DataType::Utf8, true),
        Field::new("seats", DataType::Int64, true),
        Field::new("mrr_minor", DataType::Int64, false),
        Field::new("currency", DataType::Utf8, true),
        Field::new("is_backfilled", DataType::Boolean, false),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(companies),
        times(&|version| Some(version.from)),
        times(&|version| version.to),
        texts(&|value| Some(value.subscription_id.clone())),
        texts(&|value| Some(value.status.clone())),
        texts(&|value| value.plan_id.clone()),
        ints(&|value| value.seats),
        ints(&|value| Some(value.mrr_minor)),
        texts(&|value| value.currency.clone()),
        Arc::new(backfilled),
    ];
    Ok(RecordBatch::try_new(Arc::new(schema), columns)?)
}
