//! What SDKs send and what they hear.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use headwater_protocol::{Cut, Record};
use headwater_service::clock::SystemClock;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::collector::{Collector, Manner, Tables};
use crate::harness::{
    Agent, BASIC, Response, Site, batch, event, nobody, post, request, until_async,
};

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn every_client_form_is_answered_as_it_expects() {
    let site = Site::new();
    let agent = Agent::start(site.config(nobody())).await;
    let one = batch(["a"], 0);
    let single = r#"{"event":"E","userId":"u","messageId":"m"}"#;
    let body_key = r#"{"writeKey":"key-1","batch":[{"type":"track","event":"E","userId":"u"}]}"#;
    let single_body_key = r#"{"writeKey":"key-2","event":"E","anonymousId":"u"}"#;
    const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
    const PLAIN: (&str, &str) = ("content-type", "text/plain");
    const ENCODING: (&str, &str) = ("content-encoding", "gzip");
    const WRONG: (&str, &str) = ("authorization", "Basic bm9wZTo=");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Vec<u8>, u16);
    let cases: Vec<Case<'_>> = vec![
        ("/v1/batch", &[BASIC], one.clone().into(), 200),
        (
            "/v1/batch",
            &[("authorization", "Bearer key-1")],
            one.clone().into(),
            200,
        ),
        (
            "/v1/batch",
            &[("x-write-key", "key-1")],
            one.clone().into(),
            200,
        ),
        ("/v1/batch", &[PLAIN], body_key.into(), 200),
        ("/v1/batch", &[BASIC, FORM, ENCODING], gzip(&one), 200),
        ("/v1/import/", &[BASIC, FORM], gzip(&one), 200),
        ("/batch/", &[], gzip(body_key), 200),
        ("/v1/b", &[BASIC, PLAIN], one.clone().into(), 200),
        ("/v1/batch", &[BASIC], event("lone", 0).into(), 200),
        ("/v1/batch", &[BASIC], r#"{"batch":[]}"#.into(), 200),
        ("/v1/track", &[BASIC], single.into(), 200),
        ("/v1/t", &[PLAIN], single_body_key.into(), 200),
        (
            "/v1/alias",
            &[BASIC],
            r#"{"userId":"u","previousId":"v"}"#.into(),
            200,
        ),
        (
            "/api/s/s2s/track",
            &[("x-write-key", "key-1")],
            single.into(),
            200,
        ),
        ("/v1/batch", &[WRONG], one.clone().into(), 401),
        ("/v1/batch", &[], one.clone().into(), 401),
        (
            "/v1/track",
            &[],
            r#"{"writeKey":"nope","event":"E","userId":"u"}"#.into(),
            401,
        ),
        ("/v1/batch", &[BASIC], "{".into(), 400),
        ("/v1/batch", &[], "not json".into(), 400),
        ("/v1/batch", &[BASIC], r#"{"batch":7}"#.into(), 400),
        ("/v1/batch", &[BASIC], r#"{"events":[]}"#.into(), 400),
        (
            "/v1/batch",
            &[BASIC, ENCODING],
            gzip(&one)[..20].to_vec(),
            400,
        ),
        ("/v1/batch", &[BASIC], vec![b' '; (4 << 20) + 1], 413),
        (
            "/v1/batch",
            &[BASIC],
            gzip(&" ".repeat((20 << 20) + 1)),
            413,
        ),
        ("/v1/nothing", &[BASIC], one.clone().into(), 404),
    ];
    for (path, headers, body, expected) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let answer = request(agent.address, "POST", path, headers, &body)
            .await
            .unwrap();
        assert_eq!(
            answer.status, expected,
            "{path} {headers:?} {shown}: {answer:?}"
        );
        assert_eq!(answer.json()["success"], expected == 200);
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(
            answer.header("access-control-expose-headers"),
            Some("retry-after")
        );
    }
    assert_eq!(
        request(agent.address, "GET", "/v1/batch", &[], b"")
            .await
            .unwrap()
            .status,
        405
    );
    agent.stop().await;
}

