//! A visit to a company's web site: pages, the widget, articles. All of it comes from browsers.

use serde_json::json;

use super::draft::Log;
use super::somebody;
use crate::world::time::{MINUTE, Millis, SECOND};

const PAGES: [(&str, &str); 6] = [
    ("/", "Home"),
    ("/pricing", "Pricing"),
    ("/account", "Account"),
    ("/orders", "Orders"),
    ("/help", "Help"),
    ("/status", "Status"),
];

/// Plays a visit that ends without a conversation.
pub(super) fn browse(log: &mut Log<'_>, at: Millis) {
    let contact = somebody(&mut log.chance, log.company);
    let (path, mut at) = land(log, contact, at);
    if log.chance.hit(0.35) {
        at = read_article(log, contact, at);
    }
    if log.chance.hit(0.3) {
        at += log.chance.wait(20 * SECOND);
        open_widget(log, contact, path, at);
        let open_seconds = log.chance.between(3, 240);
        log.browser(
            at + open_seconds * SECOND,
            contact,
            path,
            json!({"type": "track", "event": "Widget Closed", "properties": {"open_seconds": open_seconds}}),
        );
    }
}

/// Plays the visit that leads to a chat at `at`.
pub(super) fn before_chat(log: &mut Log<'_>, contact: usize, at: Millis) {
    let arrived = at - log.chance.wait(2 * MINUTE);
    let (path, _) = land(log, contact, arrived);
    let opened = at - log.chance.between(5, 40) * SECOND;
    open_widget(log, contact, path, opened);
}

fn land(log: &mut Log<'_>, contact: usize, at: Millis) -> (&'static str, Millis) {
    let (path, title) = log.chance.pick(&PAGES);
    let url = format!("https://www.{}.example{path}", log.company.profile.id);
    log.browser(
        at,
        contact,
        path,
        json!({"type": "page", "name": title, "properties": {"path": path, "title": title, "url": url}}),
    );
    let load_ms = log.chance.between(90, 2_600);
    log.browser(
        at + load_ms,
        contact,
        path,
        json!({"type": "track", "event": "Widget Loaded", "properties": {"widget_version": "7.4.1", "load_ms": load_ms}}),
    );
    (path, at + load_ms)
}

fn open_widget(log: &mut Log<'_>, contact: usize, path: &str, at: Millis) {
    log.browser(
        at,
        contact,
        path,
        json!({"type": "track", "event": "Widget Opened", "properties": {}}),
    );
}

fn read_article(log: &mut Log<'_>, contact: usize, at: Millis) -> Millis {
    let article = format!("art_{}", log.chance.between(101, 160));
    let path = format!("/help/{article}");
    let seen = at + log.chance.wait(30 * SECOND);
    let query = log.chance.between(0, 40);
    log.browser(
        seen,
        contact,
        &path,
        json!({"type": "track", "event": "Article Viewed", "properties": {"article_id": article, "search_query_length": query}}),
    );
    if log.chance.hit(0.25) {
        let reaction = ["happy", "neutral", "sad"][log.chance.weighted(&[5.0, 2.0, 2.0])];
        log.browser(
            seen + 50 * SECOND,
            contact,
            &path,
            json!({"type": "track", "event": "Article Reacted", "properties": {"article_id": article, "reaction": reaction}}),
        );
    }
    seen + MINUTE
}
