//! People: teammates with their hours, teams, and the customers who write to them.

use super::companies::Profile;
use super::names::{FIRST, JOBS, LAST, TEAMS};
use super::random::Chance;
use super::time::{DAY, HOUR, MINUTE, Millis, Window};

/// A team of a desk.
#[derive(Debug)]
pub struct Team {
    /// Team id.
    pub id: String,
    /// Display name.
    pub name: &'static str,
    /// `round_robin` or `balanced`.
    pub distribution: &'static str,
    /// Indexes of its members among the company's admins.
    pub members: Vec<usize>,
}

/// A teammate.
#[derive(Debug)]
pub struct Admin {
    /// Admin id.
    pub id: String,
    /// Full name.
    pub name: String,
    /// Hash of the mail address, which itself is nowhere.
    pub email_hash: String,
    /// Job title.
    pub job: &'static str,
    /// `owner`, `manager` or `agent`.
    pub role: &'static str,
    /// Whether the seat answers conversations.
    pub has_inbox_seat: bool,
    /// When the account was made.
    pub created_at: Millis,
    /// Start of the working day, seconds after local midnight.
    pub shift_start: u32,
    /// Length of the working day.
    pub shift_hours: i64,
    /// Whether the account was closed before the sample's days.
    pub deactivated_at: Option<Millis>,
}

/// A customer of a company.
#[derive(Debug)]
pub struct Contact {
    /// Contact id.
    pub id: String,
    /// `user` or `lead`.
    pub role: &'static str,
    /// Id in the company's own systems; leads have none.
    pub external_id: Option<String>,
    /// When the contact was first seen.
    pub created_at: Millis,
    /// Country, ISO 3166 alpha-2.
    pub country: &'static str,
    /// Whether mail is unwanted.
    pub unsubscribed: bool,
    /// Id that the browser made.
    pub anonymous_id: String,
    /// How far the browser's clock is ahead of the true time (negative: behind).
    pub clock_offset: Millis,
}

/// Draws the teammates of a company and their teams.
pub(super) fn desk(
    chance: &mut Chance,
    window: Window,
    profile: &Profile,
    company_created_at: Millis,
) -> (Vec<Team>, Vec<Admin>) {
    let admins: Vec<Admin> = (0..profile.teammates)
        .map(|index| admin(chance, window, index, company_created_at))
        .collect();
    let team_count = (profile.teammates / 5).clamp(1, TEAMS.len());
    let teams = (0..team_count)
        .map(|index| Team {
            id: chance.id("team_"),
            name: TEAMS[index],
            distribution: if chance.hit(0.6) {
                "round_robin"
            } else {
                "balanced"
            },
            members: members(&admins, team_count, index),
        })
        .collect();
    (teams, admins)
}

fn members(admins: &[Admin], team_count: usize, team: usize) -> Vec<usize> {
    (0..admins.len())
        .filter(|index| index % team_count == team || (*index == 0 && team == 0))
        .filter(|index| admins[*index].deactivated_at.is_none())
        .collect()
}

fn admin(chance: &mut Chance, window: Window, index: usize, since: Millis) -> Admin {
    let name = format!("{} {}", chance.pick(&FIRST), chance.pick(&LAST));
    let age = (window.start() - since) / DAY;
    // Nobody of the first two ever leaves, so that each desk has somebody.
    let left = index >= 4 && chance.hit(0.05);
    Admin {
        id: chance.id("adm_"),
        name,
        email_hash: chance.uuid().simple().to_string(),
        job: if index == 0 {
            "Head of Support"
        } else {
            chance.pick(&JOBS)
        },
        role: match index {
            0 => "owner",
            1 => "manager",
            _ => "agent",
        },
        has_inbox_seat: index != 0 || chance.hit(0.7),
        created_at: since + chance.between(0, (age - 20).max(1)) * DAY + chance.between(0, DAY),
        shift_start: (chance.between(14, 22) * 30 * MINUTE / 1_000) as u32,
        shift_hours: chance.between(7, 10),
        deactivated_at: left
            .then(|| window.start() - chance.between(2, 19) * DAY + chance.between(0, 8 * HOUR)),
    }
}

/// Draws the customers of a company.
pub(super) fn contacts(
    chance: &mut Chance,
    window: Window,
    profile: &Profile,
    company_created_at: Millis,
) -> Vec<Contact> {
    let count = 60 + (profile.weight * 120.0) as usize;
    let span = window.start() - company_created_at;
    (0..count)
        .map(|_| {
            let is_user = chance.hit(0.82);
            Contact {
                id: chance.id(if is_user { "usr_" } else { "lead_" }),
                role: if is_user { "user" } else { "lead" },
                external_id: is_user.then(|| chance.between(10_000, 9_999_999).to_string()),
                created_at: company_created_at + chance.between(0, span.max(1)),
                country: if chance.hit(0.85) {
                    profile.country
                } else {
                    chance.pick(&["US", "GB", "DE", "FR", "ES", "IN", "BR", "CA"])
                },
                unsubscribed: chance.hit(0.07),
                anonymous_id: chance.uuid().to_string(),
                clock_offset: if chance.hit(0.03) {
                    wrong_clock(chance)
                } else {
                    0
                },
            }
        })
        .collect()
}

/// A clock that nobody set: minutes to three days off, to either side.
fn wrong_clock(chance: &mut Chance) -> Millis {
    let size = match chance.index(3) {
        0 => chance.between(3, 50) * MINUTE,
        1 => chance.between(1, 13) * HOUR,
        _ => chance.between(1, 4) * DAY,
    };
    if chance.hit(0.5) { size } else { -size }
}
