//! The plan that is compiled in, so that a new installation has one without any file.
//!
//! Not on an event's path. Promise: it is `deploy/plan/` whole; a test compares the two.

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        &[$((
            concat!($name, ".json"),
            include_str!(concat!("../../../deploy/plan/", $name, ".json")),
        )),+]
    };
}

/// Names and texts of the files.
pub(super) const FILES: &[(&str, &str)] = files![
    "account_added_user",
    "account_created",
    "account_removed_user",
    "ai_agent_answered",
    "ai_agent_involved",
    "ai_agent_resolution_recorded",
    "article_reacted",
    "article_viewed",
    "availability_changed",
    "call_ended",
    "call_started",
    "contact_merged",
    "conversation_assigned",
    "conversation_closed",
    "conversation_merged",
    "conversation_noted",
    "conversation_priority_changed",
    "conversation_rated",
    "conversation_rating_requested",
    "conversation_reopened",
    "conversation_replied",
    "conversation_snoozed",
    "conversation_started",
    "conversation_tagged",
    "conversation_unassigned",
    "conversation_unsnoozed",
    "conversation_untagged",
    "feature_used",
    "handling_paused",
    "handling_resumed",
    "integration_installed",
    "integration_removed",
    "invite_sent",
    "lead_converted",
    "lead_created",
    "plan",
    "plan_changed",
    "query_run",
    "report_viewed",
    "seat_changed",
    "sign_in_failed",
    "signed_in",
    "signed_out",
    "sla_applied",
    "sla_cancelled",
    "sla_hit",
    "sla_missed",
    "subscription_cancelled",
    "ticket_closed",
    "ticket_created",
    "ticket_state_changed",
    "trial_ended",
    "trial_started",
    "widget_closed",
    "widget_loaded",
    "widget_opened",
];
