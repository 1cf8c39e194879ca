//! What a plan makes of events and of files that cannot be a plan.

use super::*;
use crate::staging::actor::Actor;

fn event(body: &str) -> Event<'_> {
    Event::parse(body.as_bytes(), None, None).unwrap()
}

fn track(name: &str, properties: &str) -> Event<'static> {
    let body =
        format!(r#"{{"type":"track","event":"{name}","userId":"u","properties":{properties}}}"#);
    event(body.leak())
}

fn noted(plan: &Plan, event: &Event<'_>) -> Vec<String> {
    let violations = plan.judge(event).violations;
    violations.iter().map(Violation::short).collect()
}

#[test]
fn spellings_of_a_planned_name_are_one_event() {
    let plan = Plan::builtin();
    for name in [
        "Conversation Started",
        "conversation_started",
        "conversation  started ",
        "CONVERSATION-STARTED",
    ] {
        let planned = plan.lookup(name).map(|it| it.name.as_str());
        assert_eq!(planned, Some("Conversation Started"));
    }
    assert!(plan.lookup("ConversationStarted").is_none());
    assert!(plan.lookup("Something Else").is_none());
}

#[test]
fn the_plan_that_is_compiled_in_is_the_directory() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/plan");
    let files = file::read(&directory).unwrap();
    let compiled_in: Vec<Text> = builtin::FILES
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    let names = |files: &[Text]| {
        files
            .iter()
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&files), names(&compiled_in));
    assert_eq!(files, compiled_in);
    let plan = Plan::load(Some(&directory)).unwrap();
    assert_eq!(plan.events(), files.len() - 1);
    assert_eq!(plan.fingerprint(), Plan::builtin().fingerprint());
    // Each file is named after its event.
    for (name, text) in files.iter().filter(|(name, _)| name != COMMON_FILE) {
        let (parsed, _) = file::parse::<EventFile>(name, text).unwrap();
        assert_eq!(*name, format!("{}.json", key(&parsed.event)));
    }
}

#[test]
fn a_directory_holds_at_most_so_many_events_with_or_without_plan_json() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str| std::fs::write(directory.path().join(name), "{}").unwrap();
    (0..file::EVENTS_MAX).for_each(|n| write(&format!("{n}.json")));
    let read = || file::read(directory.path()).map(|files| files.len());
    assert_eq!(read().unwrap(), file::EVENTS_MAX);
    write(COMMON_FILE);
    assert_eq!(read().unwrap(), file::EVENTS_MAX + 1);
    let refused = || {
        let error = read().unwrap_err().to_string();
        assert!(error.contains("at most 1000 events"), "{error}");
    };
    write("one_more.json");
    refused();
    std::fs::remove_file(directory.path().join(COMMON_FILE)).unwrap();
    refused();
}

#[test]
fn who_causes_an_event_follows_from_the_plan() {
    let plan = Plan::builtin();
    let cases = [
        ("Signed In", Causer::Always(Actor::Admin)),
        ("SLA Missed", Causer::Always(Actor::System)),
        ("AI Agent Answered", Causer::Always(Actor::AiAgent)),
        (
            "Widget Opened",
            Causer::ContactOrVisitor(Actor::ContactUser),
        ),
        ("Conversation Rated", Causer::Always(Actor::ContactUser)),
        ("Conversation Replied", Causer::Several),
    ];
    for (name, causer) in cases {
        assert_eq!(plan.lookup(name).unwrap().causer, causer, "{name}");
    }
}

