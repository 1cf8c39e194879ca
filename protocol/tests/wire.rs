//! Golden vectors and properties of the wire. A vector that changes breaks agents in the field.

use headwater_protocol::batch::{self, BodyError, Slot};
use headwater_protocol::frame;
use headwater_protocol::{
    BatchHeader, BatchReply, Codec, Cut, EventType, Hello, HelloReply, Limits, Record,
    RefusalCause, SourceKind, Welcome,
};
use proptest::prelude::*;
use serde_bytes::ByteBuf;

fn slots<'a>(header: &BatchHeader, body: &'a [u8]) -> Result<Vec<Slot<'a>>, BodyError> {
    batch::slots(header, body).map(Iterator::collect)
}

fn record(body: &[u8]) -> Record {
    Record {
        event_type: Some(EventType::Track),
        attempt: Some(1),
        ip: Some("192.0.2.0".to_owned()),
        ..Record::new(
            1_770_000_000_000_000,
            "acme",
            "web",
            SourceKind::Server,
            "/v1/track",
            body,
        )
    }
}

fn header(count: u32, body_bytes: usize) -> BatchHeader {
    BatchHeader {
        epoch: 1_770_000_000_000,
        first_sequence: 1,
        count,
        codec: Codec::Zstd,
        body_bytes: body_bytes as u64,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_vectors_hold() {
    let hello = Hello {
        protocol_version: 1,
        agent_id: "web-1".parse().unwrap(),
        epoch: 1_770_000_000_000,
        lowest_unacknowledged: 1,
        build: "0.1.0".to_owned(),
        host: "h".to_owned(),
    };
    let welcome = HelloReply::Welcome(Welcome {
        committed_through: 300,
        limits: Limits {
            batch_bytes_max: 1 << 20,
            batch_events_max: 5000,
            batches_in_flight_max: 8,
        },
        used_through: None,
    });
    let ahead = HelloReply::Welcome(Welcome {
        committed_through: 300,
        limits: Limits {
            batch_bytes_max: 1 << 20,
            batch_events_max: 5000,
            batches_in_flight_max: 8,
        },
        used_through: Some(310),
    });
    let ack = BatchReply::Ack {
        committed_through: 300,
        snapshot_id: 42,
    };
    let refused = BatchReply::Refused {
        reason: "r".to_owned(),
        cause: RefusalCause::Protocol,
    };
    let vectors = [
        ("hello", frame::encode(&hello)),
        ("welcome", frame::encode(&welcome)),
        ("welcome with more in use", frame::encode(&ahead)),
        ("batch header", frame::encode(&header(3, 900))),
        ("ack", frame::encode(&ack)),
        ("refused", frame::encode(&refused)),
        ("record", record(b"{}").encode()),
        (
            "record of a device",
            Record {
                skew_ms: Some(-3000),
                ..record(b"{}")
            }
            .encode(),
        ),
        (
            "record of a form",
            Record {
                content_type: Some("text/plain".to_owned()),
                ..record(b"{}")
            }
            .encode(),
        ),
        (
            "record of packed bytes",
            Record {
                encoding: Some("gzip".to_owned()),
                ..record(b"{}")
            }
            .encode(),
        ),
        (
            "record that was cut",
            Record {
                cut: Some(Cut {
                    sent_bytes: 70_000,
                    allowed_bytes: Some(65_536),
                }),
                ..record(b"{}")
            }
            .encode(),
        ),
    ];
    let found: Vec<String> = vectors
        .iter()
        .map(|(name, bytes)| format!("{name}: {}", hex(bytes)))
        .collect();
    let golden = include_str!("../testdata/vectors.txt");
    assert_eq!(found.join("\n"), golden.trim_end(), "the wire changed");
}

/// The bytes of a vector.
fn golden(name: &str) -> Vec<u8> {
    let vectors = include_str!("../testdata/vectors.txt").lines();
    let mut named = vectors.filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let text = named.next().expect("a vector of this name");
    let hex = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits");
    (0..text.len()).step_by(2).map(hex).collect()
}

/// Records of agents from before fields were added still lie in buffers.
#[test]
fn records_without_the_newest_fields_are_read() {
    let plain = record(b"{}");
    let of_a_device = Record {
        skew_ms: Some(-3000),
        ..plain.clone()
    };
    let vectors = ["record", "record of a device", "record"].map(golden);
    assert_eq!(
        vectors[0][0], 0x9b,
        "eleven fields, as in the first version"
    );
    assert_eq!(vectors[1][0], 0x9c, "twelve, as in the one after it");
    let body = vectors.concat();
    let slots = slots(&header(3, body.len()), &body).unwrap();
    let expected = [&plain, &of_a_device, &plain].map(|it| Slot::Record(Box::new(it.clone())));
    assert_eq!(slots, expected);
}

/// Every combination of the fields that are written only where they are there.
#[test]
fn fields_at_the_end_are_written_up_to_the_last_one_that_is_there() {
    let text = |there: bool, text: &str| there.then(|| text.to_owned());
    for fields in 0..16_u8 {
        let has = |bit| fields & bit != 0;
        let record = Record {
            skew_ms: has(1).then_some(7),
            content_type: text(has(2), "text/plain"),
            encoding: text(has(4), "gzip"),
            cut: has(8).then_some(Cut {
                sent_bytes: u64::MAX,
                allowed_bytes: Some(u64::MAX),
            }),
            ..record(b"{}")
        };
        let written = 8 - u8::try_from(fields.leading_zeros()).unwrap();
        let bytes = record.encode();
        assert_eq!(bytes[0], 0x9b + written, "{record:?}");
        assert!(bytes.len() <= record.encoded_bytes_max(), "{record:?}");
        assert_eq!(Record::decode(&bytes).unwrap(), record);
    }
}

/// The record as collectors knew it before the form of a request was in it.
#[derive(Debug, serde::Deserialize)]
#[expect(dead_code, reason = "only whether it is read counts")]
struct RecordOfBefore {
    received_at: i64,
    company_id: String,
    source_id: String,
    source_kind: SourceKind,
    path: String,
    event_type: Option<EventType>,
    sent_at: Option<String>,
    attempt: Option<u32>,
    ip: Option<String>,
    user_agent: Option<String>,
    body: ByteBuf,
    #[serde(default)]
    skew_ms: Option<i64>,
}

/// To such a collector an event of plain JSON is what it always was. One of another form is no record: it
/// lies in quarantine until a newer collector replays it.
#[test]
fn an_older_collector_reads_plain_events_and_takes_others_for_no_record() {
    let is_read = |name| rmp_serde::from_slice::<RecordOfBefore>(&golden(name)).is_ok();
    assert!(is_read("record"));
    assert!(is_read("record of a device"));
    assert!(!is_read("record of a form"));
    assert!(!is_read("record of packed bytes"));
}

/// A collector from before causes were told refuses because of the events.
#[test]
fn a_refusal_without_a_cause_is_read() {
    let old = std::collections::BTreeMap::from([("Refused", ["r"])]);
    let reply: BatchReply = frame::decode(&rmp_serde::to_vec(&old).unwrap()).unwrap();
    let expected = BatchReply::Refused {
        reason: "r".to_owned(),
        cause: RefusalCause::Events,
    };
    assert_eq!(reply, expected);
}

#[test]
fn a_bad_record_takes_one_slot_and_spares_the_rest() {
    let mut body = record(b"{}").encode();
    body.extend(rmp_serde::to_vec(&("not", "a", "record")).unwrap());
    record(b"{1}").encode_into(&mut body);
    let slots = slots(&header(3, body.len()), &body).unwrap();
    assert!(matches!(slots[0], Slot::Record(_)));
    assert!(matches!(slots[1], Slot::Undecodable(bytes) if !bytes.is_empty()));
    assert!(matches!(slots[2], Slot::Record(_)));
}

#[test]
fn values_as_deep_as_bytes_allow_spare_the_records_beside_them() {
    let mut body = record(b"{}").encode();
    body.extend(vec![0x91; 1 << 20]);
    body.push(0xc0);
    // A record as a map, in which a field that nobody knows is as deep.
    body.extend([0x81, 0xa1, b'x']);
    body.extend(vec![0x91; 1 << 20]);
    body.push(0xc0);
    record(b"{1}").encode_into(&mut body);
    let slots = slots(&header(4, body.len()), &body).unwrap();
    assert!(matches!(slots[0], Slot::Record(_)));
    assert!(matches!(slots[1], Slot::Undecodable(bytes) if bytes.len() == (1 << 20) + 1));
    assert!(matches!(slots[2], Slot::Undecodable(bytes) if bytes.len() == (1 << 20) + 4));
    assert!(matches!(slots[3], Slot::Record(_)));
    for first in [&[][..], &[0x81, 0xa1, b'x']] {
        let message = [first, &vec![0x91; 60_000]].concat();
        assert!(frame::decode::<Hello>(&message).is_err());
        assert!(frame::decode::<BatchHeader>(&message).is_err());
        assert!(frame::decode::<HelloReply>(&message).is_err());
        assert!(frame::decode::<BatchReply>(&message).is_err());
        assert!(Record::decode(&message).is_err());
    }
}

/// A value in every byte makes no more slots than the header says.
#[test]
fn more_records_than_announced_are_not_collected() {
    let body = vec![0; 1 << 20];
    let counted = slots(&header(3, body.len()), &body).unwrap_err();
    assert!(matches!(
        counted,
        BodyError::Count {
            expected: 3,
            got: 4
        }
    ));
}

#[test]
fn a_substitute_takes_the_slot_of_its_record_and_is_none() {
    let original = record(&vec![b'x'; 100_000]).encode();
    let mut body = record(b"{}").encode();
    body.extend(batch::substitute(&original));
    record(b"{1}").encode_into(&mut body);
    let slots = slots(&header(3, body.len()), &body).unwrap();
    assert!(matches!(slots[0], Slot::Record(_)));
    assert!(
        matches!(slots[1], Slot::Undecodable(bytes) if bytes.ends_with(&original[60_000..61_440]))
    );
    assert!(matches!(slots[2], Slot::Record(_)));
}

#[test]
fn a_body_above_its_announced_size_is_refused() {
    let records = record(&vec![b'x'; 4096]).encode();
    let compressed = batch::compress(&records).unwrap();
    assert!(batch::decompress(&header(1, records.len() - 1), &compressed).is_err());
    assert!(batch::decompress(&header(1, records.len() + 1), &compressed).is_err());
    assert_eq!(
        batch::decompress(&header(1, records.len()), &compressed).unwrap(),
        records
    );
}

proptest! {
    #[test]
    fn records_survive_the_wire(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20)) {
        let records: Vec<Record> = bodies.iter().map(|body| record(body)).collect();
        let mut encoded = Vec::new();
        for record in &records {
            record.encode_into(&mut encoded);
        }
        let header = header(records.len() as u32, encoded.len());
        let compressed = batch::compress(&encoded).unwrap();
        let decompressed = batch::decompress(&header, &compressed).unwrap();
        let slots = slots(&header, &decompressed).unwrap();
        let back: Vec<Slot<'_>> = records.into_iter().map(|record| Slot::Record(Box::new(record))).collect();
        prop_assert_eq!(slots, back);
    }

    #[test]
    fn damaged_messages_are_refused_or_mean_what_they_are_written_as(
        message in 0..5usize,
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut bytes = golden(["hello", "welcome", "batch header", "ack", "refused"][message]);
        for (place, byte) in damages {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let message = &bytes[4..];
        macro_rules! survives {
            ($($kind:ty),*) => {$(
                if let Ok(read) = frame::decode::<$kind>(message) {
                    let again = frame::encode(&read);
                    prop_assert_eq!(frame::decode::<$kind>(&again[4..]).unwrap(), read);
                }
            )*};
        }
        survives!(Hello, HelloReply, BatchHeader, BatchReply);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), count in 0u32..50) {
        let slots = slots(&header(count, bytes.len()), &bytes);
        if let Ok(slots) = slots {
            prop_assert_eq!(slots.len(), count as usize);
        }
        drop(frame::decode::<Hello>(&bytes));
        drop(batch::decompress(&header(count, 1000), &bytes));
    }
}
