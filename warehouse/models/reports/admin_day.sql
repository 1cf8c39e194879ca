-- name: admin_day
-- grain: company_id, admin_id, report_date
-- partition: report_date
-- refresh: days
-- depends: core.events, core.conversations, ops.companies
-- doc: One row per teammate and business day with at least one event of the teammate or a rating of their conversation.
-- column company_id: The paying tenant.
-- column admin_id: The teammate.
-- column report_date: The calendar day in the company's time zone.
-- column replies_sent: Replies that a customer can read (#27).
-- column conversations_replied_to: Distinct conversations with such a reply (#21).
-- column closed_conversations: Closings by the teammate; closing twice counts twice (#22).
-- column notes: Internal notes.
-- column assignments_made: Assignments by the teammate.
-- column logins: Sign-ins.
-- column is_active: Whether there was an event other than signing in or out (#34).
-- column first_event_at: First event of the day.
-- column last_event_at: Last event of the day.
-- column ratings: Conversations assigned to the teammate whose last rating was given on the day.
-- column csat_pct: Share of those ratings that are 4 or 5, in percent (#30).
WITH activity AS (
    SELECT e.company_id, coalesce(e.actor_id, e.admin_id) AS admin_id, e.report_date,
           count(*) FILTER (WHERE e.event_name = 'Conversation Closed') AS closed_conversations,
           count(*) FILTER (WHERE e.event_name = 'Conversation Noted') AS notes,
           count(*) FILTER (WHERE e.event_name = 'Conversation Assigned') AS assignments_made,
           count(*) FILTER (WHERE e.event_name = 'Signed In') AS logins,
           count(*) FILTER (WHERE e.event_name NOT IN ('Signed In', 'Signed Out', 'Sign In Failed')) AS active_events,
           min(e.event_time) AS first_event_at,
           max(e.event_time) AS last_event_at
    FROM core.events AS e JOIN run_days AS d ON d.report_date = e.report_date
    WHERE e.actor_type = 'admin' AND coalesce(e.actor_id, e.admin_id) IS NOT NULL
    GROUP BY 1, 2, 3
),
replies AS (
    SELECT p.company_id, p.admin_id, p.report_date,
           count(*) AS replies_sent,
           count(DISTINCT p.conversation_id) AS conversations_replied_to
    FROM conversation_parts AS p JOIN run_days AS d ON d.report_date = p.report_date
    WHERE p.is_admin_reply AND p.admin_id IS NOT NULL
    GROUP BY 1, 2, 3
),
rated AS (
    SELECT v.company_id, v.assignee_id AS admin_id, local_date(v.rated_at, c.timezone) AS report_date,
           count(*) AS ratings,
           count(*) FILTER (WHERE v.rating >= 4) AS satisfied
    FROM core.conversations AS v LEFT JOIN ops.companies AS c ON c.company_id = v.company_id
    WHERE v.rated_at IS NOT NULL AND v.assignee_type = 'admin' AND v.assignee_id IS NOT NULL
    GROUP BY 1, 2, 3
),
keys AS (
    SELECT company_id, admin_id, report_date FROM activity
    UNION
    SELECT r.company_id, r.admin_id, r.report_date FROM rated AS r JOIN run_days AS d ON d.report_date = r.report_date
)
SELECT
    k.company_id,
    k.admin_id,
    k.report_date,
    coalesce(r.replies_sent, 0) AS replies_sent,
    coalesce(r.conversations_replied_to, 0) AS conversations_replied_to,
    coalesce(a.closed_conversations, 0) AS closed_conversations,
    coalesce(a.notes, 0) AS notes,
    coalesce(a.assignments_made, 0) AS assignments_made,
    coalesce(a.logins, 0) AS logins,
    coalesce(a.active_events, 0) > 0 AS is_active,
    a.first_event_at,
    a.last_event_at,
    coalesce(t.ratings, 0) AS ratings,
    CAST(CAST(t.satisfied * 100 AS DECIMAL(18, 4)) / nullif(t.ratings, 0) AS DECIMAL(9, 2)) AS csat_pct
FROM keys AS k
LEFT JOIN activity AS a ON a.company_id = k.company_id AND a.admin_id = k.admin_id AND a.report_date = k.report_date
LEFT JOIN replies AS r ON r.company_id = k.company_id AND r.admin_id = k.admin_id AND r.report_date = k.report_date
LEFT JOIN rated AS t ON t.company_id = k.company_id AND t.admin_id = k.admin_id AND t.report_date = k.report_date
