//! Who was on which plan when: pure, without a table.

use std::collections::{BTreeMap, BTreeSet};

use headwater_service::clock::Micros;

/// A value and the interval in which it held.
#[derive(Debug, Clone)]
pub(crate) struct Version<T> {
    pub(crate) from: Micros,
    pub(crate) to: Option<Micros>,
    pub(crate) value: T,
}

/// What a plan costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Price {
    pub(crate) amount_minor: i64,
    pub(crate) currency: String,
    pub(crate) interval: String,
    pub(crate) interval_count: i64,
    pub(crate) is_licensed: bool,
    pub(crate) included_seats: Option<i64>,
}

/// A plan and how many of it.
pub(crate) type Quantity = (String, i64);

/// One change of a subscription's plan.
#[derive(Debug, Clone)]
pub(crate) struct PlanChange {
    pub(crate) at: Micros,
    pub(crate) old: Option<Quantity>,
    pub(crate) new: Quantity,
}

/// Everything known about one subscription.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subscription {
    pub(crate) start: Micros,
    pub(crate) statuses: Vec<Version<String>>,
    pub(crate) items: BTreeMap<String, Vec<Version<Quantity>>>,
    pub(crate) changes: Vec<PlanChange>,
}

/// What holds for a company in one interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InForce {
    pub(crate) subscription_id: String,
    pub(crate) status: String,
    pub(crate) plan_id: Option<String>,
    pub(crate) seats: Option<i64>,
    pub(crate) mrr_minor: i64,
    pub(crate) currency: Option<String>,
    pub(crate) is_backfilled: bool,
}

/// Versions of every plan.
pub(crate) type Prices = BTreeMap<String, Vec<Version<Price>>>;

/// Returns what held for a company and when: intervals without gap or overlap, the first one from
/// 1970, the last one open.
pub(crate) fn timeline(
    subscriptions: &BTreeMap<String, Subscription>,
    prices: &Prices,
) -> Vec<Version<InForce>> {
    let mut merged: Vec<Version<InForce>> = Vec::new();
    for at in breakpoints(subscriptions, prices) {
        let Some(value) = in_force(subscriptions, prices, at) else {
            // Deleted at the source: nothing holds from here on.
            if let Some(last) = merged.last_mut() {
                last.to.get_or_insert(at);
            }
            continue;
        };
        if let Some(last) = merged.last_mut() {
            if last.to.is_none() && last.value == value {
                continue;
            }
            last.to.get_or_insert(at);
        }
        merged.push(Version {
            from: at,
            to: None,
            value,
        });
    }
    if let Some(first) = merged.first().filter(|first| first.from > 0).cloned() {
        let value = InForce {
            is_backfilled: true,
            ..first.value
        };
        merged.insert(
            0,
            Version {
                from: 0,
                to: Some(first.from),
                value,
            },
        );
    }
    merged
}

fn breakpoints(
    subscriptions: &BTreeMap<String, Subscription>,
    prices: &Prices,
) -> BTreeSet<Micros> {
    let mut points = BTreeSet::new();
    for subscription in subscriptions.values() {
        points.insert(subscription.start);
        points.extend(ends(&subscription.statuses));
        for item in subscription.items.values() {
            points.extend(ends(item));
            for plan in item
                .iter()
                .filter_map(|version| prices.get(&version.value.0))
            {
                points.extend(ends(plan));
            }
        }
        for change in &subscription.changes {
            points.insert(change.at);
            points.extend(
                prices
                    .get(&change.new.0)
                    .into_iter()
                    .flat_map(|plan| ends(plan)),
            );
        }
    }
    points
}

fn ends<T>(versions: &[Version<T>]) -> impl Iterator<Item = Micros> {
    versions
        .iter()
        .flat_map(|version| [Some(version.from), version.to])
        .flatten()
}

/// Returns the version at `at`; before the first one, the first one.
fn version_at<T>(versions: &[Version<T>], at: Micros) -> Option<&Version<T>> {
    let first = versions.first()?;
    if at < first.from {
        return Some(first).filter(|first| first.to.is_none_or(|to| at < to));
    }
    versions
        .iter()
        .find(|version| version.from <= at && version.to.is_none_or(|to| at < to))
}

