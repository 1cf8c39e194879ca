//! Money: plans, subscriptions with their changes, invoices with lines, payments, refunds.

use chrono::{DateTime, Months};

use super::sql::{Cell, Table, maybe_time, time};
use crate::desk::Desk;
use crate::world::time::{DAY, HOUR, MINUTE, Millis};
use crate::world::{Chance, Company, Plan, World};

/// Months of invoices that the sample keeps.
const MONTHS_OF_INVOICES: u32 = 7;

/// Returns the tables about contracts and money.
pub(super) fn tables(desk: &Desk) -> Vec<Table> {
    let world = &desk.world;
    let mut tables = vec![
        plans(world),
        subscriptions(world),
        subscription_items(world),
        subscription_changes(world),
        discounts(world),
    ];
    tables.extend(Ledger::of(world).into_tables());
    tables
}

fn plans(world: &World) -> Table {
    let since = world.window.start() - 1_900 * DAY;
    let row = |plan: &Plan| {
        vec![
            plan.id.as_str().into(),
            plan.product_id.into(),
            plan.name.into(),
            plan.tier_rank.into(),
            plan.interval.into(),
            1.into(),
            plan.currency.into(),
            plan.unit_amount_minor.into(),
            plan.usage_type.into(),
            plan.included_seats.into(),
            plan.included_conversations.into(),
            plan.included_ai_resolutions.into(),
            plan.overage_unit_minor.into(),
            true.into(),
            time(since),
            time(since),
        ]
    };
    Table {
        name: "plans",
        columns: &[
            "plan_id",
            "product_id",
            "name",
            "tier_rank",
            "billing_interval",
            "interval_count",
            "currency",
            "unit_amount_minor",
            "usage_type",
            "included_seats",
            "included_conversations",
            "included_ai_resolutions",
            "overage_unit_minor",
            "active",
            "created_at",
            "updated_at",
        ],
        rows: world.plans.iter().map(row).collect(),
    }
}

fn interval_months(plan_id: &str) -> u32 {
    if plan_id.contains("-year-") { 12 } else { 1 }
}

/// Returns start and end of the period of `company`'s contract that holds at `at`.
fn period(company: &Company, at: Millis) -> (Millis, Millis) {
    let months = interval_months(&company.subscription.plan);
    let start =
        DateTime::from_timestamp_millis(company.subscription.started_at).unwrap_or_default();
    let mut from = start;
    // Counted from the first day each time: a contract of the 31st stays one of the 31st.
    for index in 1.. {
        let to = start + Months::new(months * index);
        if to.timestamp_millis() > at {
            return (from.timestamp_millis(), to.timestamp_millis());
        }
        from = to;
    }
    unreachable!("periods grow without end")
}

fn subscriptions(world: &World) -> Table {
    let now = world.window.end();
    let row = |company: &Company| {
        let subscription = &company.subscription;
        let (from, to) = period(company, now);
        let updated = subscription
            .changes
            .last()
            .map_or(from, |change| change.at.max(from));
        vec![
            subscription.id.as_str().into(),
            company.profile.id.into(),
            subscription.status.into(),
            time(subscription.started_at),
            maybe_time(subscription.trial_end.map(|end| end - 14 * DAY)),
            maybe_time(subscription.trial_end),
            time(from),
            time(to),
            time(subscription.started_at),
            maybe_time(subscription.cancel_at_period_end.then_some(to)),
            subscription.cancel_at_period_end.into(),
            maybe_time(
                subscription
                    .ended_at
                    .or_else(|| subscription.cancel_at_period_end.then(|| now - 6 * DAY)),
            ),
            maybe_time(subscription.ended_at),
            if subscription.quantity > 20 {
                "send_invoice".into()
            } else {
                "charge_automatically".into()
            },
            time(subscription.started_at),
            time(subscription.ended_at.unwrap_or(updated)),
        ]
    };
    Table {
        name: "subscriptions",
        columns: &[
            "subscription_id",
            "company_id",
            "status",
            "start_date",
            "trial_start",
            "trial_end",
            "current_period_start",
            "current_period_end",
            "billing_cycle_anchor",
            "cancel_at",
            "cancel_at_period_end",
            "canceled_at",
            "ended_at",
            "collection_method",
            "created_at",
            "updated_at",
        ],
        rows: world.companies.iter().map(row).collect(),
    }
}

fn ai_plan(company: &Company) -> String {
    format!(
        "ai-resolution-{}",
        company.profile.currency.to_ascii_lowercase()
    )
}