/// A request to `/v1/events` with the key of company `acme`.
async fn post_events_as(agent: &Agent, content_type: &str, body: &[u8]) -> Response {
    let headers = [BASIC, ("content-type", content_type)];
    let answer = request(agent.address, "POST", "/v1/events", &headers, body).await;
    answer.unwrap()
}

/// The form of the request goes with each event where it is not plain JSON, and costs nothing else.
#[tokio::test]
async fn what_is_no_plain_json_says_so_in_its_record() {
    let site = Site::new();
    let tables = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(site.config(collector.address)).await;
    const PLAIN: (&str, &str) = ("content-type", "application/json; charset=utf-8");
    const TEXT: (&str, &str) = ("content-type", "text/plain");
    const GZIP: (&str, &str) = ("content-encoding", "gzip");
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], [Option<&'a str>; 2]);
    let cases: [Case<'_>; 4] = [
        ("json", &[PLAIN], [None, None]),
        ("silent", &[], [None, None]),
        ("text", &[TEXT], [Some("text/plain"), None]),
        ("packed", &[PLAIN, GZIP], [None, Some("gzip")]),
    ];
    for (id, form, _) in &cases {
        let body = batch([*id], 0);
        let body = if form.contains(&GZIP) {
            gzip(&body)
        } else {
            body.into()
        };
        let headers = [&[BASIC], *form].concat();
        let answer = request(agent.address, "POST", "/v1/batch", &headers, &body).await;
        assert_eq!(answer.unwrap().status, 200, "{id}");
    }
    agent.until_drained().await;
    agent.stop().await;
    let tables = tables.lock();
    let records: Vec<_> = tables.records().collect();
    assert_eq!(records.len(), cases.len());
    for ((id, _, expected), record) in cases.iter().zip(&records) {
        let found = [record.content_type.as_deref(), record.encoding.as_deref()];
        assert_eq!(found, *expected, "{id}");
    }
    // Eleven fields, as before there were more.
    for record in &records[..2] {
        assert_eq!(record.encode()[0], 0x9b);
    }
}