fn in_force(
    subscriptions: &BTreeMap<String, Subscription>,
    prices: &Prices,
    at: Micros,
) -> Option<InForce> {
    let live: Vec<InForce> = subscriptions
        .iter()
        .filter(|(_, subscription)| subscription.start <= at)
        .filter_map(|(id, subscription)| state_of(id, subscription, prices, at))
        .collect();
    // `min_by_key` keeps the first of equals, and ids ascend.
    let best = live
        .iter()
        .min_by_key(|state| (status_rank(&state.status), -state.mrr_minor))?
        .clone();
    // Never a sum over currencies.
    let mrr_minor = live
        .iter()
        .filter(|state| state.currency == best.currency)
        .map(|state| state.mrr_minor)
        .sum();
    Some(InForce { mrr_minor, ..best })
}

fn state_of(id: &str, subscription: &Subscription, prices: &Prices, at: Micros) -> Option<InForce> {
    let status = version_at(&subscription.statuses, at)?;
    let is_backfilled = at < status.from;
    let status = status.value.clone();
    let items = items_at(subscription, at);
    let is_paying = matches!(status.as_str(), "active" | "past_due");
    let priced: Vec<(Quantity, Option<&Price>, i64)> = items
        .into_iter()
        .map(|(plan, quantity)| {
            let price = prices
                .get(&plan)
                .and_then(|versions| version_at(versions, at));
            let price = price.map(|version| &version.value);
            let monthly = price
                .filter(|_| is_paying)
                .map_or(0, |price| monthly_minor(price, quantity));
            ((plan, quantity), price, monthly)
        })
        .collect();
    // The first of equals: items ascend by id.
    let main = priced.iter().min_by_key(|(_, _, monthly)| -monthly);
    let currency = main.and_then(|(_, price, _)| price.map(|price| price.currency.clone()));
    let mrr_minor = priced
        .iter()
        .filter(|(_, price, _)| price.map(|price| &price.currency) == currency.as_ref())
        .map(|(_, _, monthly)| monthly)
        .sum();
    let seats = main.and_then(|((_, quantity), price, _)| match price {
        Some(price) if !price.is_licensed => price.included_seats,
        _ => Some(*quantity),
    });
    Some(InForce {
        subscription_id: id.to_owned(),
        status,
        plan_id: main.map(|((plan, _), _, _)| plan.clone()),
        seats,
        mrr_minor,
        currency,
        is_backfilled,
    })
}

/// Returns the items that a subscription has at `at`.
fn items_at(subscription: &Subscription, at: Micros) -> Vec<Quantity> {
    let changed = subscription.changes.last().map(|change| &change.new.0);
    let newest =
        |versions: &[Version<Quantity>]| versions.last().map(|version| version.value.0.clone());
    // Changes speak of one item: the one that is now on the plan of the last change.
    let main = changed.map(|plan| {
        subscription
            .items
            .iter()
            .find(|(_, versions)| newest(versions).as_ref() == Some(plan))
            .or_else(|| subscription.items.iter().next())
            .map(|(id, _)| id.clone())
    });
    let mut items = Vec::new();
    if let Some(quantity) = changed_plan_at(&subscription.changes, at) {
        items.push(quantity);
    }
    for (id, versions) in &subscription.items {
        let is_main = main.as_ref().is_some_and(|main| main.as_ref() == Some(id));
        if let Some(version) = version_at(versions, at).filter(|_| !is_main) {
            items.push(version.value.clone());
        }
    }
    items
}

fn changed_plan_at(changes: &[PlanChange], at: Micros) -> Option<Quantity> {
    let first = changes.first()?;
    let latest = changes.iter().rev().find(|change| change.at <= at);
    match latest {
        Some(change) => Some(change.new.clone()),
        None => Some(first.old.clone().unwrap_or_else(|| first.new.clone())),
    }
}

fn status_rank(status: &str) -> u8 {
    match status {
        "active" => 0,
        "past_due" => 1,
        "trialing" => 2,
        "unpaid" => 3,
        "paused" => 4,
        "incomplete" => 5,
        "canceled" => 6,
        _ => 7,
    }
}