#[test]
fn an_event_is_judged_by_its_schema() {
    let plan = Plan::builtin();
    let good = track(
        "conversation_rated",
        r#"{"conversation_id":7,"rating":5,"rated_type":"teammate","team_id":null}"#,
    );
    let judgement = plan.judge(&good);
    assert_eq!(judgement.violations, []);
    assert_eq!(judgement.version, 1);
    assert!(!judgement.has_unplanned_properties);
    let bad = track(
        "Conversation Rated",
        r#"{"rating":6,"rated_type":"robot","mood":1}"#,
    );
    assert_eq!(
        noted(&plan, &bad),
        [
            "$.properties.conversation_id: required",
            "$.properties.rated_type: enum",
            "$.properties.rating: maximum"
        ]
    );
    let judgement = plan.judge(&bad);
    assert!(judgement.has_unplanned_properties);
    // The starting plan notes; it keeps nothing from sight.
    assert_eq!(judgement.quarantine, None);
}

#[test]
fn only_a_track_is_judged_and_others_keep_their_canonical_name() {
    let plan = Plan::builtin();
    let page = event(r#"{"type":"page","name":"conversation rated","userId":"u"}"#);
    let judgement = plan.judge(&page);
    assert_eq!(
        (judgement.version, judgement.violations.len()),
        (UNPLANNED, 0)
    );
    assert_eq!(
        judgement.planned.map(|it| it.name.as_str()),
        Some("Conversation Rated")
    );
    let unplanned = track("Something Else", r#"{"a":1}"#);
    let judgement = plan.judge(&unplanned);
    assert_eq!((judgement.version, judgement.quarantine), (UNPLANNED, None));
    assert_eq!(judgement.violations, []);
}

#[test]
fn modes_allow_note_or_quarantine() {
    let file = |mode: &str| {
        format!(r#"{{"event":"A","version":3,"mode":"{mode}","schema":{{"required":["x"]}}}}"#)
    };
    let cases = [
        ("allow", 0, None),
        ("note", 1, None),
        ("quarantine", 1, Some(Blocked::SchemaViolation)),
    ];
    for (mode, violations, blocked) in cases {
        let plan = Plan::of_texts(&[("a.json", &file(mode))]).unwrap();
        let bad = track("a", "{}");
        let judgement = plan.judge(&bad);
        assert_eq!(
            (judgement.violations.len(), judgement.quarantine),
            (violations, blocked)
        );
        let good = track("a", r#"{"x":1}"#);
        assert_eq!(plan.judge(&good).quarantine, None);
    }
    let of = |mode: &str| format!(r#"{{"unplanned_events":"{mode}"}}"#);
    let cases = [
        ("allow", 0, None),
        ("note", 1, None),
        ("quarantine", 1, Some(Blocked::UnplannedEvent)),
    ];
    for (mode, violations, blocked) in cases {
        let plan = Plan::of_texts(&[("plan.json", &of(mode)), ("a.json", &file("note"))]).unwrap();
        let judged = track("B", "{}");
        let judgement = plan.judge(&judged);
        assert_eq!(
            (judgement.violations.len(), judgement.quarantine),
            (violations, blocked)
        );
    }
}

/// A plan of one event, which omits what is at fault.
fn omitting(schema: &str, others: &str) -> Plan {
    let file = format!(r#"{{"event":"A","version":1,"mode":"omit","schema":{schema}{others}}}"#);
    Plan::of_texts(&[("a.json", &file)]).unwrap()
}

#[test]
fn mode_omit_names_what_must_not_be_stored_and_keeps_the_event() {
    let plan = omitting(
        r#"{"required":["id"],"properties":{
            "rating":{"type":"integer","maximum":5},
            "card":{"properties":{"number":{"maxLength":4}}}}}"#,
        "",
    );
    let cases: [(&str, &[&str], &[&str]); 4] = [
        (r#"{"id":1,"rating":5,"mood":"good"}"#, &[], &[]),
        (
            r#"{"rating":6,"mood":"good"}"#,
            &["$.properties.id: required", "$.properties.rating: maximum"],
            &["rating"],
        ),
        (r#"{"id":1,"card":{"name":"x","number":"4111"}}"#, &[], &[]),
        (
            r#"{"id":1,"card":{"name":"x","number":"4111 1111"}}"#,
            &["$.properties.card.number: maxLength"],
            &["card"],
        ),
    ];
    for (properties, expected, omitted) in cases {
        let sent = track("a", properties);
        let judgement = plan.judge(&sent);
        assert_eq!(judgement.quarantine, None);
        assert_eq!(judgement.version, 1);
        assert_eq!(judgement.omitted, omitted, "{properties}");
        assert_eq!(noted(&plan, &sent), expected, "{properties}");
        let stored = judgement.stored(&sent);
        let names = |event: &Event<'_>| -> Vec<String> {
            event
                .properties
                .iter()
                .map(|(name, _)| name.to_owned())
                .collect()
        };
        let mut kept = names(&sent);
        kept.retain(|name| !omitted.contains(&name.as_str()));
        assert_eq!(names(&stored), kept);
        assert_eq!(matches!(stored, Cow::Borrowed(_)), omitted.is_empty());
    }
}

#[test]
fn other_modes_omit_nothing() {
    for mode in ["allow", "note", "quarantine"] {
        let file = format!(
            r#"{{"event":"A","version":1,"mode":"{mode}","schema":{{"additionalProperties":false}}}}"#
        );
        let plan = Plan::of_texts(&[("a.json", &file)]).unwrap();
        let sent = track("a", r#"{"x":1}"#);
        let judgement = plan.judge(&sent);
        assert_eq!(judgement.omitted, [""; 0], "{mode}");
        assert_eq!(*judgement.stored(&sent), sent);
    }
}

#[test]
fn a_value_that_its_column_cannot_hold_is_noted_and_not_omitted() {
    let promote = r#","promote":{"x":"long","y":"long"}"#;
    let plan = omitting(r#"{"properties":{"y":{"items":{"type":"null"}}}}"#, promote);
    let sent = track("a", r#"{"x":"1","y":[1]}"#);
    let judgement = plan.judge(&sent);
    assert_eq!(judgement.omitted, ["y"]);
    // Of what is not there nobody asks why its column is empty.
    assert_eq!(
        noted(&plan, &sent),
        ["$.properties.y[]: type", "$.properties.x: promote"]
    );
}

#[test]
fn at_most_16_violations_are_noted_whatever_is_promoted() {
    let names: Vec<String> = (0..30).map(|n| format!("p{n}")).collect();
    let list = |value: &str| {
        let all = names.iter().map(|name| format!(r#""{name}":{value}"#));
        format!("{{{}}}", all.collect::<Vec<_>>().join(","))
    };
    let promote = format!(r#","promote":{}"#, list(r#""long""#));
    let plan = omitting("{}", &promote);
    let sent = track("a", &list(r#""x""#));
    assert_eq!(noted(&plan, &sent).len(), VIOLATIONS_MAX);
}

#[test]
fn the_fingerprint_follows_what_is_said_and_not_how() {
    let one = Plan::of_texts(&[("a.json", r#"{"event":"A","version":1}"#)]).unwrap();
    let same = Plan::of_texts(&[("b.json", r#"{ "version" : 1, "event" : "A" }"#)]).unwrap();
    let other = Plan::of_texts(&[("a.json", r#"{"event":"A","version":2}"#)]).unwrap();
    assert_eq!(one.fingerprint(), same.fingerprint());
    assert_ne!(one.fingerprint(), other.fingerprint());
}

#[test]
fn what_only_explains_a_plan_is_not_in_its_fingerprint() {
    let fingerprint = |file: &str, schema: &str, common: &str| {
        let event = format!(r#"{{{file}"event":"A","version":1,"schema":{schema}}}"#);
        let all = format!(r#"{{{file}"common":{common}}}"#);
        let plan = Plan::of_texts(&[("a.json", &event), ("plan.json", &all)]).unwrap();
        plan.fingerprint().to_owned()
    };
    let bare = r#"{"properties":{"x":{"items":{"type":"string"}}},"additionalProperties":{"type":"null"}}"#;
    let explained = r#"{"$id":"a","title":"A","properties":{"x":{"description":"b","items":
        {"$comment":"c","type":"string","examples":["d"]}}},
        "additionalProperties":{"default":null,"type":"null"}}"#;
    let common = r#"{"y":{"type":"string"}}"#;
    let plain = fingerprint("", bare, common);
    let commented = r#"{"y":{"title":"Y","type":"string"}}"#;
    assert_eq!(
        fingerprint(r#""description":"e","#, explained, commented),
        plain
    );
    // A property may be called like a keyword, and a value may hold anything.
    let properties = |inner: &str| format!(r#"{{"properties":{{{inner}}}}}"#);
    let values = |inner: &str| properties(&format!(r#""x":{{"enum":[{{{inner}}}]}}"#));
    let different = [
        plain,
        fingerprint("", "{}", common),
        fingerprint("", &properties(r#""title":{"type":"string"}"#), common),
        fingerprint("", &values(""), common),
        fingerprint("", &values(r#""title":"a""#), common),
        fingerprint("", bare, r#"{"title":{"type":"string"}}"#),
        fingerprint("", bare, "{}"),
    ];
    for (index, one) in different.iter().enumerate() {
        assert!(!different[..index].contains(one), "{index}");
    }
}

#[test]
fn files_that_cannot_be_a_plan_are_named_with_place_and_reason() {
    let good = r#"{"event":"A","version":1}"#;
    let cases: [(&[(&str, &str)], &str); 13] = [
        (
            &[
                ("a.json", good),
                ("plan.json", r#"{"unplanned_events":"omit"}"#),
            ],
            "file `plan.json`, `$.unplanned_events`: must be `allow`, `note` or `quarantine`",
        ),
        (
            &[(
                "a.json",
                r#"{"event":"A","version":1,"promote":{"rating":"long"}}"#,
            )],
            "`$.promote.rating`: `rating` is a column already",
        ),
        (
            &[
                (
                    "a.json",
                    r#"{"event":"A","version":1,"promote":{"x":"long"}}"#,
                ),
                (
                    "b.json",
                    r#"{"event":"B","version":1,"promote":{"x":"double"}}"#,
                ),
            ],
            "file `b.json`, `$.promote.x`: another file promotes it as another type",
        ),
        (&[("a.json", "{")], "file `a.json`, `$`: EOF"),
        (
            &[("a.json", r#"{"event":"A"}"#)],
            "`$`: missing field `version`",
        ),
        (
            &[("a.json", r#"{"event":"A","version":1,"shema":{}}"#)],
            "unknown field `shema`",
        ),
        (
            &[("a.json", r#"{"event":"A","version":0}"#)],
            "`$.version`: must be at least 1",
        ),
        (
            &[("a.json", r#"{"event":" ","version":1}"#)],
            "`$.event`: must be a name",
        ),
        (
            &[("a.json", r#"{"event":"A","version":1,"actors":["boss"]}"#)],
            "unknown variant `boss`",
        ),
        (
            &[(
                "a.json",
                r#"{"event":"A","version":1,"schema":{"properties":{"x":{"type":"text"}}}}"#,
            )],
            "`$.schema.properties.x.type`: must be one or a list of",
        ),
        (
            &[(
                "a.json",
                r#"{"event":"A","version":1,"schema":{"type":"string"}}"#,
            )],
            "`$.schema.type`: must allow `object`",
        ),
        (
            &[("a.json", good), ("b.json", r#"{"event":"a","version":1}"#)],
            "file `b.json`, `$.event`: another file",
        ),
        (
            &[
                ("a.json", good),
                ("plan.json", r#"{"common":{"x":{"type":7}}}"#),
            ],
            "file `plan.json`, `$.common.x.type`",
        ),
    ];
    for (files, expected) in cases {
        let error = Plan::of_texts(files).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let empty = tempfile::tempdir().unwrap();
    let error = Plan::load(Some(empty.path())).unwrap_err().to_string();
    assert!(error.contains("holds no JSON file"), "{error}");
    let missing = empty.path().join("missing");
    let error = Plan::load(Some(&missing)).unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
}