fn subscription_items(world: &World) -> Table {
    let mut rows = Vec::new();
    for company in &world.companies {
        let subscription = &company.subscription;
        let updated = subscription
            .changes
            .last()
            .map_or(subscription.started_at, |change| change.at);
        let mut item = |id: &str, plan: &str, quantity: i64, updated| {
            rows.push(vec![
                id.into(),
                subscription.id.as_str().into(),
                plan.into(),
                quantity.into(),
                time(subscription.started_at),
                time(updated),
                Cell::Null,
            ]);
        };
        item(
            &subscription.seat_item_id,
            &subscription.plan,
            subscription.quantity,
            updated,
        );
        if company.has_ai_agent {
            item(
                &subscription.ai_item_id,
                &ai_plan(company),
                1,
                subscription.started_at,
            );
        }
    }
    Table {
        name: "subscription_items",
        columns: &[
            "item_id",
            "subscription_id",
            "plan_id",
            "quantity",
            "created_at",
            "updated_at",
            "deleted_at",
        ],
        rows,
    }
}

fn subscription_changes(world: &World) -> Table {
    let mut rows = Vec::new();
    for company in &world.companies {
        for change in &company.subscription.changes {
            rows.push(vec![
                change.id.as_str().into(),
                company.subscription.id.as_str().into(),
                time(change.at),
                change.old_plan.as_str().into(),
                change.new_plan.as_str().into(),
                change.old_quantity.into(),
                change.new_quantity.into(),
            ]);
        }
    }
    Table {
        name: "subscription_changes",
        columns: &[
            "change_id",
            "subscription_id",
            "changed_at",
            "old_plan_id",
            "new_plan_id",
            "old_quantity",
            "new_quantity",
        ],
        rows,
    }
}

fn discounts(world: &World) -> Table {
    let mut rows = Vec::new();
    for company in &world.companies {
        let subscription = &company.subscription;
        if let Some(percent) = subscription.percent_off {
            rows.push(vec![
                format!("di_{}", company.profile.id.replace('-', "")).into(),
                subscription.id.as_str().into(),
                percent.into(),
                Cell::Null,
                Cell::Null,
                time(subscription.started_at),
                Cell::Null,
                "forever".into(),
            ]);
        }
    }
    Table {
        name: "discounts",
        columns: &[
            "discount_id",
            "subscription_id",
            "percent_off",
            "amount_off_minor",
            "currency",
            "starts_at",
            "ends_at",
            "duration",
        ],
        rows,
    }
}

/// Invoices and what belongs to them, written month by month.
#[derive(Default)]
struct Ledger {
    invoices: Vec<Vec<Cell>>,
    lines: Vec<Vec<Cell>>,
    payments: Vec<Vec<Cell>>,
    refunds: Vec<Vec<Cell>>,
}

/// An invoice before it is written.
struct Bill<'w> {
    company: &'w Company,
    id: String,
    from: Millis,
    to: Millis,
    subtotal: i64,
    total: i64,
    is_unpaid: bool,
}

impl Ledger {
    fn of(world: &World) -> Self {
        let mut chance = Chance::new(world.seed, "billing");
        let mut ledger = Self::default();
        for company in &world.companies {
            if company.subscription.status != "trialing" {
                ledger.bill(world, company, &mut chance);
            }
        }
        ledger
    }

    /// Writes the invoices of one company: one for each month, or for each year, of the past.
    fn bill(&mut self, world: &World, company: &Company, chance: &mut Chance) {
        let now = world.window.end();
        let oldest = now - i64::from(MONTHS_OF_INVOICES) * 30 * DAY;
        let (mut from, mut to) = period(company, oldest.max(company.subscription.started_at));
        while from < now {
            let is_recent = to + 40 * DAY > now;
            let is_over = company.subscription.ended_at.is_some_and(|end| end < from);
            if !is_over {
                self.invoice(world, company, (from, to), is_recent, chance);
            }
            (from, to) = (to, period(company, to).1);
        }
    }

    fn invoice(
        &mut self,
        world: &World,
        company: &Company,
        (from, to): (Millis, Millis),
        is_recent: bool,
        chance: &mut Chance,
    ) {
        let subscription = &company.subscription;
        let (plan, quantity) = subscription.as_of(from);
        let unit = world.plan(plan).map_or(0, |plan| plan.unit_amount_minor);
        let id = chance.id("in_");
        let discount = subscription.percent_off.unwrap_or(0);
        let seats = unit * quantity * (100 - discount) / 100;
        self.line(
            chance,
            (&id, plan, &subscription.seat_item_id),
            (quantity, unit, seats),
            (from, to),
        );
        let mut subtotal = seats;
        if company.has_ai_agent {
            let resolutions = chance.between(20, 60) * quantity;
            let metered = ai_plan(company);
            let each = world
                .plan(&metered)
                .map_or(0, |plan| plan.unit_amount_minor);
            let amount = resolutions * each;
            self.line(
                chance,
                (&id, &metered, &subscription.ai_item_id),
                (resolutions, each, amount),
                (from, to),
            );
            subtotal += amount;
        }
        // European business customers account for the tax themselves; Americans pay sales tax.
        let tax = if company.profile.country == "US" {
            subtotal * 7 / 100
        } else {
            0
        };
        let late_payer = matches!(subscription.status, "past_due" | "unpaid");
        self.settle(
            Bill {
                company,
                id,
                from,
                to,
                subtotal,
                total: subtotal + tax,
                is_unpaid: is_recent && late_payer,
            },
            world.window.end(),
            chance,
        );
    }