/// Returns the price of a month, rounded half to even; nothing for a metered plan.
fn monthly_minor(price: &Price, quantity: i64) -> i64 {
    if !price.is_licensed || price.interval_count <= 0 {
        return 0;
    }
    let (numerator, denominator) = match price.interval.as_str() {
        "day" => (365, 12),
        "week" => (52, 12),
        "month" => (1, 1),
        "year" => (1, 12),
        _ => return 0,
    };
    let total = i128::from(price.amount_minor) * i128::from(quantity) * numerator;
    let divisor = i128::from(denominator) * i128::from(price.interval_count);
    i64::try_from(divide_half_even(total, divisor)).unwrap_or(i64::MAX)
}

fn divide_half_even(total: i128, divisor: i128) -> i128 {
    let (quotient, remainder) = (total.div_euclid(divisor), total.rem_euclid(divisor));
    let is_up = match (remainder * 2).cmp(&divisor) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => quotient % 2 != 0,
        std::cmp::Ordering::Greater => true,
    };
    quotient + i128::from(is_up)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price(amount_minor: i64, interval: &str, interval_count: i64) -> Price {
        Price {
            amount_minor,
            currency: "USD".to_owned(),
            interval: interval.to_owned(),
            interval_count,
            is_licensed: true,
            included_seats: None,
        }
    }

    fn always<T>(value: T) -> Vec<Version<T>> {
        vec![Version {
            from: 0,
            to: None,
            value,
        }]
    }

    fn subscription(status: &str, plan: &str, quantity: i64) -> Subscription {
        Subscription {
            start: 100,
            statuses: always(status.to_owned()),
            items: BTreeMap::from([("i".to_owned(), always((plan.to_owned(), quantity)))]),
            changes: Vec::new(),
        }
    }

    #[test]
    fn a_month_of_every_interval() {
        assert_eq!(monthly_minor(&price(1200, "year", 1), 3), 300);
        assert_eq!(monthly_minor(&price(100, "week", 2), 1), 217); // 216.67
        assert_eq!(monthly_minor(&price(100, "day", 1), 1), 3042); // 3041.67
        assert_eq!(monthly_minor(&price(5, "month", 2), 1), 2); // 2.5, half to even
        assert_eq!(monthly_minor(&price(15, "month", 2), 1), 8); // 7.5, half to even
    }

    #[test]
    fn a_change_holds_from_its_microsecond() {
        let mut one = subscription("active", "big", 2);
        one.changes.push(PlanChange {
            at: 500,
            old: Some(("small".to_owned(), 1)),
            new: ("big".to_owned(), 2),
        });
        let prices = BTreeMap::from([
            ("small".to_owned(), always(price(100, "month", 1))),
            ("big".to_owned(), always(price(300, "month", 1))),
        ]);
        let versions = timeline(&BTreeMap::from([("s".to_owned(), one)]), &prices);
        let seen: Vec<_> = versions
            .iter()
            .map(|version| {
                (
                    version.from,
                    version.to,
                    version.value.plan_id.as_deref(),
                    version.value.mrr_minor,
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                (0, Some(100), Some("small"), 100),
                (100, Some(500), Some("small"), 100),
                (500, None, Some("big"), 600),
            ]
        );
        assert!(versions[0].value.is_backfilled && !versions[1].value.is_backfilled);
    }

    #[test]
    fn an_active_subscription_goes_before_a_dearer_trial() {
        let prices = BTreeMap::from([
            ("a".to_owned(), always(price(100, "month", 1))),
            ("b".to_owned(), always(price(900, "month", 1))),
        ]);
        let subscriptions = BTreeMap::from([
            ("s1".to_owned(), subscription("trialing", "b", 1)),
            ("s2".to_owned(), subscription("active", "a", 1)),
            ("s3".to_owned(), subscription("active", "a", 1)),
        ]);
        let state = in_force(&subscriptions, &prices, 200).unwrap();
        assert_eq!(
            (state.subscription_id.as_str(), state.mrr_minor),
            ("s2", 200)
        );
    }
}
