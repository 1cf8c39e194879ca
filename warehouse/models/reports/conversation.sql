-- name: conversation
-- grain: company_id, conversation_id
-- partition: report_date
-- refresh: conversations
-- depends: core.events, core.conversations
-- doc: One row per conversation with its latest state and durations. `#n` is the metric's number; CR is the first message by a contact; durations are calendar time.
-- column company_id: The paying tenant.
-- column conversation_id: The conversation, unique inside the company.
-- column report_date: The business day on which it began.
-- column conversation_created_at: When it began.
-- column state: open, closed or snoozed.
-- column channel: Channel of the first event that names one.
-- column initiated_type: Who initiated it.
-- column contact_id: The customer, as last named.
-- column team_id: The team, as last named.
-- column assignee_type: admin, team, nobody, or null when it never was assigned.
-- column assignee_id: The admin or team assigned last.
-- column plan_id_at_start: The company's plan in force at the first event.
-- column first_contact_reply_at: First message by a contact (#1), which is CR.
-- column first_admin_response_at: First comment, or assignment with a text, of a human teammate after CR (#2).
-- column time_to_first_response_minutes: From the start to #2 (#3).
-- column time_to_admin_reply_s: From CR to #2 (#4).
-- column time_to_first_assignment_minutes: From the start to the first assignment (#5).
-- column time_to_last_assignment_minutes: From the start to the last assignment (#6).
-- column time_to_assignment_s: From CR to the last assignment at or after CR and before #2 (#7).
-- column time_to_first_close_minutes: From CR to the first closing; null when that came before CR (#8).
-- column time_to_last_close_minutes: From CR to the last closing; null when that came before CR (#9).
-- column time_to_admin_first_close_minutes: From CR to the first closing by an admin; null when that came before CR (#10).
-- column time_to_admin_last_close_minutes: From CR to the last closing by an admin; null when that came before CR (#10).
-- column median_time_to_reply_s: Exact median over the admin replies that follow a contact's message of the seconds since that message (#11).
-- column replies_measured: How many replies that median is over.
-- column count_reopens: Reopenings (#12).
-- column count_reopens_after_cr: Reopenings after CR (#12).
-- column count_assignments: Assignments (#13).
-- column count_total_parts: Replies, notes, assignments, unassignments, closings, reopenings, snoozings and unsnoozings (#14).
-- column handling_time_s: Seconds up to the last closing while open and assigned to an admin; null while never closed (#15).
-- column adjusted_handling_time_s: The same without the time between Handling Paused and Resumed (#16).
-- column is_first_contact_resolution: Closed now, closed exactly once, and exactly one teammate replied or noted; null while not closed (#17).
-- column waiting_since: Last message by a contact that no admin has answered; null when an admin spoke last (#18).
-- column sla_status: cancelled, missed, active or hit; null without SLA (#19).
-- column conversation_rating: The last rating, 1 to 5.
-- column is_ai_involved: Whether the AI agent took part.
-- column last_event_at: Its last event.
WITH scope AS (
    SELECT v.* FROM core.conversations AS v JOIN run_days AS d ON d.report_date = v.report_date
),
parts AS (
    SELECT p.*, s.started_at, s.first_contact_at, s.first_admin_response_at, s.last_closed_at
    FROM conversation_parts AS p
    JOIN scope AS s ON s.company_id = p.company_id AND s.conversation_id = p.conversation_id
),
-- What holds from each event to the next.
spans AS (
    SELECT company_id, conversation_id, event_time, last_closed_at,
           lead(event_time) OVER (PARTITION BY company_id, conversation_id ORDER BY event_time, part_id, message_id) AS next_time,
           last_value(new_state) IGNORE NULLS OVER (PARTITION BY company_id, conversation_id ORDER BY event_time, part_id, message_id
                                                    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS state,
           last_value(new_assignee_type) IGNORE NULLS OVER (PARTITION BY company_id, conversation_id ORDER BY event_time, part_id, message_id
                                                            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS assignee_type,
           last_value(new_is_paused) IGNORE NULLS OVER (PARTITION BY company_id, conversation_id ORDER BY event_time, part_id, message_id
                                                        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS is_paused
    FROM parts
),
handling AS (
    SELECT company_id, conversation_id,
           sum(micros_between(event_time, next_time)) AS handling_us,
           sum(CASE WHEN coalesce(is_paused, false) THEN 0 ELSE micros_between(event_time, next_time) END) AS adjusted_us
    FROM spans
    WHERE event_time < last_closed_at AND coalesce(state, 'open') = 'open' AND assignee_type = 'admin'
    GROUP BY company_id, conversation_id
),
messages AS (
    SELECT company_id, conversation_id, event_time, is_admin_reply,
           lag(event_time) OVER (PARTITION BY company_id, conversation_id ORDER BY event_time, part_id, message_id) AS previous_time,
           lag(is_contact_comment) OVER (PARTITION BY company_id, conversation_id ORDER BY event_time, part_id, message_id) AS previous_is_contact
    FROM parts
    WHERE is_admin_reply OR is_contact_comment
),
replies AS (
    SELECT company_id, conversation_id,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY CAST(seconds_between(previous_time, event_time) AS DOUBLE)) AS median_s,
           count(*) AS replies
    FROM messages
    WHERE is_admin_reply AND previous_is_contact
    GROUP BY company_id, conversation_id
),
facts AS (
    SELECT company_id, conversation_id,
           min(event_time) FILTER (WHERE event_name = 'Conversation Assigned') AS first_assigned_at,
           max(event_time) FILTER (WHERE event_name = 'Conversation Assigned') AS last_assigned_at,
           max(event_time) FILTER (WHERE event_name = 'Conversation Assigned' AND event_time >= first_contact_at
                                     AND event_time < first_admin_response_at) AS assigned_before_response_at,
           min(event_time) FILTER (WHERE event_name = 'Conversation Closed' AND actor = 'admin') AS admin_first_closed_at,
           max(event_time) FILTER (WHERE event_name = 'Conversation Closed' AND actor = 'admin') AS admin_last_closed_at,
           count(*) FILTER (WHERE event_name = 'Conversation Closed') AS closings,
           count(*) FILTER (WHERE event_name = 'Conversation Reopened') AS count_reopens,
           count(*) FILTER (WHERE event_name = 'Conversation Reopened' AND event_time > first_contact_at) AS count_reopens_after_cr,
           count(*) FILTER (WHERE event_name = 'Conversation Assigned') AS count_assignments,
           count(*) FILTER (WHERE is_part) AS count_total_parts,
           count(DISTINCT CASE WHEN is_admin_reply OR (event_name = 'Conversation Noted' AND actor = 'admin') THEN admin_id END) AS teammates,
           max(event_time) FILTER (WHERE is_contact_comment) AS last_contact_at,
           max(event_time) FILTER (WHERE is_admin_reply) AS last_admin_at,
           count(*) FILTER (WHERE event_name = 'SLA Applied') AS sla_applied,
           count(*) FILTER (WHERE event_name = 'SLA Hit') AS sla_hit,
           count(*) FILTER (WHERE event_name = 'SLA Missed') AS sla_missed,
           count(*) FILTER (WHERE event_name = 'SLA Cancelled') AS sla_cancelled
    FROM parts
    GROUP BY company_id, conversation_id
)
SELECT
    s.company_id,
    s.conversation_id,
    s.report_date,
    s.started_at AS conversation_created_at,
    s.state,
    s.channel,
    s.initiated_type,
    s.contact_id,
    s.team_id,
    s.assignee_type,
    s.assignee_id,
    s.plan_id_at_start,
    s.first_contact_at AS first_contact_reply_at,
    s.first_admin_response_at,
    CAST(CAST(seconds_between(s.started_at, s.first_admin_response_at) AS DECIMAL(18, 6)) / 60 AS DECIMAL(18, 2)) AS time_to_first_response_minutes,
    seconds_between(s.first_contact_at, s.first_admin_response_at) AS time_to_admin_reply_s,
    CAST(CAST(seconds_between(s.started_at, f.first_assigned_at) AS DECIMAL(18, 6)) / 60 AS DECIMAL(18, 2)) AS time_to_first_assignment_minutes,
    CAST(CAST(seconds_between(s.started_at, f.last_assigned_at) AS DECIMAL(18, 6)) / 60 AS DECIMAL(18, 2)) AS time_to_last_assignment_minutes,
    seconds_between(s.first_contact_at, f.assigned_before_response_at) AS time_to_assignment_s,
    CASE WHEN s.first_closed_at >= s.first_contact_at THEN CAST(CAST(seconds_between(s.first_contact_at, s.first_closed_at) AS DECIMAL(18, 6)) / 60 AS DECIMAL(18, 2)) END AS time_to_first_close_minutes,
    CASE WHEN s.last_closed_at >= s.first_contact_at THEN CAST(CAST(seconds_between(s.first_contact_at, s.last_closed_at) AS DECIMAL(18, 6)) / 60 AS DECIMAL(18, 2)) END AS time_to_last_close_minutes,
    CASE WHEN f.admin_first_closed_at >= s.first_contact_at THEN CAST(CAST(seconds_between(s.first_contact_at, f.admin_first_closed_at) AS DECIMAL(18, 6)) / 60 AS DECIMAL(18, 2)) END AS time_to_admin_first_close_minutes,
    CASE WHEN f.admin_last_closed_at >= s.first_contact_at THEN CAST(CAST(seconds_between(s.first_contact_at, f.admin_last_closed_at) AS DECIMAL(18, 6)) / 60 AS DECIMAL(18, 2)) END AS time_to_admin_last_close_minutes,
    CAST(r.median_s AS DECIMAL(18, 1)) AS median_time_to_reply_s,
    coalesce(r.replies, 0) AS replies_measured,
    f.count_reopens,
    f.count_reopens_after_cr,
    f.count_assignments,
    f.count_total_parts,
    CASE WHEN s.last_closed_at IS NOT NULL THEN coalesce(h.handling_us, 0) / 1000000 END AS handling_time_s,
    CASE WHEN s.last_closed_at IS NOT NULL THEN coalesce(h.adjusted_us, 0) / 1000000 END AS adjusted_handling_time_s,
    CASE WHEN s.state = 'closed' THEN f.closings = 1 AND f.teammates = 1 END AS is_first_contact_resolution,
    CASE WHEN f.last_admin_at IS NULL OR f.last_contact_at > f.last_admin_at THEN f.last_contact_at END AS waiting_since,
    CASE
        WHEN f.sla_cancelled > 0 THEN 'cancelled'
        WHEN f.sla_missed > 0 THEN 'missed'
        WHEN f.sla_applied > f.sla_hit THEN 'active'
        WHEN f.sla_hit > 0 THEN 'hit'
    END AS sla_status,
    s.rating AS conversation_rating,
    s.is_ai_involved,
    s.last_event_at
FROM scope AS s
JOIN facts AS f ON f.company_id = s.company_id AND f.conversation_id = s.conversation_id
LEFT JOIN handling AS h ON h.company_id = s.company_id AND h.conversation_id = s.conversation_id
LEFT JOIN replies AS r ON r.company_id = s.company_id AND r.conversation_id = s.conversation_id
