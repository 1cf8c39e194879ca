//! What SDKs send and what they hear.

use std::io::Write;

use crate::harness::{Agent, BASIC, Site, batch, event, nobody, post, request};

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
        "success": true, "accepted": 1, "duplicates": 0, "rejected": [
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
    while ready().await != 503 {
        tokio::task::yield_now().await;
    }
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

#[test]
fn example_configuration_is_valid_and_holds_the_defaults() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config/agent.toml");
    let text = std::fs::read_to_string(path).unwrap();
    let path = std::path::Path::new(path);
    let example: headwater_agent::Config =
        headwater_service::config::load_with(Some(path), std::iter::empty()).unwrap();
    example.validate().unwrap();
    let defaults = headwater_agent::Config::new(example.tls.clone(), example.write_keys.clone());
    assert_eq!(format!("{example:?}"), format!("{defaults:?}"));
    // Every key of every section is shown.
    for (section, keys) in debug_keys(&format!("{defaults:#?}")) {
        for key in keys {
            assert!(
                text.contains(&format!("\n{key} = ")),
                "`{section}.{key}` is not shown"
            );
        }
    }
}

/// Returns the field names of a pretty debug text by struct.
fn debug_keys(text: &str) -> Vec<(String, Vec<String>)> {
    let mut out: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        let depth = line.len() - line.trim_start().len();
        let Some((name, value)) = line.trim().split_once(": ") else {
            continue;
        };
        match depth {
            4 if value.ends_with('{') => out.push((name.to_owned(), Vec::new())),
            8 => out.last_mut().unwrap().1.push(name.to_owned()),
            _ => {}
        }
    }
    out
}

#[test]
fn documentation_lists_every_metric() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/agent.md");
    let text = std::fs::read_to_string(path).unwrap();
    for (name, _, _) in headwater_agent::metrics::ALL {
        assert!(
            text.contains(&format!("| `{name}` |")),
            "`{name}` is missing in docs/agent.md"
        );
    }
}
