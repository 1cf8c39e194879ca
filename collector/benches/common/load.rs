//! What the benches send: events as a support tool's SDK sends them, in batches of the wire.

use headwater_protocol::{BatchHeader, Codec, Record, SourceKind, batch};

/// Returns the `n`th event: a track call of one of 200 users, 656 bytes of MessagePack.
pub(crate) fn event(n: u64) -> Record {
    let body = format!(
        r#"{{"type":"track","event":"Conversation Replied","messageId":"{n:032x}","userId":"user-{}","timestamp":"2026-11-20T10:00:{:02}.123Z","properties":{{"conversation_id":"c-{}","part_id":"p-{n}","part_type":"comment","is_visible":true,"body_length":{},"attachments_count":0,"language":"en","team_id":"t-7","in_reply_to":"p-{}","channel":"chat"}},"context":{{"library":{{"name":"@segment/analytics-node","version":"3.1.0"}},"locale":"en-GB","timezone":"Europe/Dublin","userAgent":"node/22","page":{{"url":"https://app.example.com/inbox/{}","path":"/inbox"}}}}}}"#,
        n % 200,
        n % 60,
        n % 997,
        n % 400,
        n / 2,
        n % 97,
    );
    Record {
        sent_at: Some("2026-11-20T10:00:59.000Z".to_owned()),
        attempt: Some(0),
        ip: Some("192.0.2.0".to_owned()),
        ..Record::new(
            1_795_168_800_000_000 + (n as i64) * 1000,
            format!("company-{}", n % 20),
            "web",
            SourceKind::Server,
            "/v1/batch",
            body,
        )
    }
}

/// Returns a batch as it crosses the wire: sequences from `first`, events from number `event_first`.
pub(crate) fn wire_batch(
    epoch: u64,
    first: u64,
    count: u32,
    event_first: u64,
) -> (BatchHeader, Vec<u8>) {
    let mut body = Vec::new();
    for n in event_first..event_first + u64::from(count) {
        event(n).encode_into(&mut body);
    }
    let header = BatchHeader {
        epoch,
        first_sequence: first,
        count,
        codec: Codec::Zstd,
        body_bytes: body.len() as u64,
    };
    let compressed = batch::compress(&body).expect("zstd has memory");
    (header, compressed)
}
