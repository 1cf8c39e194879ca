//! Events from arbitrary bytes: no panic, and the agent's front and the collector come to one verdict.
#![no_main]

use headwater_protocol::{Event, EventType, Head};
use libfuzzer_sys::fuzz_target;

const TYPES: [Option<EventType>; 4] = [
    None,
    Some(EventType::Track),
    Some(EventType::Identify),
    Some(EventType::Page),
];

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, body) = input;
    let path_type = TYPES[usize::from(kind) % TYPES.len()];
    let head = Head::of(body, path_type);
    match Event::parse(body, path_type, None) {
        Ok(event) => {
            assert_eq!(head.invalid, None);
            assert!(!event.message_id.trim().is_empty());
        }
        Err(invalid) => assert_eq!(head.invalid, Some(invalid)),
    }
});