    fn line(
        &mut self,
        chance: &mut Chance,
        (invoice, plan, item): (&str, &str, &str),
        (quantity, unit, amount): (i64, i64, i64),
        (from, to): (Millis, Millis),
    ) {
        self.lines.push(vec![
            chance.id("il_").into(),
            invoice.into(),
            item.into(),
            plan.into(),
            quantity.into(),
            unit.into(),
            amount.into(),
            false.into(),
            time(from),
            time(to),
            "subscription".into(),
        ]);
    }

    /// Writes the invoice and the attempts to pay it.
    fn settle(&mut self, bill: Bill<'_>, now: Millis, chance: &mut Chance) {
        let finalized = bill.from + HOUR;
        let paid_at = (!bill.is_unpaid).then(|| finalized + chance.between(1, 90) * MINUTE);
        let paid = if bill.is_unpaid { 0 } else { bill.total };
        let subscription = &bill.company.subscription;
        let currency = bill.company.profile.currency;
        let is_first = bill.from == subscription.started_at;
        self.invoices.push(vec![
            bill.id.as_str().into(),
            bill.company.profile.id.into(),
            subscription.id.as_str().into(),
            format!("HW-{:05}", 10_001 + self.invoices.len()).into(),
            if bill.is_unpaid { "open" } else { "paid" }.into(),
            currency.into(),
            bill.subtotal.into(),
            (bill.total - bill.subtotal).into(),
            bill.total.into(),
            bill.total.into(),
            paid.into(),
            (bill.total - paid).into(),
            time(bill.from),
            time(bill.to),
            time(bill.from),
            time(finalized),
            time(bill.from + 14 * DAY),
            maybe_time(paid_at),
            (if bill.is_unpaid { 3 } else { 1 }).into(),
            if is_first {
                "subscription_create"
            } else {
                "subscription_cycle"
            }
            .into(),
        ]);
        let attempts: &[Option<&str>] = if bill.is_unpaid {
            &[
                Some("card_declined"),
                Some("insufficient_funds"),
                Some("card_declined"),
            ]
        } else {
            &[None]
        };
        for (days, failure) in attempts.iter().enumerate() {
            let at = paid_at.unwrap_or(finalized + 3 * days as i64 * DAY);
            if at >= now {
                break;
            }
            let payment = chance.id("py_");
            self.payments.push(vec![
                payment.as_str().into(),
                bill.id.as_str().into(),
                bill.total.into(),
                currency.into(),
                if failure.is_some() {
                    "failed"
                } else {
                    "succeeded"
                }
                .into(),
                (*failure).into(),
                time(at),
            ]);
            if failure.is_none() && chance.hit(0.03) {
                self.refunds.push(vec![
                    chance.id("re_").into(),
                    payment.into(),
                    (bill.total / 10).into(),
                    time(at + 2 * DAY),
                ]);
            }
        }
    }

    fn into_tables(self) -> Vec<Table> {
        vec![
            Table {
                name: "invoices",
                columns: &[
                    "invoice_id",
                    "company_id",
                    "subscription_id",
                    "number",
                    "status",
                    "currency",
                    "subtotal_minor",
                    "tax_minor",
                    "total_minor",
                    "amount_due_minor",
                    "amount_paid_minor",
                    "amount_remaining_minor",
                    "period_start",
                    "period_end",
                    "created_at",
                    "finalized_at",
                    "due_date",
                    "paid_at",
                    "attempt_count",
                    "billing_reason",
                ],
                rows: self.invoices,
            },
            Table {
                name: "invoice_line_items",
                columns: &[
                    "line_id",
                    "invoice_id",
                    "subscription_item_id",
                    "plan_id",
                    "quantity",
                    "unit_amount_excluding_tax_minor",
                    "amount_minor",
                    "proration",
                    "period_start",
                    "period_end",
                    "type",
                ],
                rows: self.lines,
            },
            Table {
                name: "payments",
                columns: &[
                    "payment_id",
                    "invoice_id",
                    "amount_minor",
                    "currency",
                    "status",
                    "failure_code",
                    "created_at",
                ],
                rows: self.payments,
            },
            Table {
                name: "refunds",
                columns: &["refund_id", "payment_id", "amount_minor", "created_at"],
                rows: self.refunds,
            },
        ]
    }
}
