//! What a request takes of the memory, held against what is allocated.

use axum::body::Body as HttpBody;
use axum::extract::Request;
use headwater_service::clock::SystemClock;
use headwater_service::tls::TlsFiles;

use super::super::memory::Memory;
use super::super::skew::Skews;
use super::*;
use crate::companies::Companies;
use crate::config::{Config, SuppressionConfig};
use crate::reload::Settings;
use crate::suppression::Suppression;

const BOUND: u64 = 128 << 20;

fn shared() -> Shared {
    let tls = TlsFiles {
        certificate: "a.pem".into(),
        key: "a.key".into(),
        ca: "ca.pem".into(),
    };
    let key = WriteKey {
        key: "key-1".to_owned(),
        company: "acme".to_owned(),
        source: "web".to_owned(),
        kind: SourceKind::Browser,
    };
    Shared {
        memory: Memory::new(BOUND),
        companies: Companies::default(),
        skews: Skews::new(100),
        suppression: Arc::new(Suppression::open(&SuppressionConfig::default()).unwrap()),
        fingerprinter: None,
        settings: Settings::fixed(Config::new(tls, vec![key])),
        clock: SystemClock::shared(),
    }
}

/// Prepares a body of this type when requests may take `bytes_max`.
fn attempt(
    shared: &Shared,
    (path, kind, bytes): (&str, &str, &[u8]),
    bytes_max: u64,
) -> Result<Prepared, Answer> {
    let request = Request::post(path)
        .header("x-write-key", "key-1")
        .header("content-type", kind)
        .header("user-agent", "u".repeat(512))
        .body(HttpBody::empty())
        .unwrap();
    let peer = "2001:db8:aaaa:bbbb::1".parse().unwrap();
    let facts = Facts::of(&request, Some(peer), false, 1_700_000_000_000_000);
    shared.memory.set_bytes_max(bytes_max);
    let mut memory = shared.memory.reservation();
    memory.grow(bytes.len() as u64)?;
    let bytes = bytes.to_vec();
    let (live, endpoint) = (shared.settings.now(), Endpoint::of(path).unwrap());
    prepare(shared, &live, endpoint, &facts, Body { bytes, memory })
}

/// Returns what a body becomes, and the least bound that it fits under: what it takes at once.
fn prepared(shared: &Shared, request: (&str, &str, &[u8])) -> (Prepared, u64) {
    let (mut too_little, mut enough) = (0, BOUND);
    while enough - too_little > 1 {
        let middle = too_little.midpoint(enough);
        match attempt(shared, request, middle) {
            Ok(_) => enough = middle,
            Err(_) => too_little = middle,
        }
        assert_eq!(shared.memory.held(), 0);
    }
    (attempt(shared, request, BOUND).unwrap(), enough)
}

#[test]
fn everything_that_a_body_becomes_is_held() {
    let shared = shared();
    let track = |index: usize| {
        let id = "i".repeat(index % 400);
        format!(r#"{{"type":"track","event":"e","userId":"u","messageId":"{id}","sentAt":"x"}}"#)
    };
    let tracks: Vec<String> = (0..500).map(track).collect();
    let ids: Vec<String> = (0..500)
        .map(|index| format!(r#"{{"uuid":"{index:0>300}"}}"#))
        .collect();
    let batch = |events: &[String]| format!(r#"{{"batch":[{}]}}"#, events.join(",")).into_bytes();
    let falses = [b"\xdc\x10\x00".as_slice(), &[0xc2; 4096]].concat();
    let cases = [
        ("/v1/track", "", track(9).into_bytes()),
        ("/v1/batch", "", batch(&tracks)),
        ("/i/v1/analytics/events", "", batch(&ids)),
        ("/v1/events", "", b"{}\n".repeat(5000)),
        (
            "/v1/events",
            "",
            format!("[{}0]", "0,".repeat(4999)).into_bytes(),
        ),
        ("/v1/events", "application/msgpack", falses),
        ("/v1/events", "", b"{\"".repeat(100_000)),
    ];
    for (path, kind, bytes) in cases {
        let (prepared, needed) = prepared(&shared, (path, kind, &bytes));
        let what = format!("{path} {kind} {} bytes", bytes.len());
        let (stored, told) = prepared.memory_taken();
        assert!(stored > 0, "{what}");
        let held = shared.memory.held();
        assert!(
            held >= stored + told,
            "{what}: {held} of {stored} and {told}"
        );
        assert!(held <= 3 * (stored + told) + 1024, "{what}: {held}");
        // The body is there until all of it is made.
        assert!(needed >= stored + bytes.len() as u64, "{what}: {needed}");
        let duplicates = [];
        let counts = prepared.counts(prepared.entries.len(), &duplicates);
        let answer = prepared.into_answer(&duplicates, counts);
        let held = shared.memory.held();
        let json = answer.json().len() as u64;
        let is_plain = matches!(answer, Answer::Unreadable(_)) || told == 0;
        assert!(
            is_plain || held >= told + json,
            "{what}: {held} of {told} and {json}"
        );
        drop(answer);
        assert_eq!(shared.memory.held(), 0, "{what}");
    }
}

#[test]
fn what_a_body_is_cut_into_is_held_before_it_is_cut() {
    let shared = shared();
    let limit = shared.settings.now().http.request_events_max;
    let too_many = "0,".repeat(limit + 1);
    let falses = [b"\xdd\0\0\x4e\x20".as_slice(), &[0xc2; 20_000]].concat();
    let bodies = [
        ("/v1/events", "", "0\n".repeat(limit + 1).into_bytes()),
        ("/v1/events", "", format!("[{too_many}0]").into_bytes()),
        (
            "/v1/batch",
            "",
            format!(r#"{{"batch":[{too_many}0]}}"#).into_bytes(),
        ),
        ("/v1/events", "application/msgpack", falses),
    ];
    for (path, kind, bytes) in bodies {
        let request = (path, kind, bytes.as_slice());
        let refused = attempt(&shared, request, BOUND).map(|_| ()).err();
        assert!(matches!(refused, None | Some(Answer::TooMany { .. })));
        // Less than the list alone.
        let bytes_max = (limit * size_of::<Cow<'_, [u8]>>()) as u64;
        let refused = attempt(&shared, request, bytes_max).map(|_| ()).err();
        let is_held = matches!(refused, Some(Answer::TooLarge { .. }));
        assert!(is_held, "{path} {kind}: {refused:?}");
    }
}
