//! Contracts: which plan a company pays, for how many seats, and what changed when.

use super::companies::Profile;
use super::random::Chance;
use super::time::{DAY, HOUR, MINUTE, Millis, Window};

/// A change of plan or seats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Change id.
    pub id: String,
    /// From this instant on the new plan holds.
    pub at: Millis,
    /// Plan before.
    pub old_plan: String,
    /// Plan after.
    pub new_plan: String,
    /// Seats before.
    pub old_quantity: i64,
    /// Seats after.
    pub new_quantity: i64,
}

/// The contract of a company.
#[derive(Debug)]
pub struct Subscription {
    /// Subscription id.
    pub id: String,
    /// Id of its item for seats.
    pub seat_item_id: String,
    /// Id of its item for AI resolutions.
    pub ai_item_id: String,
    /// `active`, `trialing`, `past_due`, `unpaid` or `canceled`.
    pub status: &'static str,
    /// Plan after the last change.
    pub plan: String,
    /// Seats after the last change.
    pub quantity: i64,
    /// First day of the contract; invoices fall on the same day of later months.
    pub started_at: Millis,
    /// End of the trial, for those that are in it.
    pub trial_end: Option<Millis>,
    /// When it ended, for those that did.
    pub ended_at: Option<Millis>,
    /// Whether it will not be renewed.
    pub cancel_at_period_end: bool,
    /// Percent taken off.
    pub percent_off: Option<i64>,
    /// Changes, oldest first.
    pub changes: Vec<Change>,
}

impl Subscription {
    pub(super) fn draw(
        chance: &mut Chance,
        window: Window,
        index: usize,
        profile: &Profile,
    ) -> Self {
        let status = status(index);
        let tier = tier(profile.teammates);
        let interval = if status != "trialing" && chance.hit(0.3) {
            "year"
        } else {
            "month"
        };
        let plan_of = |tier: usize| plan_id(tier, interval, profile.currency);
        let quantity = profile.teammates as i64 + chance.between(0, 4);
        let age_days = if status == "trialing" {
            9
        } else {
            chance.between(130, 1_700)
        };
        let mut subscription = Self {
            id: chance.id("sub_"),
            seat_item_id: chance.id("si_"),
            ai_item_id: chance.id("si_"),
            status,
            plan: plan_of(tier),
            quantity,
            started_at: window.start() - age_days * DAY + chance.between(6, 18) * HOUR,
            trial_end: None,
            ended_at: None,
            cancel_at_period_end: index == 38,
            percent_off: chance.hit(0.2).then(|| chance.pick(&[5, 10, 15, 20])),
            changes: Vec::new(),
        };
        subscription.trial_end = (status == "trialing").then(|| subscription.started_at + 14 * DAY);
        subscription.ended_at = (status == "canceled").then(|| window.start() + DAY + 16 * HOUR);
        subscription.grow(chance, window, tier, &plan_of);
        subscription.change_in_window(chance, window, index, tier, &plan_of);
        subscription
    }

    /// Adds a change of the past: most older customers began smaller.
    fn grow(
        &mut self,
        chance: &mut Chance,
        window: Window,
        tier: usize,
        plan_of: &dyn Fn(usize) -> String,
    ) {
        let age = window.start() - self.started_at;
        if age < 120 * DAY || !chance.hit(0.6) {
            return;
        }
        let old_tier = if chance.hit(0.5) {
            tier.saturating_sub(1)
        } else {
            tier
        };
        self.changes.push(Change {
            id: chance.id("chg_"),
            at: self.started_at + chance.between(40 * DAY, age - 30 * DAY),
            old_plan: plan_of(old_tier),
            new_plan: self.plan.clone(),
            old_quantity: (self.quantity - chance.between(1, 5)).max(1),
            new_quantity: self.quantity,
        });
    }

    /// Adds the changes that happen while the desk is played: two upgrades, one with more seats.
    fn change_in_window(
        &mut self,
        chance: &mut Chance,
        window: Window,
        index: usize,
        tier: usize,
        plan_of: &dyn Fn(usize) -> String,
    ) {
        let (at, new_tier, more_seats) = match index {
            6 => (DAY + 14 * HOUR, tier + 1, 0),
            16 => (2 * DAY + 10 * HOUR + 12 * MINUTE, tier, 3),
            25 => (9 * HOUR + 30 * MINUTE, tier + 1, 2),
            _ => return,
        };
        let change = Change {
            id: chance.id("chg_"),
            at: window.start() + at,
            old_plan: self.plan.clone(),
            new_plan: plan_of(new_tier.min(TIERS.len() - 1)),
            old_quantity: self.quantity,
            new_quantity: self.quantity + more_seats,
        };
        self.plan.clone_from(&change.new_plan);
        self.quantity = change.new_quantity;
        self.changes.push(change);
    }

    /// Returns plan and seats as of `at`.
    pub fn as_of(&self, at: Millis) -> (&str, i64) {
        let before = self.changes.iter().find(|change| change.at > at);
        match before {
            Some(change) => (&change.old_plan, change.old_quantity),
            None => (&self.plan, self.quantity),
        }
    }
}

const TIERS: [&str; 4] = ["starter", "growth", "scale", "enterprise"];

fn tier(teammates: usize) -> usize {
    match teammates {
        0..=6 => 0,
        7..=13 => 1,
        14..=20 => 2,
        _ => 3,
    }
}

fn plan_id(tier: usize, interval: &str, currency: &str) -> String {
    format!(
        "{}-{interval}-{}",
        TIERS[tier],
        currency.to_ascii_lowercase()
    )
}

fn status(index: usize) -> &'static str {
    match index {
        30 => "trialing",
        24 | 26 => "past_due",
        14 => "unpaid",
        31 => "canceled",
        _ => "active",
    }
}
