//! Who caused an event: the `actor_type` column, derived where the client does not say it.
//!
//! Place on the path: staging calls it once per event. Pure. Promise: what the client says wins over
//! what the plan implies, which wins over what the ids imply; in doubt the column is null.

use headwater_protocol::Event;
use serde_json::{Map, Value};

use super::plan::{Actor, Causer};

/// Returns who caused `event`; `causer` is what the tracking plan says about its name.
pub fn derive(event: &Event, causer: Option<Causer>) -> Option<Actor> {
    said(&event.properties)
        .or_else(|| said(&event.context))
        .or_else(|| causer.and_then(|causer| implied(event, causer)))
        .or_else(|| by_ids(event))
}

fn said(object: &Map<String, Value>) -> Option<Actor> {
    object.get("actor_type")?.as_str().and_then(Actor::parse)
}

fn implied(event: &Event, causer: Causer) -> Option<Actor> {
    match causer {
        Causer::Always(actor) => Some(actor),
        Causer::Contact => Some(Actor::ContactUser),
        Causer::ContactOrVisitor if event.user_id.is_some() => Some(Actor::ContactUser),
        Causer::ContactOrVisitor => Some(Actor::Visitor),
        Causer::Several => None,
    }
}

fn by_ids(event: &Event) -> Option<Actor> {
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
    use crate::staging::plan;

    fn actor(body: &str) -> Option<&'static str> {
        let event = Event::parse(body.as_bytes(), None, None).unwrap();
        let causer = event.name.as_deref().and_then(plan::lookup);
        derive(&event, causer.map(|planned| planned.causer)).map(Actor::as_str)
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
