//! Metrics #1 to #20 of conversations that were worked out by hand.

use crate::world::{Ev, World};

const NIGHT: &str = "2026-11-19";

fn at(name: &str, clock: &str) -> Ev {
    Ev::new(name, &format!("2026-11-19T{clock}Z"))
}

fn assigned(clock: &str, by: &str, to_type: &str, to: &str) -> Ev {
    at("Conversation Assigned", clock)
        .by("admin", by)
        .with(&format!(
            r#"{{"assigned_to_type":"{to_type}","assigned_to_id":"{to}"}}"#
        ))
}

fn contact(clock: &str) -> Ev {
    at("Conversation Replied", clock).by("contact_user", "u1")
}

fn admin(clock: &str, id: &str) -> Ev {
    at("Conversation Replied", clock)
        .by("admin", id)
        .with(r#"{"is_visible":true}"#)
}

/// The conversation of the tests below, in order:
///
/// ```text
/// 09:00:00 started by a contact                   CR
/// 09:01:00 assigned to a team
/// 09:02:00 assigned to admin a1 (no text)         last assignment before the first response
/// 09:02:30 AI answers in an admin's name           is no response
/// 09:03:00 note by a1                              is no response
/// 09:05:30 a1 replies                             first response; 330 s after CR
/// 09:06:00 contact   09:08:00 contact
/// 09:10:00 a1 replies                             120 s after the last message
/// 09:20:00 snoozed   09:50:00 unsnoozed
/// 10:00:00 closed by a1
/// 11:00:00 contact   11:00:01 reopened by the contact
/// 11:00:31 a1 replies                             31 s after the message
/// 11:05:00 paused    11:06:00 resumed
/// 11:10:00 assigned to a team  11:12:00 assigned to a2
/// 11:20:00.5 closed by a bot
/// 11:30:00 rated 5
/// ```
fn long_conversation() -> Vec<Ev> {
    let events = vec![
        at("Conversation Started", "09:00:00")
            .by("contact_user", "u1")
            .with(r#"{"initiated_type":"customer_initiated"}"#),
        assigned("09:01:00", "a9", "team", "t1"),
        assigned("09:02:00", "a9", "admin", "a1"),
        admin("09:02:30", "a1").with(r#"{"is_ai_answer":true}"#),
        at("Conversation Noted", "09:03:00").by("admin", "a1"),
        admin("09:05:30", "a1"),
        contact("09:06:00"),
        contact("09:08:00"),
        admin("09:10:00", "a1"),
        at("Conversation Snoozed", "09:20:00").by("admin", "a1"),
        at("Conversation Unsnoozed", "09:50:00").by("system", "s"),
        at("Conversation Closed", "10:00:00").by("admin", "a1"),
        contact("11:00:00"),
        at("Conversation Reopened", "11:00:01").by("contact_user", "u1"),
        admin("11:00:31", "a1"),
        at("Handling Paused", "11:05:00").by("admin", "a1"),
        at("Handling Resumed", "11:06:00").by("admin", "a1"),
        assigned("11:10:00", "a1", "team", "t2"),
        assigned("11:12:00", "a1", "admin", "a2"),
        at("Conversation Closed", "11:20:00.5").by("bot", "b"),
        at("Conversation Rated", "11:30:00")
            .by("contact_user", "u1")
            .rating(5),
    ];
    events.into_iter().map(|event| event.of("long")).collect()
}

/// Returns one row of `reports.conversation` as `column=value` lines that are not null.
async fn expect(world: &World, conversation: &str, expected: &[(&str, &str)]) {
    let columns: Vec<&str> = expected.iter().map(|(column, _)| *column).collect();
    let sql = format!(
        "SELECT {} FROM reports.conversation WHERE conversation_id = '{conversation}'",
        columns.join(", ")
    );
    let rows = world.query(&sql).await;
    assert_eq!(rows.len(), 1, "{conversation}");
    let values: Vec<&str> = rows[0].split('|').collect();
    let seen: Vec<(&str, &str)> = columns.into_iter().zip(values).collect();
    assert_eq!(seen, expected, "{conversation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_of_a_conversation_equal_those_worked_out_by_hand() {
    let world = World::new().await;
    world.events(&long_conversation()).await;
    world.night(NIGHT).await;
    expect(
        &world,
        "long",
        &[
            ("first_contact_reply_at", "2026-11-19T09:00:00Z"),
            ("first_admin_response_at", "2026-11-19T09:05:30Z"),
            ("time_to_first_response_minutes", "5.50"),
            ("time_to_admin_reply_s", "330"),
            ("time_to_first_assignment_minutes", "1.00"),
            ("time_to_last_assignment_minutes", "132.00"),
            ("time_to_assignment_s", "120"),
            ("time_to_first_close_minutes", "60.00"),
            // 2 h 20 min 0.5 s, in whole seconds.
            ("time_to_last_close_minutes", "140.00"),
            ("time_to_admin_first_close_minutes", "60.00"),
            ("time_to_admin_last_close_minutes", "60.00"),
            // 330, 120 and 31 seconds.
            ("median_time_to_reply_s", "120.0"),
            ("replies_measured", "3"),
            ("count_reopens", "1"),
            ("count_reopens_after_cr", "1"),
            ("count_assignments", "4"),
            // 7 replies, 4 assignments, 1 note, snoozed, unsnoozed, 2 closed, 1 reopened.
            ("count_total_parts", "17"),
            // 09:02:00-09:20:00, 09:50:00-10:00:00, 11:00:01-11:10:00, 11:12:00-11:20:00.5
            // = 1080 + 600 + 599 + 480.5 s.
            ("handling_time_s", "2759"),
            ("adjusted_handling_time_s", "2699"),
            ("is_first_contact_resolution", "false"),
            ("waiting_since", ""),
            ("sla_status", ""),
            ("state", "closed"),
            ("assignee_type", "admin"),
            ("assignee_id", "a2"),
            ("initiated_type", "customer_initiated"),
            ("conversation_rating", "5"),
        ],
    )
    .await;
}

fn sla(clock: &str, what: &str) -> Ev {
    at(&format!("SLA {what}"), clock).by("system", "s")
}

#[tokio::test(flavor = "multi_thread")]
async fn edge_cases_of_metrics_equal_those_worked_out_by_hand() {
    let world = World::new().await;
    let of = |conversation: &str, events: Vec<Ev>| -> Vec<Ev> {
        events
            .into_iter()
            .map(|event| event.of(conversation))
            .collect()
    };
    let started = || at("Conversation Started", "09:00:00").by("contact_user", "u1");
    let mut events = Vec::new();
    // Resolved at first contact; an even number of replies: the median lies between 60 and 91 s.
    events.extend(of(
        "fcr",
        vec![
            started(),
            admin("09:01:00", "a1"),
            contact("09:02:00"),
            admin("09:03:31", "a1"),
            at("Conversation Closed", "09:04:00").by("admin", "a1"),
            sla("09:00:00", "Applied"),
            sla("09:01:00", "Hit"),
        ],
    ));
    // An admin begins; nobody answers.
    events.extend(of(
        "outbound",
        vec![
            at("Conversation Started", "09:00:00").by("admin", "a1"),
            admin("09:05:00", "a1"),
        ],
    ));
    // An admin begins, the contact answers, and an assignment with a text is the response.
    events.extend(of(
        "answered",
        vec![
            at("Conversation Started", "09:00:00").by("admin", "a1"),
            contact("09:10:00"),
            assigned("09:12:00", "a1", "admin", "a2")
                .with(r#"{"assigned_to_type":"admin","assigned_to_id":"a2","body_length":12}"#),
            sla("09:00:00", "Applied"),
            sla("09:12:00", "Missed"),
        ],
    ));
    // The contact waits.
    events.extend(of(
        "waiting",
        vec![
            started(),
            admin("09:01:00", "a1"),
            contact("09:02:00"),
            contact("09:04:00"),
            sla("09:00:00", "Applied"),
        ],
    ));
    // Two teammates answered; missed, but cancelled.
    events.extend(of(
        "two",
        vec![
            started(),
            admin("09:01:00", "a1"),
            admin("09:02:00", "a2"),
            at("Conversation Closed", "09:04:00").by("admin", "a1"),
            sla("09:00:00", "Applied"),
            sla("09:03:00", "Missed"),
            sla("09:03:30", "Cancelled"),
        ],
    ));
    // Internal: the only reply cannot be read by the contact.
    events.extend(of(
        "internal",
        vec![
            started(),
            admin("09:01:00", "a1").with(r#"{"is_visible":false}"#),
        ],
    ));
    world.events(&events).await;
    world.night(NIGHT).await;
    expect(
        &world,
        "fcr",
        &[
            ("median_time_to_reply_s", "75.5"),
            ("is_first_contact_resolution", "true"),
            ("sla_status", "hit"),
            ("handling_time_s", "0"),
            ("waiting_since", ""),
        ],
    )
    .await;
    expect(
        &world,
        "outbound",
        &[
            ("first_contact_reply_at", ""),
            ("first_admin_response_at", ""),
            ("time_to_first_response_minutes", ""),
            ("median_time_to_reply_s", ""),
            ("replies_measured", "0"),
            ("handling_time_s", ""),
            ("is_first_contact_resolution", ""),
        ],
    )
    .await;
    expect(
        &world,
        "answered",
        &[
            ("first_admin_response_at", "2026-11-19T09:12:00Z"),
            ("time_to_first_response_minutes", "12.00"),
            ("time_to_admin_reply_s", "120"),
            ("sla_status", "missed"),
            ("waiting_since", "2026-11-19T09:10:00Z"),
        ],
    )
    .await;
    expect(
        &world,
        "waiting",
        &[
            ("waiting_since", "2026-11-19T09:04:00Z"),
            ("sla_status", "active"),
        ],
    )
    .await;
    expect(
        &world,
        "two",
        &[
            ("is_first_contact_resolution", "false"),
            ("sla_status", "cancelled"),
        ],
    )
    .await;
    expect(
        &world,
        "internal",
        &[
            ("first_admin_response_at", ""),
            ("waiting_since", "2026-11-19T09:00:00Z"),
        ],
    )
    .await;
    // #20: five conversations with a message of a customer, of six.
    let rows = world
        .query("SELECT new_conversations, conversations_started, closed_conversations, new_closed_conversations, admin_replies FROM reports.company_day WHERE report_date = DATE '2026-11-19'")
        .await;
    assert_eq!(rows, ["5|6|2|2|6"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_counts_what_happened_on_it() {
    let world = World::new().await;
    let mut events = long_conversation();
    events.extend([
        at("Signed In", "08:00:00").by("admin", "a1"),
        at("Signed In", "08:30:00").by("admin", "a3"),
        Ev::new("Feature Used", "2026-11-15T08:00:00Z").by("admin", "a4"),
        Ev::new("Feature Used", "2026-10-23T08:00:00Z").by("admin", "a5"),
        Ev::new("Feature Used", "2026-10-22T08:00:00Z").by("admin", "a6"),
        at("AI Agent Involved", "09:00:05")
            .of("long")
            .by("ai_agent", "fin"),
        at("AI Agent Resolution Recorded", "11:40:00")
            .of("long")
            .by("system", "s")
            .with(r#"{"resolution_state":"confirmed_resolution"}"#),
        at("Conversation Rating Requested", "11:25:00")
            .of("long")
            .by("system", "s"),
    ]);
    world.events(&events).await;
    world.sql("INSERT INTO conversations VALUES ('long', 'acme', '2026-11-19T09:00:00Z', 'closed', '2026-11-19T11:20:00Z'), ('lost', 'acme', '2026-11-19T09:00:00Z', 'open', '2026-11-19T09:00:00Z')").await;
    world.night(NIGHT).await;
    let rows = world
        .query(
            "SELECT new_conversations, closed_conversations, new_closed_conversations, reopened_conversations, \
             median_first_response_s, ratings, csat_pct, dsat_pct, rating_response_rate_pct, ai_involvement_pct, \
             ai_resolution_pct, ai_automation_pct, admin_logins, active_admins, active_admins_7d, active_admins_28d, \
             oltp_conversations, reconciliation_delta \
             FROM reports.company_day WHERE report_date = DATE '2026-11-19'",
        )
        .await;
    // Active on the day: a1 and a9. In 7 days also a4, in 28 days also a5 (2026-10-23 is the first).
    assert_eq!(
        rows,
        ["1|2|1|1|330.0|1|100.00|0.00|100.00|100.00|100.00|100.00|2|2|3|4|2|1"]
    );
    let rows = world
        .query("SELECT admin_id, replies_sent, conversations_replied_to, closed_conversations, notes, assignments_made, logins, is_active, ratings, csat_pct FROM reports.admin_day WHERE report_date = DATE '2026-11-19' ORDER BY 1")
        .await;
    assert_eq!(
        rows,
        [
            "a1|3|1|1|1|2|1|true|0|",
            "a2|0|0|0|0|0|0|false|1|100.00",
            "a3|0|0|0|0|0|1|false|0|",
            "a9|0|0|0|0|2|0|true|0|",
        ]
    );
}