#[tokio::test]
async fn what_is_cut_arrives_with_the_length_that_it_had() {
    let site = Site::new();
    let tables = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(site.config(collector.address)).await;
    let large = event("large", 1 << 20);
    let body = format!(r#"{{"batch":[{},{large}]}}"#, event("whole", 0));
    assert_eq!(post(agent.address, "/v1/batch", &body).await.status, 200);
    let unreadable = "[".repeat(100_000);
    let answer = post(agent.address, "/v1/batch", &unreadable).await;
    assert_eq!(answer.status, 400);
    agent.until_drained().await;
    agent.stop().await;
    let tables = tables.lock();
    let cuts: Vec<_> = tables.records().map(|it| (it.body.len(), it.cut)).collect();
    let cut = |sent: usize, allowed_bytes| {
        let sent_bytes = sent as u64;
        let cut = Cut {
            sent_bytes,
            allowed_bytes,
        };
        (65_536, Some(cut))
    };
    let whole = (event("whole", 0).len(), None);
    let expected = [whole, cut(large.len(), Some(1 << 20)), cut(100_000, None)];
    assert_eq!(cuts, expected);
}

#[tokio::test]
async fn plain_events_come_in_every_form_and_keep_their_bytes() {
    let site = Site::new();
    let tables = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let mut config = site.config(collector.address);
    // The same events come in several forms, and each form is to be seen.
    config.dedup.ids_max = 0;
    let agent = Agent::start(config).await;
    let lines = format!(
        "{}\r\n\n  {} \nno json\n",
        event("line-1", 0),
        event("line-2", 0)
    );
    let array = format!("[{}, {},7]", event("item-1", 0), event("item-2", 0));
    let pretty = "{\n  \"type\": \"track\",\n  \"event\": \"E\",\n  \"userId\": \"u\"\n}\n";
    let packed: &[u8] = b"\x92\x83\xa4type\xa8identify\xa6userId\xa1u\xa9messageId\xa6pack-1\x07";
    const JSON: &str = "application/json";
    const PACKED: &str = "application/msgpack";
    for (content_type, body, accepted, rejected) in [
        ("application/x-ndjson", lines.as_bytes(), 2, &[2][..]),
        ("text/plain", lines.as_bytes(), 2, &[2]),
        (JSON, array.as_bytes(), 2, &[2]),
        (JSON, pretty.as_bytes(), 1, &[]),
        (JSON, b"[]", 0, &[]),
        (JSON, b"", 0, &[]),
        (PACKED, packed, 1, &[1]),
        ("application/x-msgpack; charset=binary", b"\x90", 0, &[]),
    ] {
        let answer = post_events_as(&agent, content_type, body).await;
        let shown = String::from_utf8_lossy(body);
        assert_eq!(answer.status, 200, "{content_type} {shown}: {answer:?}");
        let json = answer.json();
        let refused: Vec<_> = json["rejected"].as_array().unwrap().clone();
        let refused: Vec<u64> = refused
            .iter()
            .map(|it| it["index"].as_u64().unwrap())
            .collect();
        assert_eq!(json["accepted"], accepted, "{content_type} {shown}");
        assert_eq!(refused, rejected, "{content_type} {shown}");
    }
    agent.until_drained().await;
    let records: Vec<Record> = tables.lock().events.values().flatten().cloned().collect();
    let bodies: Vec<String> = records
        .into_iter()
        .map(|record| String::from_utf8(record.body.into_vec()).unwrap())
        .collect();
    let mut expected = Vec::new();
    for _ in 0..2 {
        expected.extend([event("line-1", 0), event("line-2", 0), "no json".to_owned()]);
    }
    expected.extend([event("item-1", 0), event("item-2", 0), "7".to_owned()]);
    expected.push(pretty.trim().to_owned());
    expected.push(r#"{"type":"identify","userId":"u","messageId":"pack-1"}"#.to_owned());
    expected.push("7".to_owned());
    assert_eq!(bodies, expected);
    agent.stop().await;
    collector.stop().await;
}

#[tokio::test]
async fn plain_events_that_nobody_can_read_are_refused_as_a_whole() {
    let site = Site::new();
    let mut config = site.config(nobody());
    config.http.request_events_max = 2;
    let agent = Agent::start(config).await;
    const JSON: &str = "application/json";
    const PACKED: &str = "application/vnd.msgpack";
    for (content_type, body, status, code) in [
        (JSON, &b"hello\nworld"[..], 400, "unreadable"),
        (JSON, b"[{},", 400, "unreadable"),
        (JSON, b"[1,2,3]", 413, "too_many_events"),
        (JSON, b"1\n2\n3", 413, "too_many_events"),
        ("application/x-ndjson", b"no\nnor this", 400, "unreadable"),
        (PACKED, b"", 400, "unreadable"),
        (PACKED, b"\xc1", 400, "unreadable"),
        (PACKED, b"\x92\x80", 400, "unreadable"),
        (PACKED, b"\x93\x80\x80\x80", 413, "too_many_events"),
    ] {
        let answer = post_events_as(&agent, content_type, body).await;
        let shown = String::from_utf8_lossy(body);
        assert_eq!(answer.status, status, "{content_type} {shown}: {answer:?}");
        assert_eq!(answer.json()["code"], code, "{content_type} {shown}");
    }
    let nobody = request(agent.address, "POST", "/v1/events", &[], b"{}").await;
    assert_eq!(nobody.unwrap().status, 401);
    let batch = post(agent.address, "/v1/batch", r#"{"batch":[1,2,3]}"#).await;
    assert_eq!(batch.status, 413);
    agent.stop().await;
}

#[tokio::test]
async fn posthog_v0_brings_its_key_in_the_body() {
    let site = Site::new();
    let agent = Agent::start(site.config(nobody())).await;
    let body = r#"{"api_key":"key-1","sent_at":"2026-01-01T00:00:00+00:00","batch":[
        {"event":"E","distinct_id":"u","uuid":"id-1","timestamp":"2026-01-01T00:00:00+00:00","properties":{}},
        {"distinct_id":"u","uuid":"id-2","properties":{}}]}"#;
    let answer = request(agent.address, "POST", "/batch/", &[], body.as_bytes()).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status, 200);
    let expected = serde_json::json!({
        "success": true, "accepted": 1, "duplicates": 0, "suppressed": 0, "rejected": [
            {"index": 1, "messageId": "id-2", "code": "schema_violation", "path": "$.event"},
        ]
    });
    assert_eq!(answer.json(), expected);
    agent.stop().await;
}

