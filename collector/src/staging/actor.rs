//! Who caused an event: the `actor_type` column, derived where the client does not say it.
//!
//! Place on the path: staging calls it once per event. Pure. Promise: what the client says wins over
//! what the plan implies, which wins over what the ids imply; in doubt the column is null.

use headwater_protocol::Event;
use headwater_protocol::json::{Object, Value};
use serde::Deserialize;

/// Who an event is about, the `actor_type` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// A teammate of the company.
    Admin,
    /// A known contact.
    ContactUser,
    /// A contact that has not signed up.
    ContactLead,
    /// Somebody without any identity.
    Visitor,
    /// The AI agent.
    AiAgent,
    /// A scripted bot.
    Bot,
    /// No person: rules, timers, billing.
    System,
}

impl Actor {
    /// Returns the value of the `actor_type` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ContactUser => "contact_user",
            Self::ContactLead => "contact_lead",
            Self::Visitor => "visitor",
            Self::AiAgent => "ai_agent",
            Self::Bot => "bot",
            Self::System => "system",
        }
    }

    /// Reads what clients write: the column's values and the short forms of the API.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "admin" | "teammate" => Self::Admin,
            "contact_user" | "contact" | "user" => Self::ContactUser,
            "contact_lead" | "lead" => Self::ContactLead,
            "visitor" => Self::Visitor,
            "ai_agent" => Self::AiAgent,
            "bot" => Self::Bot,
            "system" => Self::System,
            _ => return None,
        })
    }
}

/// Who can cause an event, as far as the plan leaves no choice. It is always one that the plan names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Causer {
    /// Always this one.
    Always(Actor),
    /// This contact where there is a user id, a visitor otherwise.
    ContactOrVisitor(Actor),
    /// Several; the event must say.
    Several,
}

impl Causer {
    /// Returns what follows when these can cause an event.
    pub fn of(actors: &[Actor]) -> Self {
        let all = |of: &[Actor]| actors.iter().all(|actor| of.contains(actor));
        let contact = match actors.contains(&Actor::ContactUser) {
            true => Actor::ContactUser,
            false => Actor::ContactLead,
        };
        match actors {
            [] => Self::Several,
            [one, ..] if all(&[*one]) => Self::Always(*one),
            _ if all(&[Actor::ContactUser, Actor::ContactLead]) => Self::Always(contact),
            _ if all(&[Actor::ContactUser, Actor::ContactLead, Actor::Visitor]) => {
                Self::ContactOrVisitor(contact)
            }
            _ => Self::Several,
        }
    }
}

/// Returns who caused `event`; `causer` is what the tracking plan says about its name.
pub fn derive(event: &Event<'_>, causer: Option<Causer>) -> Option<Actor> {
    said(&event.properties)
        .or_else(|| said(&event.context))
        .or_else(|| causer.and_then(|causer| implied(event, causer)))
        .or_else(|| by_ids(event))
}

fn said(object: &Object<'_>) -> Option<Actor> {
    object.get("actor_type")?.as_str().and_then(Actor::parse)
}

fn implied(event: &Event<'_>, causer: Causer) -> Option<Actor> {
    match causer {
        Causer::Always(actor) => Some(actor),
        Causer::ContactOrVisitor(contact) if event.user_id.is_some() => Some(contact),
        Causer::ContactOrVisitor(_) => Some(Actor::Visitor),
        Causer::Several => None,
    }
}

fn by_ids(event: &Event<'_>) -> Option<Actor> {
    let flag = |key: &str| event.properties.get(key).and_then(Value::as_bool) == Some(true);
    if flag("is_ai_answer") {
        return Some(Actor::AiAgent);
    }
    let same = |key: &str| {
        let id = event.properties.get(key).and_then(Value::as_str);
        id.is_some() && id == event.user_id.as_deref()
    };
    if same("admin_id") {
        Some(Actor::Admin)
    } else if same("contact_id") {
        Some(Actor::ContactUser)
    } else if event.user_id.is_none() && event.anonymous_id.is_some() {
        Some(Actor::Visitor)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    fn actor(body: &str) -> Option<&'static str> {
        let event = Event::parse(body.as_bytes(), None, None).unwrap();
        let plan = Plan::builtin();
        let planned = event.name.as_deref().and_then(|name| plan.lookup(name));
        derive(&event, planned.map(|planned| planned.causer)).map(Actor::as_str)
    }

    #[test]
    fn who_is_implied_is_one_that_the_plan_names() {
        use Actor::{Admin, AiAgent, Bot, ContactLead, ContactUser, System, Visitor};
        // Who it is with a user id, and who without.
        let cases: [(&[Actor], Option<Actor>, Option<Actor>); 7] = [
            (
                &[ContactUser, ContactLead],
                Some(ContactUser),
                Some(ContactUser),
            ),
            (&[ContactLead, Visitor], Some(ContactLead), Some(Visitor)),
            (&[Visitor, ContactUser], Some(ContactUser), Some(Visitor)),
            (
                &[ContactLead, Visitor, ContactUser],
                Some(ContactUser),
                Some(Visitor),
            ),
            (
                &[ContactLead, ContactLead],
                Some(ContactLead),
                Some(ContactLead),
            ),
            (&[ContactLead, Admin], None, None),
            (&[], None, None),
        ];
        let known = Event::parse(br#"{"type":"track","event":"E","userId":"u"}"#, None, None);
        let unknown = Event::parse(
            br#"{"type":"track","event":"E","anonymousId":"a"}"#,
            None,
            None,
        );
        let (known, unknown) = (known.unwrap(), unknown.unwrap());
        for (actors, with_id, without) in cases {
            let causer = Causer::of(actors);
            assert_eq!(implied(&known, causer), with_id, "{actors:?}");
            assert_eq!(implied(&unknown, causer), without, "{actors:?}");
        }
        for actor in [
            Admin,
            ContactUser,
            ContactLead,
            Visitor,
            AiAgent,
            Bot,
            System,
        ] {
            let causer = Causer::of(&[actor]);
            assert_eq!(implied(&known, causer), Some(actor));
            assert_eq!(implied(&unknown, causer), Some(actor));
        }
    }

    #[test]
    fn actors_are_said_implied_or_unknown() {
        let cases = [
            (
                r#"{"type":"track","event":"Signed In","userId":"u"}"#,
                Some("admin"),
            ),
            (
                r#"{"type":"track","event":"Signed In","userId":"u","properties":{"actor_type":"bot"}}"#,
                Some("bot"),
            ),
            (
                r#"{"type":"track","event":"Signed In","userId":"u","context":{"actor_type":"user"}}"#,
                Some("contact_user"),
            ),
            (
                r#"{"type":"track","event":"widget_opened","anonymousId":"a"}"#,
                Some("visitor"),
            ),
            (
                r#"{"type":"track","event":"Widget Opened","userId":"u"}"#,
                Some("contact_user"),
            ),
            (
                r#"{"type":"track","event":"Conversation Replied","userId":"u"}"#,
                None,
            ),
            (
                r#"{"type":"track","event":"Conversation Replied","userId":"u","properties":{"admin_id":"u"}}"#,
                Some("admin"),
            ),
            (
                r#"{"type":"track","event":"Conversation Replied","userId":"u","properties":{"is_ai_answer":true}}"#,
                Some("ai_agent"),
            ),
            (r#"{"type":"identify","userId":"u"}"#, None),
            (r#"{"type":"page","anonymousId":"a"}"#, Some("visitor")),
        ];
        for (body, expected) in cases {
            assert_eq!(actor(body), expected, "{body}");
        }
    }
}
