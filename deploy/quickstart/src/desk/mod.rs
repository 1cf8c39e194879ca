//! Three days at forty support desks, as the requests that their SDKs would send.
//!
//! Pure and seeded: no clock, no socket. [`Desk::open`] simulates shifts, visits and conversations,
//! disturbs them as real clients do (copies, late events, wrong clocks, broken events) and packs
//! them into SDK-shaped [`Batch`]es. [`Tally`] knows exactly what must come out at the other end.

mod batch;
mod conversation;
mod disturbance;
mod draft;
mod shift;
mod tally;
mod visit;

pub use batch::{Batch, Item, Sdk};
pub use disturbance::Flaw;
pub use draft::Fate;
pub use tally::Tally;

use crate::world::time::{Millis, Window};
use crate::world::{Chance, Company, World};
use draft::Log;
use shift::Shifts;

/// Conversations begun in the three days, over all companies: makes about 200,000 events.
const CONVERSATIONS: f64 = 9_300.0;

/// Visits to the web site without a conversation, for each conversation.
const VISITS_PER_CONVERSATION: f64 = 1.1;

/// What the application itself knows of a conversation at the end.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// Conversation id.
    pub id: String,
    /// Index of the company.
    pub company: usize,
    /// When it began.
    pub created_at: Millis,
    /// `open`, `closed` or `snoozed`.
    pub state: &'static str,
    /// When something last happened to it.
    pub updated_at: Millis,
}

/// The played days.
#[derive(Debug)]
pub struct Desk {
    /// Where they were played.
    pub world: World,
    /// Every conversation that began.
    pub conversations: Vec<Conversation>,
    /// Requests in the order of sending.
    pub batches: Vec<Batch>,
    /// What was put in, exactly.
    pub tally: Tally,
}

impl Desk {
    /// Plays the days of `window` with `seed`: the same arguments give the same bytes.
    pub fn open(seed: u64, window: Window) -> Self {
        Self::sized(seed, window, CONVERSATIONS)
    }

    /// As [`Desk::open`], with about so many conversations.
    pub fn sized(seed: u64, window: Window, conversations_wanted: f64) -> Self {
        let world = World::new(seed, window);
        let weight: f64 = world.companies.iter().map(|c| c.profile.weight).sum();
        let mut conversations = Vec::new();
        let mut drafts = Vec::new();
        for (index, company) in world.companies.iter().enumerate() {
            let share = company.profile.weight / weight;
            let count = (conversations_wanted * share).round() as usize;
            let mut log = Log::new(seed, window, index, company);
            work(&mut log, count, &mut conversations);
            disturbance::disturb(&mut log);
            drafts.append(&mut log.drafts);
        }
        let (batches, tally) = batch::pack(seed, &world, drafts);
        Self {
            world,
            conversations,
            batches,
            tally,
        }
    }
}

/// Plays the days of one company.
fn work(log: &mut Log<'_>, count: usize, conversations: &mut Vec<Conversation>) {
    let shifts = Shifts::draw(log);
    shift::work(log, &shifts);
    shift::contract_changes(log);
    for _ in 0..count {
        let at = shift::busy_moment(&mut log.chance, log.company, log.window);
        conversations.push(conversation::hold(log, &shifts, at));
    }
    if log.company.has_widget {
        for _ in 0..(count as f64 * VISITS_PER_CONVERSATION) as usize {
            let at = shift::busy_moment(&mut log.chance, log.company, log.window);
            visit::browse(log, at);
        }
    }
}

/// Returns a contact of `company` that may be active at `at`.
fn somebody(chance: &mut Chance, company: &Company) -> usize {
    chance.index(company.contacts.len())
}
