//! The price list: four tiers in five currencies, and a metered price for AI resolutions.

/// One price, a row of `plans`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Plan id, such as `growth-month-usd`.
    pub id: String,
    /// Product it is a price of.
    pub product_id: &'static str,
    /// Name as on the invoice.
    pub name: &'static str,
    /// Higher is larger.
    pub tier_rank: i64,
    /// `month` or `year`.
    pub interval: &'static str,
    /// ISO 4217.
    pub currency: &'static str,
    /// Price of one seat (or one resolution) and interval, in minor units.
    pub unit_amount_minor: i64,
    /// `licensed` or `metered`.
    pub usage_type: &'static str,
    /// Seats in the price.
    pub included_seats: i64,
    /// Conversations a month in the price.
    pub included_conversations: i64,
    /// AI resolutions a month in the price.
    pub included_ai_resolutions: i64,
    /// Price of one conversation above, in minor units.
    pub overage_unit_minor: i64,
}

/// Currencies that companies are billed in, with minor units of each per US cent and the step that
/// prices are rounded to. The yen has no minor unit: ¥100 is 100.
const CURRENCIES: [(&str, f64, i64); 5] = [
    ("USD", 1.0, 100),
    ("EUR", 0.92, 100),
    ("GBP", 0.80, 100),
    ("AUD", 1.52, 100),
    ("JPY", 1.50, 50),
];

/// Tier, product, rank, US cents a seat and month, conversations, AI resolutions included.
const TIERS: [(&str, &str, &str, i64, i64, i64, i64); 4] = [
    ("starter", "prod_starter", "Starter", 1, 3_900, 500, 25),
    ("growth", "prod_growth", "Growth", 2, 8_500, 3_000, 200),
    ("scale", "prod_scale", "Scale", 3, 12_900, 12_000, 1_000),
    (
        "enterprise",
        "prod_enterprise",
        "Enterprise",
        4,
        16_900,
        60_000,
        6_000,
    ),
];

/// A year costs ten months.
const MONTHS_PAID_PER_YEAR: i64 = 10;

/// Returns every price that is sold.
pub fn price_list() -> Vec<Plan> {
    let mut plans = Vec::new();
    for (currency, per_cent, step) in CURRENCIES {
        let money = |cents: i64| round_to(cents as f64 * per_cent, step);
        let suffix = currency.to_ascii_lowercase();
        for (tier, product_id, name, tier_rank, cents, conversations, resolutions) in TIERS {
            for (interval, months) in [("month", 1), ("year", MONTHS_PAID_PER_YEAR)] {
                plans.push(Plan {
                    id: format!("{tier}-{interval}-{suffix}"),
                    product_id,
                    name,
                    tier_rank,
                    interval,
                    currency,
                    unit_amount_minor: money(cents) * months,
                    usage_type: "licensed",
                    included_seats: 1,
                    included_conversations: conversations,
                    included_ai_resolutions: resolutions,
                    overage_unit_minor: round_to(45.0 * per_cent, 1),
                });
            }
        }
        plans.push(Plan {
            id: format!("ai-resolution-{suffix}"),
            product_id: "prod_ai_resolution",
            name: "AI resolution",
            tier_rank: 0,
            interval: "month",
            currency,
            unit_amount_minor: round_to(99.0 * per_cent, 1),
            usage_type: "metered",
            included_seats: 0,
            included_conversations: 0,
            included_ai_resolutions: 0,
            overage_unit_minor: 0,
        });
    }
    plans
}

fn round_to(value: f64, step: i64) -> i64 {
    (value / step as f64).round() as i64 * step
}
