//! One event as an SDK writes it, with what will become of it.

use serde_json::{Map, Value, json};

use super::batch::Sdk;
use super::disturbance::Flaw;
use crate::world::time::{Millis, Window, iso};
use crate::world::{Chance, Company};

/// What must become of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Stored, the first of its message id.
    New,
    /// Stored as one more copy of a message id that was sent before.
    Copy,
    /// Quarantined.
    Invalid(Flaw),
}

/// Where an event comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// The company's servers.
    Server,
    /// The browser of a contact.
    Browser(usize),
}

/// An event with its place in time.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    pub(super) company: usize,
    pub(super) origin: Origin,
    /// When it happened.
    pub(super) at: Millis,
    /// When the SDK would have sent it; later than `at` for late events.
    pub(super) deliver_at: Millis,
    pub(super) body: String,
    pub(super) fate: Fate,
}

/// Who did it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Actor {
    Admin(usize),
    Contact(usize),
    AiAgent,
    Bot,
    System,
}

/// What happened at one company, in the order in which it was played.
#[derive(Debug)]
pub(super) struct Log<'w> {
    pub(super) window: Window,
    pub(super) index: usize,
    pub(super) company: &'w Company,
    pub(super) chance: Chance,
    pub(super) drafts: Vec<Draft>,
    sdk: Sdk,
}

impl<'w> Log<'w> {
    pub(super) fn new(seed: u64, window: Window, index: usize, company: &'w Company) -> Self {
        Self {
            window,
            index,
            company,
            chance: Chance::new(seed, &format!("desk {}", company.profile.id)),
            drafts: Vec::new(),
            sdk: Sdk::of_server(index),
        }
    }

    /// Records that `actor` did `name`, unless the sample's days are over. Returns whether it was
    /// recorded.
    pub(super) fn track(
        &mut self,
        at: Millis,
        actor: Actor,
        name: &str,
        mut properties: Value,
    ) -> bool {
        if !self.window.contains(at) {
            return false;
        }
        let (actor_type, user_id) = self.identity(actor);
        if let Value::Object(map) = &mut properties {
            map.insert("actor_type".to_owned(), actor_type.into());
            match actor {
                Actor::Admin(_) => {
                    map.entry("admin_id")
                        .or_insert_with(|| user_id.clone().into());
                }
                Actor::Contact(_) => {
                    map.entry("contact_id")
                        .or_insert_with(|| user_id.clone().into());
                }
                _ => {}
            }
        }
        let body = json!({
            "type": "track", "event": name, "userId": user_id, "properties": properties,
        });
        self.server(at, body);
        true
    }

    /// Records a call other than `track` of a server library.
    pub(super) fn call(&mut self, at: Millis, actor: Actor, mut body: Value) {
        if self.window.contains(at) {
            body["userId"] = self.identity(actor).1.into();
            self.server(at, body);
        }
    }

    fn server(&mut self, at: Millis, mut body: Value) {
        let (library, version) = self.sdk.library();
        body["context"] = json!({"library": {"name": library, "version": version}});
        body["timestamp"] = iso(at).into();
        body["messageId"] = self.sdk.message_id(at, &mut self.chance).into();
        if self.sdk == Sdk::Python {
            body["anonymousId"] = Value::Null;
            body["integrations"] = json!({});
        }
        self.push(at, Origin::Server, &body);
    }

    /// Records what the browser of `contact` saw, by the clock of that browser.
    pub(super) fn browser(&mut self, at: Millis, contact: usize, path: &str, mut body: Value) {
        if !self.window.contains(at) {
            return;
        }
        let company = self.company.profile;
        let who = &self.company.contacts[contact];
        let (library, version) = Sdk::Browser.library();
        let url = format!("https://www.{}.example{path}", company.id);
        body["context"] = json!({
            "library": {"name": library, "version": version},
            "page": {"path": path, "url": url, "referrer": ""},
            "timezone": company.timezone.name(),
            "locale": locale(who.country),
            "userAgent": BROWSERS[contact % BROWSERS.len()],
        });
        body["anonymousId"] = who.anonymous_id.as_str().into();
        if who.role == "user" {
            body["userId"] = who.id.as_str().into();
        }
        if let Some(Value::Object(properties)) = body.get_mut("properties") {
            let actor_type = if who.role == "user" {
                "contact_user"
            } else {
                "visitor"
            };
            properties.insert("actor_type".to_owned(), actor_type.into());
            if body_is_about_page(properties) {
                properties.insert("page_url".to_owned(), url.into());
            }
        }
        let shown = at + who.clock_offset;
        body["timestamp"] = iso(shown).into();
        body["messageId"] = Sdk::Browser.message_id(shown, &mut self.chance).into();
        self.push(at, Origin::Browser(contact), &body);
    }

    fn push(&mut self, at: Millis, origin: Origin, body: &Value) {
        self.drafts.push(Draft {
            company: self.index,
            origin,
            at,
            deliver_at: at,
            body: body.to_string(),
            fate: Fate::New,
        });
    }

    fn identity(&self, actor: Actor) -> (&'static str, String) {
        match actor {
            Actor::Admin(index) => ("admin", self.company.admins[index].id.clone()),
            Actor::Contact(index) => {
                let contact = &self.company.contacts[index];
                let kind = if contact.role == "user" {
                    "contact_user"
                } else {
                    "contact_lead"
                };
                (kind, contact.id.clone())
            }
            Actor::AiAgent => ("ai_agent", "ai-agent".to_owned()),
            Actor::Bot => ("bot", "workflow-bot".to_owned()),
            Actor::System => ("system", "system".to_owned()),
        }
    }
}

/// Widget events say on which page they happened; a `page` call has it as `url` already.
fn body_is_about_page(properties: &Map<String, Value>) -> bool {
    !properties.contains_key("url")
}

fn locale(country: &str) -> &'static str {
    match country {
        "DE" | "CH" => "de-DE",
        "FR" => "fr-FR",
        "ES" | "MX" | "AR" => "es-ES",
        "BR" => "pt-BR",
        "IT" => "it-IT",
        "JP" => "ja-JP",
        "GB" | "IE" | "AU" | "NZ" => "en-GB",
        _ => "en-US",
    }
}

static BROWSERS: [&str; 4] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/19.0 Safari/605.1.15",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 19_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/19.0 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
];
