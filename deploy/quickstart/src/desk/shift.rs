//! A teammate's day: signing in, lunch, features, reports, signing out; and when desks are busy.

use chrono::{Datelike, Days, NaiveDate, Weekday};
use serde_json::json;

use super::draft::{Actor, Log};
use crate::world::time::{DAY, HOUR, MINUTE, Millis, SECOND, Window, local};
use crate::world::{Chance, Company};

/// Working hours of each teammate, in order of time.
#[derive(Debug)]
pub(super) struct Shifts(Vec<Vec<(Millis, Millis)>>);

impl Shifts {
    /// Draws the hours of the sample's days and the local days around them.
    pub(super) fn draw(log: &mut Log<'_>) -> Self {
        let window = log.window;
        let zone = log.company.profile.timezone;
        let mut shifts = Vec::new();
        for (index, admin) in log.company.admins.iter().enumerate() {
            let mut days = Vec::new();
            for day in local_days(window) {
                let share = match (is_weekend(day), index) {
                    (true, 0..=2) => 0.6,
                    (true, _) => 0.3,
                    (false, _) => 0.93,
                };
                let works = log.chance.hit(share);
                if works && admin.deactivated_at.is_none() {
                    let start = local(zone, day, admin.shift_start)
                        + log.chance.between(-6 * MINUTE, 14 * MINUTE);
                    let length =
                        admin.shift_hours * HOUR + log.chance.between(-20 * MINUTE, 30 * MINUTE);
                    days.push((start, start + length));
                }
            }
            shifts.push(days);
        }
        Self(shifts)
    }

    /// Returns the first instant from `at` on at which `admin` works; far away when there is none.
    pub(super) fn next(&self, admin: usize, at: Millis) -> Millis {
        self.0[admin]
            .iter()
            .find(|(_, end)| *end > at)
            .map_or(at + 30 * DAY, |(start, _)| at.max(*start))
    }
}

/// Plays what teammates do besides conversations.
pub(super) fn work(log: &mut Log<'_>, shifts: &Shifts) {
    for admin in 0..log.company.admins.len() {
        for &(start, end) in &shifts.0[admin] {
            day(log, admin, start, end);
        }
    }
    if log.index == 3 {
        guess_passwords(log);
    }
}

fn day(log: &mut Log<'_>, admin: usize, start: Millis, end: Millis) {
    let actor = Actor::Admin(admin);
    let session = log.chance.uuid().simple().to_string();
    sign_in(log, admin, start, &session);
    let lunch = start + (end - start) / 2 + log.chance.between(-20 * MINUTE, 20 * MINUTE);
    let back = lunch + log.chance.between(25 * MINUTE, 65 * MINUTE);
    let away = |is_away: bool| json!({"away_mode_enabled": is_away, "reassign": false, "session_id": session});
    log.track(lunch, actor, "Availability Changed", away(true));
    log.track(back, actor, "Availability Changed", away(false));
    for _ in 0..log.chance.between(4, 14) {
        let at = log.chance.between(start, end);
        let feature = log.chance.pick(&FEATURES);
        let count = log.chance.between(1, 6);
        log.track(
            at,
            actor,
            "Feature Used",
            json!({"feature_key": feature, "count": count, "session_id": session}),
        );
    }
    if log.company.admins[admin].role != "agent" {
        read_reports(log, actor, start, end);
    }
    if log.chance.hit(0.88) {
        let reason = if log.chance.hit(0.7) {
            "manual"
        } else {
            "session_expired"
        };
        let seconds = (end - start) / SECOND;
        log.track(
            end,
            actor,
            "Signed Out",
            json!({"reason": reason, "session_seconds": seconds, "session_id": session}),
        );
    }
}

