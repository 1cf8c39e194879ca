//! Who may ask: every path in, and none around.

use arrow_flight::sql::{CommandGetCatalogs, ProstMessageExt as _};
use arrow_flight::{
    Action, BasicAuth, Criteria, Empty, FlightData, FlightDescriptor, HandshakeRequest, Ticket,
};
use futures::{StreamExt as _, stream};
use headwater_service::clock::ManualClock;
use prost::Message as _;
use tonic::{Code, Request};

use crate::harness::{Server, query, status, with_token};

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let text = format!("{user}:{password}");
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(text)
    )
}

fn catalogs_command() -> FlightDescriptor {
    FlightDescriptor::new_cmd(CommandGetCatalogs {}.as_any().encode_to_vec())
}

fn with_header<T>(body: T, value: &str) -> Request<T> {
    let mut request = Request::new(body);
    request
        .metadata_mut()
        .insert("authorization", value.parse().unwrap());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_without_credentials_is_unauthenticated() {
    let server = Server::start().await;
    let mut raw = server.raw().await;
    let descriptor = catalogs_command();
    let action = Action::new("ListActions", "");
    let no_data = || stream::empty::<FlightData>();
    let codes = [
        raw.handshake(stream::iter([HandshakeRequest::default()]))
            .await
            .err(),
        raw.list_flights(Criteria::default()).await.err(),
        raw.get_flight_info(descriptor.clone()).await.err(),
        raw.poll_flight_info(descriptor.clone()).await.err(),
        raw.get_schema(descriptor.clone()).await.err(),
        raw.do_get(Ticket::new(descriptor.cmd)).await.err(),
        raw.do_put(no_data()).await.err(),
        raw.do_exchange(no_data()).await.err(),
        raw.do_action(action).await.err(),
        raw.list_actions(Empty {}).await.err(),
    ];
    for (index, error) in codes.into_iter().enumerate() {
        assert_eq!(error.unwrap().code(), Code::Unauthenticated, "rpc {index}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_of_any_form_are_unauthenticated() {
    let server = Server::start().await;
    let mut raw = server.raw().await;
    for header in [
        basic("demo", "wrong"),
        basic("nobody", "demo"),
        basic("demo", ""),
        "Basic !!!".to_owned(),
        "Basic".to_owned(),
        "Bearer".to_owned(),
        "Bearer forged".to_owned(),
        "Digest x".to_owned(),
        format!("Bearer {}", "x".repeat(20_000)),
        String::new(),
    ] {
        let error = raw
            .list_actions(with_header(Empty {}, &header))
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{header}");
        assert!(!error.message().contains("wrong") || !header.contains("wrong"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_on_any_call_is_answered_with_a_bearer_token() {
    let server = Server::start().await;
    let mut raw = server.raw().await;
    let first = with_header(catalogs_command(), &basic("other", "s3cret:with:colons"));
    let answer = raw.get_flight_info(first).await.unwrap();
    let token = answer
        .metadata()
        .get("authorization")
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    assert!(token.starts_with("Bearer ") && token.len() > 40, "{token}");
    let again = raw
        .get_flight_info(with_header(catalogs_command(), &token))
        .await
        .unwrap();
    assert!(again.metadata().get("authorization").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn handshake_takes_basic_and_bearer_and_the_old_payload() {
    let server = Server::start().await;
    let mut raw = server.raw().await;
    let hello = || stream::iter([HandshakeRequest::default()]);
    let answer = raw
        .handshake(with_header(hello(), &basic("demo", "demo")))
        .await
        .unwrap();
    let token = answer
        .metadata()
        .get("authorization")
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let answer = raw.handshake(with_header(hello(), &token)).await.unwrap();
    assert_eq!(
        answer
            .metadata()
            .get("authorization")
            .unwrap()
            .to_str()
            .unwrap(),
        token
    );

    let auth = BasicAuth {
        username: "demo".to_owned(),
        password: "demo".to_owned(),
    };
    let old = HandshakeRequest {
        protocol_version: 0,
        payload: auth.encode_to_vec().into(),
    };
    let answer = raw.handshake(stream::iter([old])).await.unwrap();
    let payload = answer.into_inner().next().await.unwrap().unwrap().payload;
    let token = format!("Bearer {}", String::from_utf8(payload.to_vec()).unwrap());
    raw.list_actions(with_header(Empty {}, &token))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn token_ends_when_it_is_unused_too_long_or_the_session_is_closed() {
    let clock = ManualClock::at(0);
    let server = Server::start_with(|limits| limits.session_ttl_ms = 1000, clock.clone()).await;
    let mut client = server.client().await;
    clock.set(900_000);
    query(&mut client, "SELECT 1").await.unwrap();
    clock.set(1_800_000);
    query(&mut client, "SELECT 1").await.unwrap();
    clock.set(3_000_000);
    let error = status(query(&mut client, "SELECT 1").await.unwrap_err());
    assert_eq!(error.code(), Code::Unauthenticated);

    let mut client = server.client().await;
    let close = with_token(&client, Action::new("CloseSession", ""));
    server.raw().await.do_action(close).await.unwrap();
    let error = status(query(&mut client, "SELECT 1").await.unwrap_err());
    assert_eq!(error.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_up_to_64_kb_are_accepted() {
    let server = Server::start().await;
    let client = server.client().await;
    let mut request = with_token(&client, Empty {});
    request
        .metadata_mut()
        .insert("tenant", "x".repeat(50_000).parse().unwrap());
    server.raw().await.list_actions(request).await.unwrap();
}
