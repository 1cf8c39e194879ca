//! Customers and people: companies, teammates, teams, contacts, conversations, exchange rates.

use chrono::Days;

use super::sql::{Cell, Table, maybe_time, time};
use crate::desk::Desk;
use crate::world::time::{DAY, HOUR, Window, iso};
use crate::world::{Chance, Company, World};

/// Returns the tables that are not about contracts and money owed.
pub(super) fn customers(desk: &Desk) -> Vec<Table> {
    let world = &desk.world;
    vec![
        companies(world),
        admins(world),
        teams(world),
        team_admins(world),
        contacts(world),
        conversations(desk),
        exchange_rates(world),
    ]
}

fn companies(world: &World) -> Table {
    let row = |company: &Company| {
        let profile = company.profile;
        vec![
            profile.id.into(),
            profile.name.into(),
            time(company.created_at),
            time(company.created_at + HOUR),
            profile.industry.into(),
            profile.employees.into(),
            format!("https://www.{}.example", profile.id).into(),
            profile.country.into(),
            profile.timezone.name().into(),
            profile.currency.into(),
            profile.region.into(),
            company.admins[0].id.as_str().into(),
            company.status.into(),
            format!("cus_{}", profile.id.replace('-', "")).into(),
            time(updated_at(world, company)),
            Cell::Null,
        ]
    };
    Table {
        name: "companies",
        columns: &[
            "company_id",
            "name",
            "created_at",
            "signed_up_at",
            "industry",
            "size_employees",
            "website",
            "country",
            "timezone",
            "reporting_currency",
            "region",
            "owner_admin_id",
            "status",
            "stripe_customer_id",
            "updated_at",
            "deleted_at",
        ],
        rows: world.companies.iter().map(row).collect(),
    }
}

fn updated_at(world: &World, company: &Company) -> i64 {
    company
        .subscription
        .ended_at
        .unwrap_or_else(|| (company.created_at + 30 * DAY).min(world.window.start()))
}

fn admins(world: &World) -> Table {
    let window = world.window;
    let row = |company: &Company| {
        let id = company.profile.id;
        let rows = company.admins.iter().map(move |admin| {
            let last_login = admin
                .deactivated_at
                .unwrap_or_else(|| window.end() - 10 * HOUR + i64::from(admin.shift_start));
            vec![
                admin.id.as_str().into(),
                id.into(),
                admin.name.as_str().into(),
                admin.email_hash.as_str().into(),
                admin.job.into(),
                admin.role.into(),
                admin.has_inbox_seat.into(),
                false.into(),
                time(admin.created_at),
                maybe_time(admin.deactivated_at),
                time(last_login),
            ]
        });
        rows.collect::<Vec<_>>()
    };
    Table {
        name: "admins",
        columns: &[
            "admin_id",
            "company_id",
            "name",
            "email_hash",
            "job_title",
            "role",
            "has_inbox_seat",
            "away_mode_enabled",
            "created_at",
            "deactivated_at",
            "last_login_at",
        ],
        rows: world.companies.iter().flat_map(row).collect(),
    }
}

fn teams(world: &World) -> Table {
    let mut rows = Vec::new();
    for company in &world.companies {
        for team in &company.teams {
            rows.push(vec![
                team.id.as_str().into(),
                company.profile.id.into(),
                team.name.into(),
                team.distribution.into(),
            ]);
        }
    }
    Table {
        name: "teams",
        columns: &["team_id", "company_id", "name", "distribution_method"],
        rows,
    }
}

fn team_admins(world: &World) -> Table {
    let mut rows = Vec::new();
    for company in &world.companies {
        for team in &company.teams {
            for member in &team.members {
                let admin = &company.admins[*member];
                rows.push(vec![
                    team.id.as_str().into(),
                    admin.id.as_str().into(),
                    time(admin.created_at + DAY),
                    Cell::Null,
                ]);
            }
        }
    }
    Table {
        name: "team_admins",
        columns: &["team_id", "admin_id", "joined_at", "left_at"],
        rows,
    }
}

fn contacts(world: &World) -> Table {
    let mut chance = Chance::new(world.seed, "contacts last seen");
    let mut rows = Vec::new();
    for company in &world.companies {
        for contact in &company.contacts {
            let seen = world.window.end() - chance.between(0, 30 * DAY);
            rows.push(vec![
                contact.id.as_str().into(),
                company.profile.id.into(),
                contact.role.into(),
                contact.external_id.clone().into(),
                time(contact.created_at),
                time(seen.max(contact.created_at)),
                contact.country.into(),
                contact.unsubscribed.into(),
                Cell::Null,
                Cell::Null,
            ]);
        }
    }
    Table {
        name: "contacts",
        columns: &[
            "contact_id",
            "company_id",
            "role",
            "external_id",
            "created_at",
            "last_seen_at",
            "country",
            "unsubscribed",
            "merged_into_id",
            "deleted_at",
        ],
        rows,
    }
}

fn conversations(desk: &Desk) -> Table {
    let companies = &desk.world.companies;
    let rows = desk.conversations.iter().map(|conversation| {
        vec![
            conversation.id.as_str().into(),
            companies[conversation.company].profile.id.into(),
            time(conversation.created_at),
            conversation.state.into(),
            time(conversation.updated_at),
        ]
    });
    Table {
        name: "conversations",
        columns: &[
            "conversation_id",
            "company_id",
            "created_at",
            "state",
            "updated_at",
        ],
        rows: rows.collect(),
    }
}

/// Rates of the last hundred days; each day differs a little from the one before.
fn exchange_rates(world: &World) -> Table {
    const QUOTES: [(&str, f64); 4] = [
        ("EUR", 1.087_4),
        ("GBP", 1.262_1),
        ("AUD", 0.655_3),
        ("JPY", 0.006_57),
    ];
    let window: Window = world.window;
    let mut chance = Chance::new(world.seed, "exchange rates");
    let mut rows = Vec::new();
    for (base, mut rate) in QUOTES {
        let first = window.last - Days::new(99);
        for day in first.iter_days().take(101) {
            rate *= 1.0 + (chance.fraction() - 0.5) * 0.008;
            rows.push(vec![
                iso(crate::world::time::midnight(day))[..10].into(),
                base.into(),
                "USD".into(),
                format!("{rate:.8}").into(),
                "sample".into(),
            ]);
        }
    }
    Table {
        name: "fx_rates_daily",
        columns: &["date", "base", "quote", "rate", "source"],
        rows,
    }
}
