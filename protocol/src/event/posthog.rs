//! PostHog's form of an event: `event`, `distinct_id`, `uuid`, `timestamp`, `properties`.
//!
//! It is told by its shape, because PostHog's path `/batch/` is one of Segment's clients, too: it has
//! a `distinct_id` and none of Segment's ids.
//!
//! | PostHog | [`Event`] |
//! |---|---|
//! | `uuid` | `message_id` |
//! | `$pageview`, `$screen`, `$identify`, `$set`, `$groupidentify`, `$create_alias` | a `page`, `screen`, `identify`, `identify`, `group`, `alias` call |
//! | any other `event` | a `track` of that name |
//! | `distinct_id` | `user_id`; `anonymous_id` where the client says that it is no known person |
//! | `properties.$anon_distinct_id`, `properties.$device_id` | `anonymous_id` |
//! | `properties`, with v1's `session_id` and `window_id` | `properties` |
//! | `properties.$session_id`, `properties.$window_id` | the same without `$`, too |
//! | `properties.$lib`, `$current_url`, … and v1's `options` | `context` |
//! | `$set`, `$group_set` | `traits` |

use super::{Event, EventType, Payload, object_of, payload_id, text};
use crate::json::{Object, Value};

/// Properties that are also in a section of `context`: the section, and its keys with their properties.
const IN_SECTIONS: [(&str, &[(&str, &str)]); 2] = [
    ("library", &[("name", "$lib"), ("version", "$lib_version")]),
    (
        "page",
        &[
            ("url", "$current_url"),
            ("path", "$pathname"),
            ("referrer", "$referrer"),
        ],
    ),
];

/// Keys of `context` with the properties that are there too.
const IN_CONTEXT: [(&str, &str); 3] = [
    ("userAgent", "$raw_user_agent"),
    ("timezone", "$timezone"),
    ("locale", "$browser_language"),
];

/// Properties with the properties that they are also called.
const TWINS: [(&str, &str); 2] = [("session_id", "$session_id"), ("window_id", "$window_id")];

/// Properties that the `anonymous_id` of a known person is taken from, the first that there is.
const ANONYMOUS_IDS: [&str; 2] = ["$anon_distinct_id", "$device_id"];

/// Property that the traits of a `track` are taken from.
const TRAITS: &str = "$set";

/// Returns the kind of call that a PostHog event of this name is.
pub(crate) fn event_type(name: &str) -> EventType {
    match name {
        "$pageview" => EventType::Page,
        "$screen" => EventType::Screen,
        "$identify" | "$set" => EventType::Identify,
        "$groupidentify" => EventType::Group,
        "$create_alias" => EventType::Alias,
        _ => EventType::Track,
    }
}

/// Builds a PostHog event that the rules have found valid; times in microseconds since the Unix
/// epoch.
pub(super) fn build<'a>(
    mut object: Object<'a>,
    event_type: EventType,
    original_timestamp: Option<i64>,
    sent_at: Option<i64>,
) -> Event<'a> {
    let payload_sha256 = Payload::of(&object).sha256;
    let message_id = text(&object, "uuid");
    let mut properties = object_of(&mut object, "properties").unwrap_or_default();
    let mut user_id = text(&object, "distinct_id");
    let mut anonymous_id = ANONYMOUS_IDS
        .iter()
        .find_map(|property| text(&properties, property));
    if is_unknown_person(&object, &properties) {
        anonymous_id = user_id.take();
    }
    let name = match event_type {
        EventType::Track => text(&object, "event"),
        EventType::Page => text(&properties, "title"),
        EventType::Screen => text(&properties, "$screen_name"),
        _ => None,
    };
    let of_type = |wanted, key| {
        (event_type == wanted)
            .then(|| text(&properties, key))
            .flatten()
    };
    let group_id = of_type(EventType::Group, "$group_key");
    let previous_id = of_type(EventType::Alias, "alias");
    let traits = traits(&mut object, &properties, event_type);
    let context = context(&mut object, &properties);
    for (key, own) in TWINS {
        let value = object.remove(key).or_else(|| properties.get(own).cloned());
        if let Some(value) = value
            && !properties.contains_key(key)
        {
            properties.insert(key, value);
        }
    }
    Event {
        event_type,
        id_from_server: message_id.is_none(),
        message_id: message_id.unwrap_or_else(|| payload_id(&payload_sha256)),
        payload_sha256,
        name,
        user_id,
        anonymous_id,
        group_id,
        previous_id,
        original_timestamp,
        sent_at,
        properties: properties.into(),
        context: context.into(),
        traits: traits.map(Into::into),
    }
}