fn sign_in(log: &mut Log<'_>, admin: usize, at: Millis, session: &str) {
    let actor = Actor::Admin(admin);
    if log.chance.hit(0.06) {
        log.track(
            at - 40 * SECOND,
            actor,
            "Sign In Failed",
            json!({"failure_reason": "wrong_password", "method": "password"}),
        );
    }
    let method = ["sso", "password", "google", "2fa"][log.chance.weighted(&[4.0, 3.0, 2.0, 1.0])];
    log.track(
        at,
        actor,
        "Signed In",
        json!({"method": method, "mfa": method == "2fa", "session_id": session}),
    );
    let company = log.company;
    let who = &company.admins[admin];
    log.call(
        at + SECOND,
        actor,
        json!({"type": "identify", "traits": {"role": who.role, "job_title": who.job, "has_inbox_seat": who.has_inbox_seat}}),
    );
    log.call(
        at + 2 * SECOND,
        actor,
        json!({"type": "group", "groupId": company.profile.id, "traits": {"name": company.profile.name, "industry": company.profile.industry, "plan": company.subscription.as_of(at).0}}),
    );
}

fn read_reports(log: &mut Log<'_>, actor: Actor, start: Millis, end: Millis) {
    for _ in 0..log.chance.between(1, 5) {
        let at = log.chance.between(start, end);
        let report = log
            .chance
            .pick(&["company_day", "admin_day", "conversation", "csat"]);
        log.track(at, actor, "Report Viewed", json!({"report_id": report}));
    }
}

/// Somebody tries passwords of one account from the outside, at night.
fn guess_passwords(log: &mut Log<'_>) {
    let mut at = log.window.start() + DAY + 7 * HOUR;
    for _ in 0..37 {
        at += log.chance.between(2 * SECOND, 40 * SECOND);
        log.track(
            at,
            Actor::Admin(1),
            "Sign In Failed",
            json!({"failure_reason": "wrong_password", "method": "password"}),
        );
    }
}

/// Records the changes of contract that fall into the sample's days.
pub(super) fn contract_changes(log: &mut Log<'_>) {
    let subscription = &log.company.subscription;
    let currency = log.company.profile.currency;
    for change in &subscription.changes {
        if change.old_plan != change.new_plan {
            log.track(
                change.at,
                Actor::System,
                "Plan Changed",
                json!({"plan_id": change.new_plan, "previous_plan_id": change.old_plan, "currency": currency}),
            );
        } else if let Some(admin) = log.company.admins.last() {
            log.track(
                change.at,
                Actor::Admin(0),
                "Seat Changed",
                json!({"seat_type": "full", "change": "granted", "admin_id": admin.id}),
            );
        }
    }
    if let Some(at) = subscription.ended_at {
        log.track(
            at,
            Actor::System,
            "Subscription Cancelled",
            json!({"plan_id": subscription.plan, "currency": currency}),
        );
    }
}

/// Draws a moment at which customers turn up: business hours, with a little of the evening.
pub(super) fn busy_moment(chance: &mut Chance, company: &Company, window: Window) -> Millis {
    let days: Vec<NaiveDate> = local_days(window).collect();
    let weights: Vec<f64> = days
        .iter()
        .map(|day| if is_weekend(*day) { 0.45 } else { 1.0 })
        .collect();
    loop {
        let day = days[chance.weighted(&weights)];
        let hour = chance.weighted(&HOURS);
        let second = hour as i64 * 3_600 + chance.between(0, 3_600);
        let at = local(company.profile.timezone, day, second as u32) + chance.between(0, SECOND);
        if window.contains(at) {
            return at;
        }
    }
}

/// Local days that share an instant with the window.
fn local_days(window: Window) -> impl Iterator<Item = NaiveDate> {
    let last = window.last + Days::new(1);
    (window.first() - Days::new(1))
        .iter_days()
        .take_while(move |day| *day <= last)
}

fn is_weekend(day: NaiveDate) -> bool {
    matches!(day.weekday(), Weekday::Sat | Weekday::Sun)
}

/// How many customers turn up in each local hour.
const HOURS: [f64; 24] = [
    0.3, 0.2, 0.1, 0.1, 0.1, 0.2, 0.5, 1.2, 3.0, 6.5, 8.5, 8.8, 7.0, 6.8, 8.2, 8.4, 7.6, 5.8, 3.6,
    2.6, 2.2, 1.7, 1.1, 0.6,
];

const FEATURES: [&str; 10] = [
    "macros",
    "inbox_search",
    "saved_views",
    "ai_compose",
    "translations",
    "side_conversations",
    "keyboard_shortcuts",
    "workflows",
    "customer_timeline",
    "bulk_actions",
];
