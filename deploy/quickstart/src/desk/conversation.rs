//! One conversation from the first message to the rating.
//!
//! ```text
//! started → AI agent answers ─→ resolved → closed → rated
//!                            └→ escalated ┐
//! started ───────────────────→ triage (team, SLA, teammate) → replies → closed → rated
//!                                              ↑                           │
//!                                              └──────── reopened ─────────┘
//! ```

use serde_json::{Value, json};

use super::draft::{Actor, Log};
use super::shift::Shifts;
use super::{Conversation, somebody, visit};
use crate::world::time::{HOUR, MINUTE, Millis, SECOND};

/// First reply that the SLA promises, for chats and for the rest.
const FIRST_REPLY_CHAT: Millis = 10 * MINUTE;
const FIRST_REPLY_OTHER: Millis = 4 * HOUR;

/// Plays a conversation that begins at `at`, and returns how it stands at the end of the days.
pub(super) fn hold(log: &mut Log<'_>, shifts: &Shifts, at: Millis) -> Conversation {
    let mut life = Life::start(log, shifts, at);
    if !life.ai_agent_resolves() {
        life.triage();
        life.exchange_replies();
        life.close(None);
        life.ask_for_rating("teammate");
        if life.log.chance.hit(0.10) {
            life.reopen();
            life.exchange_replies();
            life.close(None);
        }
    }
    Conversation {
        id: life.id,
        company: life.log.index,
        created_at: at,
        state: life.state,
        updated_at: life.updated_at,
    }
}

struct Life<'a, 'w> {
    log: &'a mut Log<'w>,
    shifts: &'a Shifts,
    id: String,
    contact: usize,
    channel: &'static str,
    started_at: Millis,
    /// Time of the story; may run past the sample's days, where nothing is recorded any more.
    now: Millis,
    team: usize,
    admin: usize,
    state: &'static str,
    updated_at: Millis,
}

impl<'a, 'w> Life<'a, 'w> {
    fn start(log: &'a mut Log<'w>, shifts: &'a Shifts, at: Millis) -> Self {
        let channel = ["chat", "email", "whatsapp", "phone", "sms"]
            [log.chance.weighted(&[5.5, 3.0, 0.9, 0.4, 0.2])];
        let contact = somebody(&mut log.chance, log.company);
        if channel == "chat" && log.company.has_widget {
            visit::before_chat(log, contact, at);
        }
        let mut life = Self {
            id: log.chance.id("conv_"),
            log,
            shifts,
            contact,
            channel,
            started_at: at,
            now: at,
            team: 0,
            admin: 0,
            state: "open",
            updated_at: at,
        };
        life.introduce();
        life
    }

    /// Records `name` with the conversation's id, and the state it leads to.
    fn record(&mut self, actor: Actor, name: &str, mut properties: Value) {
        properties["conversation_id"] = self.id.as_str().into();
        if self.log.track(self.now, actor, name, properties) {
            self.updated_at = self.now;
            match name {
                "Conversation Closed" => self.state = "closed",
                "Conversation Snoozed" => self.state = "snoozed",
                "Conversation Reopened" | "Conversation Unsnoozed" => self.state = "open",
                _ => {}
            }
        }
    }

    fn introduce(&mut self) {
        let contact = Actor::Contact(self.contact);
        let subject = self.log.chance.between(8, 90);
        let (actor, initiated) = if self.log.chance.hit(0.94) {
            (contact, "customer_initiated")
        } else {
            (Actor::Bot, "automated")
        };
        let contact_id = self.log.company.contacts[self.contact].id.clone();
        self.record(
            actor,
            "Conversation Started",
            json!({"channel": self.channel, "initiated_type": initiated, "contact_id": contact_id, "subject_length": subject}),
        );
        if self.log.company.contacts[self.contact].role == "lead" && self.log.chance.hit(0.3) {
            self.now += SECOND;
            self.record(contact, "Lead Created", json!({"source": self.channel}));
        }
        if self.channel == "phone" {
            self.phone_call(contact);
        }
    }

    fn phone_call(&mut self, contact: Actor) {
        let call = self.log.chance.id("call_");
        self.now += SECOND;
        self.record(contact, "Call Started", json!({"call_id": call}));
        let seconds = self.log.chance.between(40, 900);
        self.now += seconds * SECOND;
        self.record(
            contact,
            "Call Ended",
            json!({"call_id": call, "duration_seconds": seconds}),
        );
    }