/// Returns whether the client says that `distinct_id` names a device or nobody.
fn is_unknown_person(object: &Object<'_>, properties: &Object<'_>) -> bool {
    let options = object.get("options").and_then(Value::as_object);
    let option = options.and_then(|options| options.get("process_person_profile"));
    let claims = [
        option,
        properties.get("$process_person_profile"),
        properties.get("$is_identified"),
    ];
    claims.contains(&Some(&Value::Bool(false)))
}

fn traits<'a>(
    object: &mut Object<'a>,
    properties: &Object<'a>,
    event_type: EventType,
) -> Option<Object<'a>> {
    let group = (event_type == EventType::Group).then(|| properties.get("$group_set"));
    let found = match group {
        Some(group) => group.cloned(),
        None => object
            .remove(TRAITS)
            .or_else(|| properties.get(TRAITS).cloned()),
    };
    match found {
        Some(Value::Object(traits)) => Some(traits),
        _ => None,
    }
}

/// Returns what the client says about itself, under the names that other clients use.
fn context<'a>(object: &mut Object<'a>, properties: &Object<'a>) -> Object<'a> {
    let text = |property: &str| {
        let value = properties.get(property);
        value.filter(|value| value.as_str().is_some()).cloned()
    };
    let mut context = Object::default();
    for (name, keys) in IN_SECTIONS {
        let mut section = Object::default();
        for (key, property) in keys {
            if let Some(value) = text(property) {
                section.insert(*key, value);
            }
        }
        if section.iter().next().is_some() {
            context.insert(name, Value::Object(section));
        }
    }
    for (key, property) in IN_CONTEXT {
        if let Some(value) = text(property) {
            context.insert(key, value);
        }
    }
    if let Some(options) = object.remove("options") {
        context.insert("options", options);
    }
    context
}

impl<'a> Event<'a> {
    /// Takes a property of a `track` out of the event, with what was made of it: nothing of its value is
    /// left. The ids by which the client names the person and the message stay, and so does the hash of
    /// what was sent.
    pub fn forget(&mut self, property: &str) {
        let as_text = text(&self.properties, property);
        let Some(value) = self.properties.remove(property) else {
            return;
        };
        for (twin, own) in TWINS {
            if property == twin || property == own {
                remove_if(&mut self.properties, twin, &value);
                remove_if(&mut self.properties, own, &value);
            }
        }
        for (section, keys) in IN_SECTIONS {
            for (key, _) in keys.iter().filter(|(_, from)| *from == property) {
                remove_in_section(&mut self.context, section, key, &value);
            }
        }
        for (key, _) in IN_CONTEXT.iter().filter(|(_, from)| *from == property) {
            remove_if(&mut self.context, key, &value);
        }
        // An unknown person's is the `distinct_id`, which is no property.
        let is_from_property = ANONYMOUS_IDS.contains(&property) && self.user_id.is_some();
        if is_from_property && self.anonymous_id == as_text {
            self.anonymous_id = None;
        }
        if property == TRAITS && self.traits.as_deref() == value.as_object() {
            self.traits = None;
        }
    }
}

/// Removes a key where it has this value.
fn remove_if<'a>(object: &mut Object<'a>, key: &str, value: &Value<'a>) {
    if object.get(key) == Some(value) {
        object.remove(key);
    }
}

/// Removes a key of a section where it has this value, and the section with its last key.
fn remove_in_section<'a>(
    context: &mut Object<'a>,
    section: &'static str,
    key: &str,
    value: &Value<'a>,
) {
    let Some(Value::Object(keys)) = context.get(section) else {
        return;
    };
    let mut keys = keys.clone();
    remove_if(&mut keys, key, value);
    if keys == Object::default() {
        context.remove(section);
    } else {
        context.insert(section, Value::Object(keys));
    }
}

