//! The sample world: forty companies with their support desks, customers and contracts.
//!
//! Both halves of the sample are drawn from it, so that they fit together: [`crate::desk`] plays
//! three days in it as events, [`crate::operational`] writes it down as the companies' own
//! database. The same seed and days give the same world.

mod companies;
mod names;
mod people;
mod plans;
mod random;
mod subscription;
pub mod time;

pub use companies::{COMPANIES, Profile};
pub use people::{Admin, Contact, Team};
pub use plans::{Plan, price_list};
pub use random::Chance;
pub use subscription::{Change, Subscription};
use time::{DAY, Millis, Window};

/// Seed of the sample when none is given.
pub const SEED: u64 = 20_261_120;

/// One company with everybody in it.
#[derive(Debug)]
pub struct Company {
    /// What does not change.
    pub profile: &'static Profile,
    /// When it became a customer.
    pub created_at: Millis,
    /// `active`, `trial` or `churned`.
    pub status: &'static str,
    /// Teams of the desk.
    pub teams: Vec<Team>,
    /// Teammates.
    pub admins: Vec<Admin>,
    /// Customers of the company.
    pub contacts: Vec<Contact>,
    /// Whether an AI agent answers first.
    pub has_ai_agent: bool,
    /// Whether the chat widget is on its web site (and so a browser source).
    pub has_widget: bool,
    /// Its contract.
    pub subscription: Subscription,
}

impl Company {
    /// Returns the write key of the company's servers.
    pub fn server_key(&self) -> String {
        format!("wk-{}-server", self.profile.id)
    }

    /// Returns the write key of the company's web site.
    pub fn browser_key(&self) -> String {
        format!("wk-{}-browser", self.profile.id)
    }
}

/// The whole world.
#[derive(Debug)]
pub struct World {
    /// Seed it was drawn from.
    pub seed: u64,
    /// Days that are played.
    pub window: Window,
    /// The price list.
    pub plans: Vec<Plan>,
    /// The companies, in the order of [`COMPANIES`].
    pub companies: Vec<Company>,
}

impl World {
    /// Draws the world of `seed` as of `window`.
    pub fn new(seed: u64, window: Window) -> Self {
        let companies = COMPANIES
            .iter()
            .enumerate()
            .map(|(index, profile)| company(seed, window, index, profile))
            .collect();
        Self {
            seed,
            window,
            plans: price_list(),
            companies,
        }
    }

    /// Returns the price of `id`.
    pub fn plan(&self, id: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.id == id)
    }
}

fn company(seed: u64, window: Window, index: usize, profile: &'static Profile) -> Company {
    let mut chance = Chance::new(seed, profile.id);
    let subscription = Subscription::draw(&mut chance, window, index, profile);
    let created_at = subscription.started_at - chance.between(1, 20) * DAY;
    let (teams, admins) = people::desk(&mut chance, window, profile, created_at);
    let contacts = people::contacts(&mut chance, window, profile, created_at);
    let status = match subscription.status {
        "trialing" => "trial",
        "canceled" => "churned",
        _ => "active",
    };
    Company {
        profile,
        created_at,
        status,
        teams,
        admins,
        contacts,
        has_ai_agent: chance.hit(0.6),
        // The first company shows everything.
        has_widget: index == 0 || chance.hit(0.75),
        subscription,
    }
}