#[tokio::test]
async fn posthog_v1_hears_of_each_event_by_its_uuid() {
    let site = Site::new();
    let tables = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let agent = Agent::start(site.config(collector.address)).await;
    const PATH: &str = "/i/v1/analytics/events";
    const BEARER: (&str, &str) = ("authorization", "Bearer key-1");
    let headers = [
        BEARER,
        ("posthog-attempt", "2"),
        ("posthog-request-timestamp", "2026-01-02T00:00:00Z"),
    ];
    let body = r#"{"created_at":"2026-01-01T00:00:00Z","batch":[
        {"event":"E","distinct_id":"u","uuid":"id-1","timestamp":"2026-01-01T00:00:00Z","options":{},"properties":{}},
        {"event":"E","distinct_id":"u","uuid":"id-2","timestamp":"soon","options":{},"properties":{}},
        {"event":"E","distinct_id":"u","options":{},"properties":{}}]}"#;
    let answer = request(agent.address, "POST", PATH, &headers, body.as_bytes()).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status, 200);
    let expected = serde_json::json!({"results": {
        "id-1": {"result": "ok"},
        "id-2": {"result": "drop", "details": "time_invalid"},
    }});
    assert_eq!(answer.json(), expected);
    agent.until_drained().await;
    let records: Vec<Record> = tables.lock().events.values().flatten().cloned().collect();
    assert_eq!(records.len(), 3);
    for record in records {
        assert_eq!(record.attempt, Some(1), "one attempt went before");
        assert_eq!(record.sent_at.as_deref(), Some("2026-01-02T00:00:00Z"));
    }
    for (headers, body, status) in [
        (&[BEARER][..], "{", 400),
        (&[BEARER], r#"{"batch":7}"#, 400),
        (&[], r#"{"batch":[]}"#, 401),
        (&[BEARER], r#"{"batch":[]}"#, 200),
    ] {
        let answer = request(agent.address, "POST", PATH, headers, body.as_bytes()).await;
        assert_eq!(answer.unwrap().status, status, "{body}");
    }
    agent.stop().await;
    collector.stop().await;
}

#[tokio::test]
async fn clients_of_this_machine_come_through_the_socket() {
    let site = Site::new();
    let tables = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let mut config = site.config(collector.address);
    config.http.socket = site.path("agent.sock");
    let agent = Agent::start(config.clone()).await;
    let body = event("through-the-socket", 0);
    let mut stream = UnixStream::connect(&config.http.socket).await.unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: agent\r\nconnection: close\r\nx-write-key: key-1\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    // Beside the port, not in its place.
    let answer = post(agent.address, "/v1/batch", &batch(["through-the-port"], 0)).await;
    assert_eq!(answer.status, 200);
    agent.until_drained().await;
    let records: Vec<Record> = tables.lock().events.values().flatten().cloned().collect();
    let ips: Vec<Option<&str>> = records.iter().map(|record| record.ip.as_deref()).collect();
    assert_eq!(ips, [None, Some("127.0.0.0")], "a socket has no address");

    // A second agent is refused, with the file's name, and the first goes on.
    let mut second = site.config(collector.address);
    second.http.socket = config.http.socket.clone();
    second.buffer.directory = site.path("buffer-2");
    let refused = headwater_agent::start(second, SystemClock::shared(), CancellationToken::new());
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.contains("agent.sock"), "{refused}");
    assert!(UnixStream::connect(&config.http.socket).await.is_ok());
    agent.stop().await;
    assert!(!config.http.socket.exists(), "a stop removes the file");
    collector.stop().await;
}

#[tokio::test]
async fn what_clients_ask_beside_events_gets_a_harmless_answer() {
    let site = Site::new();
    let agent = Agent::start(site.config(nobody())).await;
    let body = br#"{"api_key":"key-1","distinct_id":"u"}"#;
    let answer = request(agent.address, "POST", "/flags/?v=2", &[], body).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status, 200);
    let expected = serde_json::json!({
        "flags": {}, "featureFlags": {}, "featureFlagPayloads": {},
        "errorsWhileComputingFlags": false,
    });
    assert_eq!(answer.json(), expected);
    let answer = request(agent.address, "POST", "/v1/m", &[], br#"{"series":[]}"#).await;
    assert_eq!(answer.unwrap().body, r#"{"success":true}"#);
    agent.stop().await;
}

#[tokio::test]
async fn one_bad_event_never_fails_its_batch() {
    let site = Site::new();
    let agent = Agent::start(site.config(nobody())).await;
    let body = format!(
        r#"{{"batch":[{},{{"type":"track","event":"E","messageId":"b"}},7,{}]}}"#,
        event("a", 0),
        event("big", 1 << 20)
    );
    let answer = post(agent.address, "/v1/batch", &body).await;
    assert_eq!(answer.status, 200);
    let expected = serde_json::json!({
        "success": true, "accepted": 1, "duplicates": 0, "suppressed": 0, "rejected": [
            {"index": 1, "messageId": "b", "code": "identity_missing", "path": "$.userId"},
            {"index": 2, "messageId": null, "code": "payload_format", "path": "$"},
            {"index": 3, "messageId": "big", "code": "event_too_large", "path": "$"},
        ]
    });
    assert_eq!(answer.json(), expected);
    // All four have a place: the collector quarantines the bad ones.
    assert_eq!(agent.running.buffered(), 4);
    let unreadable = post(agent.address, "/v1/batch", "{\"batch\":[").await;
    assert_eq!(unreadable.status, 400);
    assert_eq!(
        agent.running.buffered(),
        5,
        "its bytes are kept for quarantine"
    );
    agent.stop().await;
}

/// A batch of `count` events of about 100 kB, with ids `prefix-0..`.
fn megabytes(prefix: &str, count: u64) -> String {
    let ids: Vec<String> = (0..count).map(|it| format!("{prefix}-{it}")).collect();
    batch(ids.iter().map(String::as_str), 100_000)
}

#[tokio::test]
async fn a_request_that_can_never_fit_hears_so_and_the_largest_other_fits_after_a_drain() {
    let site = Site::new();
    let tables: Arc<Mutex<Tables>> = Arc::default();
    let collector = Collector::start(&site, &tables, Manner::Prompt).await;
    let away = collector.address;
    collector.stop().await;
    let mut config = site.config(away);
    config.buffer.disk_bytes_max = 24 << 20;
    config.dedup.ids_max = 1000;
    config.http.body_bytes_max = 16 << 20;
    let (bytes_max, _) = config.request_bytes_max();
    let agent = Agent::start(config).await;
    // An event has less than a kilobyte around its padding.
    let too_many = bytes_max / 100_000 + 1;
    let fitting = bytes_max / 101_000;
    let answer = post(agent.address, "/v1/batch", &megabytes("never", too_many)).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert_eq!(answer.json()["code"], "too_large");
    assert!(
        answer.body.contains("`buffer.disk_bytes_max`"),
        "{answer:?}"
    );
    assert_eq!(answer.header("retry-after"), None);
    // A full buffer is another matter: its answer is to come back.
    let mut filled = 0;
    let refusal = loop {
        let body = megabytes(&format!("fill-{filled}"), fitting / 2);
        let answer = post(agent.address, "/v1/batch", &body).await;
        if answer.status != 200 {
            break answer;
        }
        filled += 1;
    };
    assert_eq!(
        (refusal.status, filled >= 2),
        (503, true),
        "{filled} {refusal:?}"
    );
    let body = megabytes("largest", fitting);
    assert_eq!(post(agent.address, "/v1/batch", &body).await.status, 503);
    let collector = Collector::start_at(&site, away, &tables, Manner::Prompt).await;
    agent.until_drained().await;
    until_async("the largest request fits", async || {
        post(agent.address, "/v1/batch", &body).await.status == 200
    })
    .await;
    agent.until_drained().await;
    agent.stop().await;
    collector.stop().await;
    let stored = tables.lock().message_ids().len() as u64;
    assert_eq!(stored, filled * (fitting / 2) + fitting);
}

#[tokio::test]
async fn small_events_that_outgrow_the_queue_hear_so() {
    let site = Site::new();
    let mut config = site.config(nobody());
    config.http.body_bytes_max = 64 << 10;
    config.http.inflated_bytes_max = 64 << 10;
    config.buffer.queue_bytes_max = 128 << 10;
    let agent = Agent::start(config).await;
    let body = format!(r#"{{"batch":[1{}]}}"#, ",1".repeat(9999));
    let answer = post(agent.address, "/v1/batch", &body).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(
        answer.body.contains("`buffer.queue_bytes_max`"),
        "{answer:?}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn what_a_batch_says_once_is_not_multiplied_by_its_events() {
    let site = Site::new();
    let agent = Agent::start(site.config(nobody())).await;
    let long = "x".repeat(100_000);
    let body = format!(r#"{{"sentAt":"{long}","batch":[1{}]}}"#, ",1".repeat(1999));
    let answer = post(agent.address, "/v1/batch", &body).await;
    assert_eq!(answer.status, 200, "200 MB of copies: {}", answer.body);
    assert_eq!(agent.running.buffered(), 2000);
    agent.stop().await;
}

#[tokio::test]
async fn browsers_may_ask_first() {
    let site = Site::new();
    let agent = Agent::start(site.config(nobody())).await;
    let answer = request(agent.address, "OPTIONS", "/v1/t", &[], b"")
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .header("access-control-allow-headers")
            .unwrap()
            .contains("authorization")
    );
    agent.stop().await;
}

#[tokio::test]
async fn readiness_and_metrics_tell_the_truth() {
    let site = Site::new();
    let mut config = site.config(nobody());
    config.admin.unacknowledged_age_max_s = 0;
    let agent = Agent::start(config).await;
    let admin = agent.running.admin_address;
    let ready = || async {
        request(admin, "GET", "/readyz", &[], b"")
            .await
            .unwrap()
            .status
    };
    assert_eq!(ready().await, 200, "nothing waits");
    assert_eq!(
        request(admin, "GET", "/healthz", &[], b"")
            .await
            .unwrap()
            .status,
        200
    );
    post(agent.address, "/v1/batch", &batch(["a"], 0)).await;
    until_async("an event waits", async || ready().await == 503).await;
    let metrics = request(admin, "GET", "/metrics", &[], b"")
        .await
        .unwrap()
        .body;
    for name in [
        headwater_agent::metrics::EVENTS_RECEIVED,
        headwater_agent::metrics::REQUESTS,
    ] {
        assert!(metrics.contains(name), "{name} is missing");
    }
    agent.stop().await;
}

#[tokio::test]
async fn a_company_above_its_rate_waits_and_no_other_does() {
    let site = Site::new();
    let mut config = site.config(nobody());
    config.company.events_per_s = 1;
    config.company.burst_s = 10;
    let agent = Agent::start(config).await;
    let ids: Vec<String> = (0..1_000).map(|n| format!("e-{n}")).collect();
    let send = async |key, range: Range<usize>| {
        let body = batch(ids[range].iter().map(String::as_str), 0);
        let headers = [("x-write-key", key)];
        let answer = request(
            agent.address,
            "POST",
            "/v1/batch",
            &headers,
            body.as_bytes(),
        );
        answer.await.unwrap()
    };
    // Within the burst a request is taken whole, however large.
    assert_eq!(send("key-1", 0..900).await.status, 200);
    let refused = send("key-1", 900..920).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.json()["code"], "company_busy");
    let wait: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert_eq!(wait, 300, "it would be 890 s, which no SDK waits");
    assert_eq!(send("key-2", 900..920).await.status, 200);
    assert_eq!(send("key-1", 920..940).await.status, 429);
}
