//! The tracking plan, version 1: canonical event names and who can cause them.
//!
//! Place on the path: staging looks names up here. Promise: a name written in another case or with
//! other separators (`conversation_started`, `Conversation started`) becomes the canonical one; a
//! name outside the plan stays as it is.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Who an event is about, the `actor_type` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// A teammate of the company.
    Admin,
    /// A known contact.
    ContactUser,
    /// A contact that has not signed up.
    ContactLead,
    /// Somebody without any identity.
    Visitor,
    /// The AI agent.
    AiAgent,
    /// A scripted bot.
    Bot,
    /// No person: rules, timers, billing.
    System,
}

impl Actor {
    /// Returns the value of the `actor_type` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ContactUser => "contact_user",
            Self::ContactLead => "contact_lead",
            Self::Visitor => "visitor",
            Self::AiAgent => "ai_agent",
            Self::Bot => "bot",
            Self::System => "system",
        }
    }

    /// Reads what clients write: the column's values and the short forms of the API.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "admin" | "teammate" => Self::Admin,
            "contact_user" | "contact" | "user" => Self::ContactUser,
            "contact_lead" | "lead" => Self::ContactLead,
            "visitor" => Self::Visitor,
            "ai_agent" => Self::AiAgent,
            "bot" => Self::Bot,
            "system" => Self::System,
            _ => return None,
        })
    }
}

/// Who can cause an event, as far as the plan leaves no choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Causer {
    /// Always this one.
    Always(Actor),
    /// A contact where there is a user id, a visitor otherwise.
    ContactOrVisitor,
    /// A contact.
    Contact,
    /// Several; the event must say.
    Several,
}

/// An event of the plan.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    /// Canonical name.
    pub name: &'static str,
    /// Who can cause it.
    pub causer: Causer,
}

const ADMIN: Causer = Causer::Always(Actor::Admin);
const SYSTEM: Causer = Causer::Always(Actor::System);
const AI: Causer = Causer::Always(Actor::AiAgent);

const PLAN: &[(Causer, &[&str])] = &[
    (
        ADMIN,
        &[
            "Signed In",
            "Signed Out",
            "Sign In Failed",
            "Availability Changed",
            "Conversation Noted",
            "Conversation Priority Changed",
            "Conversation Merged",
            "Handling Paused",
            "Handling Resumed",
            "Account Created",
            "Invite Sent",
            "Account Added User",
            "Account Removed User",
            "Seat Changed",
            "Integration Installed",
            "Integration Removed",
            "Feature Used",
            "Report Viewed",
            "Query Run",
        ],
    ),
    (
        SYSTEM,
        &[
            "SLA Applied",
            "SLA Hit",
            "SLA Missed",
            "SLA Cancelled",
            "AI Agent Resolution Recorded",
            "Contact Merged",
            "Trial Started",
            "Trial Ended",
            "Plan Changed",
            "Subscription Cancelled",
        ],
    ),
    (AI, &["AI Agent Involved", "AI Agent Answered"]),
    (
        Causer::ContactOrVisitor,
        &[
            "Widget Loaded",
            "Widget Opened",
            "Widget Closed",
            "Article Viewed",
            "Article Reacted",
        ],
    ),
    (Causer::Contact, &["Conversation Rated"]),
    (
        Causer::Several,
        &[
            "Conversation Started",
            "Conversation Replied",
            "Conversation Assigned",
            "Conversation Unassigned",
            "Conversation Closed",
            "Conversation Reopened",
            "Conversation Snoozed",
            "Conversation Unsnoozed",
            "Conversation Rating Requested",
            "Conversation Tagged",
            "Conversation Untagged",
            "Ticket Created",
            "Ticket State Changed",
            "Ticket Closed",
            "Call Started",
            "Call Ended",
            "Lead Created",
            "Lead Converted",
        ],
    ),
];

static BY_KEY: LazyLock<HashMap<String, Planned>> = LazyLock::new(|| {
    PLAN.iter()
        .flat_map(|(causer, names)| {
            names.iter().map(|name| {
                let planned = Planned {
                    name,
                    causer: *causer,
                };
                (key(name), planned)
            })
        })
        .collect()
});

/// Returns the planned event of this name, however it is written.
pub fn lookup(name: &str) -> Option<Planned> {
    BY_KEY.get(&key(name)).copied()
}

/// Lower case, everything that is no letter or digit as one `_`.
fn key(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.trim().chars() {
        if c.is_alphanumeric() {
            out.extend(c.to_lowercase());
        } else if !out.ends_with('_') {
            out.push('_');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_planned_name_are_one_event() {
        for name in [
            "Conversation Started",
            "conversation_started",
            "conversation  started ",
            "CONVERSATION-STARTED",
        ] {
            assert_eq!(lookup(name).map(|it| it.name), Some("Conversation Started"));
        }
        assert!(lookup("ConversationStarted").is_none());
        assert!(lookup("Something Else").is_none());
    }

    #[test]
    fn every_name_of_the_plan_has_its_own_key() {
        let names: usize = PLAN.iter().map(|(_, names)| names.len()).sum();
        assert_eq!(BY_KEY.len(), names);
    }
}