/// Adds the library to an event that leaves it to the request's `User-Agent`, as v1 does:
/// `posthog-python/7.91.1`.
pub(super) fn add_library<'a>(event: &mut Event<'a>, user_agent: Option<&'a str>) {
    let product = user_agent.and_then(|agent| agent.split(' ').next());
    let Some((name, version)) = product.and_then(|product| product.split_once('/')) else {
        return;
    };
    if name.starts_with("posthog") && !event.context.contains_key("library") {
        let mut library = Object::default();
        library.insert("name", name.into());
        library.insert("version", version.into());
        event.context.insert("library", Value::Object(library));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Document;
    use crate::timestamp;

    fn read(body: &str) -> Event<'_> {
        Event::parse(body.as_bytes(), None, Some("2026-01-02T00:00:00Z")).unwrap()
    }

    #[test]
    fn an_event_of_v0_keeps_everything() {
        let event = read(
            r#"{"event":"Conversation Started","distinct_id":"u1","uuid":"019a-1",
                "timestamp":"2026-01-01T00:00:00.5+00:00","type":"capture",
                "properties":{"conversation_id":"c1","$lib":"posthog-python","$lib_version":"7.91.1",
                "$current_url":"https://a/b","$pathname":"/b","$session_id":"s1"}}"#,
        );
        assert_eq!(event.event_type, EventType::Track);
        assert_eq!(event.message_id, "019a-1");
        assert!(!event.id_from_server);
        assert_eq!(event.name.as_deref(), Some("Conversation Started"));
        assert_eq!(event.user_id.as_deref(), Some("u1"));
        assert_eq!(event.anonymous_id, None);
        assert_eq!(
            event.original_timestamp,
            timestamp::parse("2026-01-01T00:00:00.5Z")
        );
        assert_eq!(event.sent_at, timestamp::parse("2026-01-02T00:00:00Z"));
        let expected = concat!(
            r#"{"library":{"name":"posthog-python","version":"7.91.1"},"#,
            r#""page":{"path":"/b","url":"https://a/b"}}"#
        );
        assert_eq!(event.context.to_canonical(), expected);
        for (key, value) in [
            ("conversation_id", "c1"),
            ("$lib", "posthog-python"),
            ("session_id", "s1"),
        ] {
            assert_eq!(event.properties.get(key), Some(&value.into()), "{key}");
        }
    }

    #[test]
    fn an_event_of_v1_keeps_what_stands_outside_of_its_properties() {
        let mut event = read(
            r#"{"event":"E","distinct_id":"d","uuid":"u","timestamp":"2026-01-01T00:00:00Z",
                "options":{"process_person_profile":false},"session_id":"s","window_id":"w",
                "properties":{}}"#,
        );
        assert_eq!(event.user_id, None);
        assert_eq!(event.anonymous_id.as_deref(), Some("d"));
        let expected = r#"{"session_id":"s","window_id":"w"}"#;
        assert_eq!(event.properties.to_canonical(), expected);
        add_library(&mut event, Some("posthog-python/7.91.1"));
        let expected = concat!(
            r#"{"library":{"name":"posthog-python","version":"7.91.1"},"#,
            r#""options":{"process_person_profile":false}}"#
        );
        assert_eq!(event.context.to_canonical(), expected);
    }

    #[test]
    fn nothing_is_left_of_what_is_forgotten() {
        // Whatever the mapping knows, and one that it does not.
        let mut names: Vec<&str> = ANONYMOUS_IDS.into_iter().chain(["mood"]).collect();
        names.extend(
            IN_SECTIONS
                .iter()
                .flat_map(|(_, keys)| keys.iter().map(|(_, from)| *from)),
        );
        names.extend(IN_CONTEXT.map(|(_, from)| from));
        names.extend(TWINS.map(|(_, own)| own));
        let mut properties: Vec<String> = names
            .iter()
            .map(|name| format!(r#""{name}":"<{name}>""#))
            .collect();
        properties.push(r#""$set":{"a":"<$set>"}"#.to_owned());
        names.push(TRAITS);
        let body = format!(
            r#"{{"event":"E","distinct_id":"u","uuid":"m","properties":{{{},"kept":1}}}}"#,
            properties.join(",")
        );
        let sent = read(&body);
        for name in &names {
            let secret = format!("<{name}>");
            let mut event = sent.clone();
            assert!(format!("{event:?}").contains(&secret));
            event.forget(name);
            assert!(!format!("{event:?}").contains(&secret), "{name}: {event:?}");
        }
        let mut event = sent.clone();
        names.iter().for_each(|name| event.forget(name));
        let expected = Event {
            properties: read(r#"{"event":"E","distinct_id":"u","properties":{"kept":1}}"#)
                .properties,
            context: Document::default(),
            anonymous_id: None,
            traits: None,
            ..sent
        };
        assert_eq!(event, expected);
    }

    #[test]
    fn what_the_client_says_elsewhere_is_not_forgotten() {
        let unknown = r#"{"event":"E","distinct_id":"d","uuid":"m","$set":{"a":1},
            "options":{"process_person_profile":false},
            "properties":{"$device_id":"d","$set":{"a":2},"$lib":"l"}}"#;
        let mut event = read(unknown);
        for name in ["$device_id", "$set", "missing"] {
            event.forget(name);
        }
        assert_eq!(event.anonymous_id.as_deref(), Some("d"));
        assert_eq!(
            event.traits.as_ref().map(Document::canonical).as_deref(),
            Some(r#"{"a":1}"#)
        );
        assert_eq!(event.properties.to_canonical(), r#"{"$lib":"l"}"#);
        let segment = r#"{"type":"track","event":"E","userId":"u","anonymousId":"a",
            "context":{"page":{"url":"x"},"library":"own"},"properties":{"$current_url":"y","$lib":"z"}}"#;
        let mut event = read(segment);
        let context = event.context.clone();
        event.forget("$current_url");
        event.forget("$lib");
        assert_eq!(event.context, context);
        assert_eq!(event.properties, Document::default());
        assert_eq!(event.properties.canonical(), "{}");
    }

    #[test]
    fn calls_that_are_no_track_are_found_by_their_name() {
        let identify = read(
            r#"{"event":"$identify","distinct_id":"u","uuid":"1",
                "properties":{"$anon_distinct_id":"a","$set":{"plan":"pro"}}}"#,
        );
        assert_eq!(identify.event_type, EventType::Identify);
        assert_eq!(identify.anonymous_id.as_deref(), Some("a"));
        let traits = |event: &Event<'_>| event.traits.as_ref().map(|it| it.to_canonical());
        assert_eq!(traits(&identify).as_deref(), Some(r#"{"plan":"pro"}"#));
        let set = read(r#"{"event":"$set","distinct_id":"u","uuid":"1","$set":{"a":1}}"#);
        assert_eq!(traits(&set).as_deref(), Some(r#"{"a":1}"#));
        let group = read(
            r#"{"event":"$groupidentify","distinct_id":"u","uuid":"1","properties":
                {"$group_type":"company","$group_key":"acme","$group_set":{"size":3}}}"#,
        );
        assert_eq!(group.event_type, EventType::Group);
        assert_eq!(group.group_id.as_deref(), Some("acme"));
        assert_eq!(traits(&group).as_deref(), Some(r#"{"size":3}"#));
        let alias = read(
            r#"{"event":"$create_alias","distinct_id":"u","uuid":"1","properties":{"alias":"v"}}"#,
        );
        assert_eq!(alias.event_type, EventType::Alias);
        assert_eq!(alias.previous_id.as_deref(), Some("v"));
        let page = read(
            r#"{"event":"$pageview","distinct_id":"u","uuid":"1","properties":{"$device_id":"d"}}"#,
        );
        assert_eq!((page.event_type, page.name), (EventType::Page, None));
        assert_eq!(page.user_id.as_deref(), Some("u"));
        assert_eq!(page.anonymous_id.as_deref(), Some("d"));
    }
}