    /// Lets the AI agent try. Returns whether the conversation ended with it.
    fn ai_agent_resolves(&mut self) -> bool {
        let may_try = self.log.company.has_ai_agent && self.channel != "phone";
        if !may_try || !self.log.chance.hit(0.7) {
            return false;
        }
        self.now += self.log.chance.wait(2 * SECOND);
        self.record(
            Actor::AiAgent,
            "AI Agent Involved",
            json!({"source_type": "workflow", "source_title": "First answer"}),
        );
        for _ in 0..self.log.chance.between(1, 4) {
            self.ai_agent_answers();
            self.customer_replies(90 * SECOND);
        }
        let fate = ["assumed_resolution", "confirmed_resolution", "escalated"]
            [self.log.chance.weighted(&[2.4, 2.0, 5.0])];
        self.now += self.log.chance.wait(3 * MINUTE);
        self.record(
            Actor::System,
            "AI Agent Resolution Recorded",
            json!({"resolution_state": fate, "hours_since_answer": 0}),
        );
        if fate == "escalated" {
            return false;
        }
        self.close(Some(Actor::AiAgent));
        self.ask_for_rating("ai_agent");
        true
    }

    fn ai_agent_answers(&mut self) {
        let part = self.log.chance.id("part_");
        let latency = self.log.chance.between(700, 6_500);
        let confidence = self.log.chance.between(41, 99) as f64 / 100.0;
        let sources = self.log.chance.between(1, 6);
        self.now += latency;
        self.record(
            Actor::AiAgent,
            "AI Agent Answered",
            json!({"part_id": part, "answer_type": "ai_answer", "content_sources_count": sources, "confidence": confidence, "latency_ms": latency}),
        );
        let length = self.log.chance.between(120, 900);
        self.record(
            Actor::AiAgent,
            "Conversation Replied",
            json!({"part_id": part, "part_type": "comment", "is_visible": true, "is_ai_answer": true, "body_length": length}),
        );
    }

    /// Finds team and teammate, and starts the clock of the SLA.
    fn triage(&mut self) {
        self.team = self.log.chance.index(self.log.company.teams.len());
        self.now += self.log.chance.wait(8 * SECOND);
        self.assign_team(None);
        self.sla("SLA Applied");
        if self.log.chance.hit(0.16) {
            let (from, to) = self.log.chance.pick(&[
                ("none", "high"),
                ("none", "low"),
                ("medium", "high"),
                ("none", "urgent"),
            ]);
            self.record(
                Actor::System,
                "Conversation Priority Changed",
                json!({"priority": to, "previous_priority": from}),
            );
        }
        self.assign_teammate(Actor::Bot);
        if self.log.chance.hit(0.13) {
            self.hand_over();
        }
    }

    fn assign_team(&mut self, previous: Option<usize>) {
        let team = self.log.company.teams[self.team].id.clone();
        let previous = previous.map(|team| self.log.company.teams[team].id.clone());
        self.record(
            Actor::System,
            "Conversation Assigned",
            json!({"assigned_to_type": "team", "assigned_to_id": team, "team_id": team, "previous_team_id": previous, "rule_id": "rule_inbox"}),
        );
    }

    fn assign_teammate(&mut self, by: Actor) {
        self.admin = self.whoever_is_free();
        let id = self.log.company.admins[self.admin].id.clone();
        let team = self.log.company.teams[self.team].id.clone();
        self.now += self.log.chance.wait(25 * SECOND);
        self.record(
            by,
            "Conversation Assigned",
            json!({"assigned_to_type": "admin", "assigned_to_id": id, "admin_id": id, "team_id": team}),
        );
    }

    /// Another team knows better.
    fn hand_over(&mut self) {
        let before = self.team;
        self.now = self.shifts.next(self.admin, self.now) + self.log.chance.wait(3 * MINUTE);
        self.note();
        self.team = self.log.chance.index(self.log.company.teams.len());
        if self.team != before {
            self.assign_team(Some(before));
        }
        self.assign_teammate(Actor::System);
    }

    /// Returns the member of the team who works soonest, among a few asked.
    fn whoever_is_free(&mut self) -> usize {
        let members = &self.log.company.teams[self.team].members;
        let asked: Vec<usize> = if members.is_empty() {
            vec![0, 1]
        } else {
            (0..4).map(|_| self.log.chance.pick(members)).collect()
        };
        asked
            .into_iter()
            .min_by_key(|admin| self.shifts.next(*admin, self.now))
            .unwrap_or(0)
    }

    fn exchange_replies(&mut self) {
        let rounds = 1 + self.log.chance.weighted(&[4.0, 3.0, 2.0, 1.0, 0.5]);
        for round in 0..rounds {
            self.teammate_replies();
            if round == 0 {
                self.judge_first_reply();
            }
            if round + 1 < rounds || self.log.chance.hit(0.45) {
                self.customer_replies(self.pace(4 * MINUTE, 70 * MINUTE));
            }
            self.side_work();
        }
    }

    /// Chats are quick, everything else is not.
    fn pace(&self, chat: Millis, other: Millis) -> Millis {
        if self.channel == "chat" { chat } else { other }
    }

