//! Events packed into requests as each SDK does it.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::draft::{Draft, Fate, Origin};
use super::tally::{LATE, Tally};
use crate::world::time::{MINUTE, Millis, iso};
use crate::world::{Chance, World};

/// The library that sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sdk {
    /// `@segment/analytics-node` 3.1.
    Node,
    /// `segment-analytics-python` 2.4.
    Python,
    /// `@segment/analytics-next` 1.84 in a browser.
    Browser,
}

impl Sdk {
    /// Returns what the servers of company `index` use.
    pub(super) fn of_server(index: usize) -> Self {
        if index.is_multiple_of(2) {
            Self::Node
        } else {
            Self::Python
        }
    }

    /// Returns name and version as in `context.library`.
    pub(super) fn library(self) -> (&'static str, &'static str) {
        match self {
            Self::Node => ("@segment/analytics-node", "3.1.0"),
            Self::Python => ("analytics-python", "2.4.0"),
            Self::Browser => ("analytics.js", "npm:next-1.84.3"),
        }
    }

    pub(super) fn message_id(self, at: Millis, chance: &mut Chance) -> String {
        let id = chance.uuid();
        match self {
            Self::Node => format!("node-next-{at}-{id}"),
            Self::Python => id.to_string(),
            Self::Browser => format!("ajs-next-{at}-{id}"),
        }
    }

    /// Returns the `User-Agent` of its requests.
    pub fn user_agent(self) -> &'static str {
        match self {
            Self::Node => "analytics-node/3.1.0",
            Self::Python => "analytics-python/2.4.0",
            Self::Browser => {
                "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
            }
        }
    }

    /// Returns the `Content-Type` of its requests; browsers avoid the preflight.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Browser => "text/plain",
            _ => "application/json",
        }
    }

    fn events_max(self) -> usize {
        match self {
            Self::Node => 15,
            Self::Python => 100,
            Self::Browser => 10,
        }
    }
}

/// One event in a request.
#[derive(Debug, Clone)]
pub struct Item {
    /// JSON as sent.
    pub body: String,
    /// What must become of it.
    pub fate: Fate,
}

/// One request to `/v1/batch`.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Index of the company.
    pub company: usize,
    /// Library that sends it.
    pub sdk: Sdk,
    /// How far the sender's clock is ahead, milliseconds.
    pub clock_offset: Millis,
    /// How often it was tried before.
    pub attempt: u32,
    /// Events in it.
    pub items: Vec<Item>,
}

impl Batch {
    /// Returns the write key it is sent with.
    pub fn write_key(&self, world: &World) -> String {
        let company = &world.companies[self.company];
        match self.sdk {
            Sdk::Browser => company.browser_key(),
            _ => company.server_key(),
        }
    }

    /// Returns the request's body as sent at `now`, the true time in milliseconds.
    pub fn render(&self, write_key: &str, now: Millis) -> String {
        let bytes: usize = self.items.iter().map(|item| item.body.len() + 1).sum();
        let mut out = String::with_capacity(bytes + 120);
        out.push_str("{\"batch\":[");
        for (index, item) in self.items.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            out.push_str(&item.body);
        }
        let sent_at = iso(now + self.clock_offset);
        write!(
            out,
            "],\"sentAt\":\"{sent_at}\",\"writeKey\":\"{write_key}\"}}"
        )
        .expect("writing to memory cannot fail");
        out
    }
}

/// Share of requests that are sent again, because their answer did not arrive.
const RESENT: f64 = 0.008;

/// A browser keeps a batch open at most so long.
const VISIT: Millis = 30 * MINUTE;

struct Pending {
    batch: Batch,
    last_at: Millis,
}

/// Packs `drafts` in the order of sending, and counts what went in.
pub(super) fn pack(seed: u64, world: &World, mut drafts: Vec<Draft>) -> (Vec<Batch>, Tally) {
    drafts.sort_by_key(|draft| draft.deliver_at);
    let mut chance = Chance::new(seed, "packing");
    let mut packer = Packer {
        batches: Vec::new(),
        tally: Tally::default(),
    };
    let mut pending: HashMap<(usize, Origin), Pending> = HashMap::new();
    // Senders in the order of their first event: the map's own order changes from run to run.
    let mut order = Vec::new();
    for draft in drafts {
        packer.count(world, &draft);
        let sender = (draft.company, draft.origin);
        let open = pending.entry(sender).or_insert_with(|| {
            order.push(sender);
            Pending {
                batch: empty(world, &draft),
                last_at: draft.deliver_at,
            }
        });
        let is_over =
            matches!(draft.origin, Origin::Browser(_)) && draft.deliver_at - open.last_at > VISIT;
        if is_over && !open.batch.items.is_empty() {
            let full = std::mem::replace(&mut open.batch, empty(world, &draft));
            packer.send(full, &mut chance);
        }
        open.last_at = draft.deliver_at;
        open.batch.items.push(Item {
            body: draft.body,
            fate: draft.fate,
        });
        if open.batch.items.len() >= open.batch.sdk.events_max() {
            let items = std::mem::take(&mut open.batch.items);
            let full = Batch {
                items,
                ..open.batch.clone()
            };
            packer.send(full, &mut chance);
        }
    }
    for sender in order {
        if let Some(rest) = pending.remove(&sender)
            && !rest.batch.items.is_empty()
        {
            packer.send(rest.batch, &mut chance);
        }
    }
    (packer.batches, packer.tally)
}

fn empty(world: &World, draft: &Draft) -> Batch {
    let (sdk, clock_offset) = match draft.origin {
        Origin::Server => (Sdk::of_server(draft.company), 0),
        Origin::Browser(contact) => (
            Sdk::Browser,
            world.companies[draft.company].contacts[contact].clock_offset,
        ),
    };
    Batch {
        company: draft.company,
        sdk,
        clock_offset,
        attempt: 0,
        items: Vec::new(),
    }
}

struct Packer {
    batches: Vec<Batch>,
    tally: Tally,
}

impl Packer {
    fn count(&mut self, world: &World, draft: &Draft) {
        match draft.fate {
            Fate::New => self.tally.distinct += 1,
            Fate::Copy => self.tally.copies += 1,
            Fate::Invalid(flaw) => *self.tally.invalid.entry(flaw).or_default() += 1,
        }
        if draft.fate != Fate::New {
            return;
        }
        if draft.at >= world.window.end() {
            self.tally.future += 1;
        } else if draft.deliver_at - draft.at >= LATE {
            self.tally.late += 1;
        }
        if let Origin::Browser(contact) = draft.origin
            && world.companies[draft.company].contacts[contact].clock_offset != 0
        {
            self.tally.wrong_clock += 1;
        }
    }

    /// Sends a request, and now and then a second time: then each good event in it is a copy.
    fn send(&mut self, batch: Batch, chance: &mut Chance) {
        // A second try of a wrong clock would race with the first for the better time.
        let again = (batch.clock_offset == 0 && chance.hit(RESENT)).then(|| self.again(&batch));
        self.batches.push(batch);
        self.batches.extend(again);
    }

    fn again(&mut self, batch: &Batch) -> Batch {
        let mut again = batch.clone();
        again.attempt = 1;
        for item in &mut again.items {
            match item.fate {
                Fate::Invalid(flaw) => {
                    *self.tally.invalid.entry(flaw).or_default() += 1;
                    self.tally.invalid_again += 1;
                }
                Fate::New | Fate::Copy => {
                    item.fate = Fate::Copy;
                    self.tally.copies += 1;
                }
            }
        }
        again
    }
}
