//! The verdict of the head against that of a whole parse.

use super::*;
use crate::Event;
use proptest::prelude::*;

fn agree(body: &[u8], path_type: Option<EventType>) {
    let head = Head::of(body, path_type);
    match Event::parse(body, path_type, None) {
        Err(invalid) => assert_eq!(head.invalid, Some(invalid)),
        Ok(event) => {
            assert_eq!(head.invalid, None);
            assert_eq!(head.user_id.as_deref(), event.user_id.as_deref());
            assert_eq!(head.anonymous_id.as_deref(), event.anonymous_id.as_deref());
            let id = (!event.id_from_server).then_some(&*event.message_id);
            assert_eq!(head.message_id.as_deref(), id);
            assert_eq!(
                head.sent_at.as_deref().and_then(timestamp::parse),
                event.sent_at
            );
        }
    }
}

/// A value as a client might send it for a field that decides, odd ones included.
fn value() -> impl Strategy<Value = String> {
    let odd = [
        "null",
        "true",
        "7",
        "-1",
        "1.5",
        "1e999",
        "\"\"",
        "\" \"",
        "\"u1\"",
        "\"track\"",
        "\"page\"",
        "\"a\\u00e9\\n\"",
        "\"\\ud800\"",
        "[]",
        "[1,{}]",
        "{}",
        "{\"a\":[{}]}",
        "{\"a\":1,}",
        "\"2026-01-01T00:00:00Z\"",
        "\"soon\"",
        "\"2026-01-01 00:00:00\"",
        "nul",
    ];
    let long = ["x".repeat(100), "ä".repeat(101), " ".repeat(101)].map(|id| format!("\"{id}\""));
    let deep = [120, 140].map(|depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
    let all = odd.map(str::to_owned).into_iter().chain(long).chain(deep);
    prop::sample::select(all.collect::<Vec<_>>())
}

fn key() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "type",
        "messageId",
        "userId",
        "user\\u0049d",
        "anonymousId",
        "event",
        "originalTimestamp",
        "timestamp",
        "sentAt",
        "properties",
        "context",
        "traits",
        "distinct_id",
        "uuid",
        "x",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn the_front_and_the_collector_come_to_one_verdict(
        entries in prop::collection::vec((key(), value()), 0..9),
        sound in prop::option::of(prop::sample::select(vec![Form::Segment, Form::PostHog])),
        path_type in prop::option::of(prop::sample::select(vec![EventType::Track, EventType::Alias])),
    ) {
        let mut entries: Vec<String> = entries
            .iter()
            .map(|(key, value)| format!("\"{key}\":{value}"))
            .collect();
        match sound {
            None => {}
            Some(Form::Segment) => {
                entries.push(r#""type":"track","event":"E","userId":"u""#.to_owned());
            }
            Some(Form::PostHog) => {
                entries.push(r#""event":"$pageview","distinct_id":"u","uuid":"1""#.to_owned());
            }
        }
        agree(format!("{{{}}}", entries.join(",")).as_bytes(), path_type);
    }
}

#[test]
fn what_is_no_object_has_the_same_verdict() {
    for body in [
        b"".as_slice(),
        b"{",
        b"[1]",
        b"[1",
        b"7",
        b"-7",
        b"0.5",
        b"\"text\"",
        b"null",
        b"true",
        b"{} {}",
        b"\xff",
        b"{\"a\":\"\xff\"}",
        b"\xef\xbb\xbf{}",
    ] {
        agree(body, None);
    }
}
