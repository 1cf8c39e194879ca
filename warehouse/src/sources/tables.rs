//! The tables and columns that are read, in the order of `schema/operational.sql`.

use super::ColumnType;
use super::ColumnType::{Bool, Date, Decimal, Int, Text, Timestamp};

/// One table of the operational database.
#[derive(Debug)]
pub struct SourceTable {
    /// Its name there and in `ops`.
    pub name: &'static str,
    /// Columns that identify a row; the copy is ordered by them.
    pub key: &'static [&'static str],
    /// Every column that is read.
    pub columns: &'static [(&'static str, ColumnType)],
    /// Whether `ops.<name>_history` keeps every version of a row.
    pub has_history: bool,
}

/// Every table that a night copies.
pub const TABLES: &[SourceTable] = &[
    SourceTable {
        name: "companies",
        key: &["company_id"],
        columns: &[
            ("company_id", Text),
            ("name", Text),
            ("created_at", Timestamp),
            ("signed_up_at", Timestamp),
            ("industry", Text),
            ("size_employees", Int),
            ("website", Text),
            ("country", Text),
            ("timezone", Text),
            ("reporting_currency", Text),
            ("region", Text),
            ("owner_admin_id", Text),
            ("status", Text),
            ("stripe_customer_id", Text),
            ("updated_at", Timestamp),
            ("deleted_at", Timestamp),
        ],
        has_history: true,
    },
    SourceTable {
        name: "plans",
        key: &["plan_id"],
        columns: &[
            ("plan_id", Text),
            ("product_id", Text),
            ("name", Text),
            ("tier_rank", Int),
            ("billing_interval", Text),
            ("interval_count", Int),
            ("currency", Text),
            ("unit_amount_minor", Int),
            ("usage_type", Text),
            ("included_seats", Int),
            ("included_conversations", Int),
            ("included_ai_resolutions", Int),
            ("overage_unit_minor", Int),
            ("active", Bool),
            ("created_at", Timestamp),
            ("updated_at", Timestamp),
        ],
        has_history: true,
    },
    SourceTable {
        name: "subscriptions",
        key: &["subscription_id"],
        columns: &[
            ("subscription_id", Text),
            ("company_id", Text),
            ("status", Text),
            ("start_date", Timestamp),
            ("trial_start", Timestamp),
            ("trial_end", Timestamp),
            ("current_period_start", Timestamp),
            ("current_period_end", Timestamp),
            ("billing_cycle_anchor", Timestamp),
            ("cancel_at", Timestamp),
            ("cancel_at_period_end", Bool),
            ("canceled_at", Timestamp),
            ("ended_at", Timestamp),
            ("collection_method", Text),
            ("created_at", Timestamp),
            ("updated_at", Timestamp),
        ],
        has_history: true,
    },
    SourceTable {
        name: "subscription_items",
        key: &["item_id"],
        columns: &[
            ("item_id", Text),
            ("subscription_id", Text),
            ("plan_id", Text),
            ("quantity", Int),
            ("created_at", Timestamp),
            ("updated_at", Timestamp),
            ("deleted_at", Timestamp),
        ],
        has_history: true,
    },
    SourceTable {
        name: "subscription_changes",
        key: &["change_id"],
        columns: &[
            ("change_id", Text),
            ("subscription_id", Text),
            ("changed_at", Timestamp),
            ("old_plan_id", Text),
            ("new_plan_id", Text),
            ("old_quantity", Int),
            ("new_quantity", Int),
        ],
        has_history: false,
    },
    SourceTable {
        name: "discounts",
        key: &["discount_id"],
        columns: &[
            ("discount_id", Text),
            ("subscription_id", Text),
            ("percent_off", Int),
            ("amount_off_minor", Int),
            ("currency", Text),
            ("starts_at", Timestamp),
            ("ends_at", Timestamp),
            ("duration", Text),
        ],
        has_history: false,
    },
    SourceTable {
        name: "invoices",
        key: &["invoice_id"],
        columns: &[
            ("invoice_id", Text),
            ("company_id", Text),
            ("subscription_id", Text),
            ("number", Text),
            ("status", Text),
            ("currency", Text),
            ("subtotal_minor", Int),
            ("tax_minor", Int),
            ("total_minor", Int),
            ("amount_due_minor", Int),
            ("amount_paid_minor", Int),
            ("amount_remaining_minor", Int),
            ("period_start", Timestamp),
            ("period_end", Timestamp),
            ("created_at", Timestamp),
            ("finalized_at", Timestamp),
            ("due_date", Timestamp),
            ("paid_at", Timestamp),
            ("attempt_count", Int),
            ("billing_reason", Text),
        ],
        has_history: false,
    },
    SourceTable {
        name: "invoice_line_items",
        key: &["line_id"],
        columns: &[
            ("line_id", Text),
            ("invoice_id", Text),
            ("subscription_item_id", Text),
            ("plan_id", Text),
            ("quantity", Int),
            ("unit_amount_excluding_tax_minor", Int),
            ("amount_minor", Int),
            ("proration", Bool),
            ("period_start", Timestamp),
            ("period_end", Timestamp),
            ("type", Text),
        ],
        has_history: false,
    },
    SourceTable {
        name: "payments",
        key: &["payment_id"],
        columns: &[
            ("payment_id", Text),
            ("invoice_id", Text),
            ("amount_minor", Int),
            ("currency", Text),
            ("status", Text),
            ("failure_code", Text),
            ("created_at", Timestamp),
        ],
        has_history: false,
    },
    SourceTable {
        name: "refunds",
        key: &["refund_id"],
        columns: &[
            ("refund_id", Text),
            ("payment_id", Text),
            ("amount_minor", Int),
            ("created_at", Timestamp),
        ],
        has_history: false,
    },
    SourceTable {
        name: "admins",
        key: &["admin_id"],
        columns: &[
            ("admin_id", Text),
            ("company_id", Text),
            ("name", Text),
            ("email_hash", Text),
            ("job_title", Text),
            ("role", Text),
            ("has_inbox_seat", Bool),
            ("away_mode_enabled", Bool),
            ("created_at", Timestamp),
            ("deactivated_at", Timestamp),
            ("last_login_at", Timestamp),
        ],
        has_history: true,
    },
    SourceTable {
        name: "teams",
        key: &["team_id"],
        columns: &[
            ("team_id", Text),
            ("company_id", Text),
            ("name", Text),
            ("distribution_method", Text),
        ],
        has_history: false,
    },
    SourceTable {
        name: "team_admins",
        key: &["team_id", "admin_id", "joined_at"],
        columns: &[
            ("team_id", Text),
            ("admin_id", Text),
            ("joined_at", Timestamp),
            ("left_at", Timestamp),
        ],
        has_history: false,
    },
    SourceTable {
        name: "contacts",
        key: &["contact_id"],
        columns: &[
            ("contact_id", Text),
            ("company_id", Text),
            ("role", Text),
            ("external_id", Text),
            ("created_at", Timestamp),
            ("last_seen_at", Timestamp),
            ("country", Text),
            ("unsubscribed", Bool),
            ("merged_into_id", Text),
            ("deleted_at", Timestamp),
        ],
        has_history: false,
    },
    SourceTable {
        name: "conversations",
        key: &["conversation_id"],
        columns: &[
            ("conversation_id", Text),
            ("company_id", Text),
            ("created_at", Timestamp),
            ("state", Text),
            ("updated_at", Timestamp),
        ],
        has_history: false,
    },
    SourceTable {
        name: "fx_rates_daily",
        key: &["date", "base", "quote"],
        columns: &[
            ("date", Date),
            ("base", Text),
            ("quote", Text),
            ("rate", Decimal),
            ("source", Text),
        ],
        has_history: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The declared columns of one table in the DDL.
    fn ddl_columns<'a>(ddl: &'a str, table: &str) -> Vec<&'a str> {
        let start = format!("CREATE TABLE {table} (");
        let body = ddl
            .split(&start)
            .nth(1)
            .unwrap()
            .split("\n);")
            .next()
            .unwrap();
        body.lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|word| *word != "PRIMARY")
            .collect()
    }

    #[test]
    fn declared_columns_are_those_of_the_ddl() {
        let ddl = include_str!("../../schema/operational.sql");
        assert_eq!(ddl.matches("CREATE TABLE").count(), TABLES.len());
        for table in TABLES {
            let declared: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
            assert_eq!(declared, ddl_columns(ddl, table.name), "{}", table.name);
        }
    }
}