    fn teammate_replies(&mut self) {
        let thinking = self.pace(2 * MINUTE, 24 * MINUTE);
        self.now += self.log.chance.wait(thinking);
        self.now = self.shifts.next(self.admin, self.now);
        let part = self.log.chance.id("part_");
        let length = self.log.chance.between(40, 1_400);
        let attachments = i64::from(self.log.chance.hit(0.07));
        let team = self.log.company.teams[self.team].id.clone();
        self.record(
            Actor::Admin(self.admin),
            "Conversation Replied",
            json!({"part_id": part, "part_type": "comment", "is_visible": true, "body_length": length, "attachments_count": attachments, "team_id": team}),
        );
    }

    fn customer_replies(&mut self, median: Millis) {
        self.now += self.log.chance.wait(median);
        let part = self.log.chance.id("part_");
        let length = self.log.chance.between(4, 420);
        let kind = if self.log.chance.hit(0.9) {
            "comment"
        } else {
            "quick_reply"
        };
        self.record(
            Actor::Contact(self.contact),
            "Conversation Replied",
            json!({"part_id": part, "part_type": kind, "is_visible": true, "body_length": length}),
        );
    }

    fn judge_first_reply(&mut self) {
        let promised = self.pace(FIRST_REPLY_CHAT, FIRST_REPLY_OTHER);
        let kept = self.now - self.started_at <= promised;
        self.sla(if kept { "SLA Hit" } else { "SLA Missed" });
    }

    fn sla(&mut self, name: &str) {
        let target = self.pace(FIRST_REPLY_CHAT, FIRST_REPLY_OTHER) / SECOND;
        self.record(
            Actor::System,
            name,
            json!({"sla_name": "Standard", "target": "first_reply", "target_seconds": target}),
        );
    }

    /// Notes, tags, tickets and snoozing.
    fn side_work(&mut self) {
        if self.log.chance.hit(0.22) {
            self.note();
        }
        if self.log.chance.hit(0.3) {
            let tag = self.log.chance.pick(&TAGS);
            self.record(
                Actor::Admin(self.admin),
                "Conversation Tagged",
                json!({"tag_id": format!("tag_{tag}"), "tag_name": tag}),
            );
        }
        if self.log.chance.hit(0.04) {
            let ticket = self.log.chance.id("tkt_");
            self.record(
                Actor::Admin(self.admin),
                "Ticket Created",
                json!({"ticket_id": ticket, "category": "Customer"}),
            );
        }
        if self.log.chance.hit(0.04) {
            self.snooze();
        }
    }

    fn note(&mut self) {
        let part = self.log.chance.id("part_");
        let length = self.log.chance.between(20, 300);
        self.now += self.log.chance.wait(30 * SECOND);
        self.record(
            Actor::Admin(self.admin),
            "Conversation Noted",
            json!({"part_id": part, "body_length": length}),
        );
    }

    fn snooze(&mut self) {
        let until = self.now + self.log.chance.between(2, 20) * HOUR;
        let text = crate::world::time::iso(until);
        self.record(
            Actor::Admin(self.admin),
            "Conversation Snoozed",
            json!({"snoozed_until": text}),
        );
        self.now = until;
        self.record(Actor::System, "Conversation Unsnoozed", json!({}));
    }

    fn close(&mut self, by: Option<Actor>) {
        let actor = by.unwrap_or(Actor::Admin(self.admin));
        self.now += self.log.chance.wait(6 * MINUTE);
        if by.is_none() {
            self.now = self.shifts.next(self.admin, self.now);
        }
        let reason = self
            .log
            .chance
            .pick(&["resolved", "resolved", "resolved", "no_reply"]);
        self.record(
            actor,
            "Conversation Closed",
            json!({"close_reason": reason}),
        );
    }

    fn ask_for_rating(&mut self, rated_type: &str) {
        self.now += SECOND;
        self.record(Actor::System, "Conversation Rating Requested", json!({}));
        if !self.log.chance.hit(0.34) {
            return;
        }
        let waited = (self.now - self.started_at) as f64 / (6 * HOUR) as f64;
        // Who waits long is less kind.
        let mood = (1.0 - waited.min(1.0)) * 5.0;
        let rating = 1 + self
            .log
            .chance
            .weighted(&[1.2, 0.8, 1.2, 2.0 + mood / 2.0, 2.0 + mood]);
        let remark = self.log.chance.between(0, 160);
        let teammate =
            (rated_type == "teammate").then(|| self.log.company.admins[self.admin].id.clone());
        self.now += self.log.chance.wait(4 * MINUTE);
        self.record(
            Actor::Contact(self.contact),
            "Conversation Rated",
            json!({"rating": rating, "rated_type": rated_type, "remark_length": remark, "teammate_id": teammate}),
        );
    }

    fn reopen(&mut self) {
        self.now += self.log.chance.wait(3 * HOUR);
        self.record(
            Actor::Contact(self.contact),
            "Conversation Reopened",
            json!({"reason": "customer_reply"}),
        );
        self.customer_replies(2 * SECOND);
    }
}

const TAGS: [&str; 8] = [
    "refund",
    "login",
    "delivery",
    "bug",
    "invoice",
    "how-to",
    "feature-request",
    "cancellation",
];
