-- name: company_day
-- grain: company_id, report_date
-- partition: report_date
-- refresh: days
-- depends: core.events, core.conversations, core.company_plans, ops.companies, ops.conversations
-- doc: One row per company and business day (local to the company): usage, quality, plan in force and MRR.
-- column company_id: The paying tenant.
-- column report_date: The calendar day in the company's time zone.
-- column events: Events of the day, each counted once.
-- column late_events: Events of the day that arrived more than 24 hours after they happened.
-- column new_conversations: Conversations whose first message by a customer was on the day; outbound-only ones do not count (#20).
-- column conversations_started: Conversations that began on the day, whoever began them.
-- column closed_conversations: Closings on the day; closing twice counts twice (#22).
-- column new_closed_conversations: Conversations closed for the first time on the day (#23).
-- column reopened_conversations: Reopenings on the day.
-- column admin_replies: Replies of teammates that a customer can read.
-- column contact_replies: Messages of customers, first ones included.
-- column median_first_response_s: Exact median, over the conversations that began on the day and were answered, of seconds from start to the first response of a teammate; null when none.
-- column first_responses: How many conversations that median is over.
-- column ratings: Conversations whose last rating was given on the day.
-- column csat_pct: Share of those ratings that are 4 or 5, in percent (#30).
-- column dsat_pct: Share of those ratings that are 1 or 2, in percent (#32).
-- column ratings_requested: Conversations for which a rating was first requested on the day.
-- column rating_response_rate_pct: Share of those that have been rated, in percent (#31).
-- column ai_conversations: New conversations in which the AI agent took part.
-- column ai_involvement_pct: Their share of the new conversations, in percent (#40).
-- column ai_resolution_pct: Share of them that the AI agent resolved, assumed or confirmed, in percent (#41).
-- column ai_automation_pct: Share of the new conversations that the AI agent resolved, in percent (#42).
-- column admin_logins: Sign-ins of teammates (#34).
-- column active_admins: Teammates with at least one event other than signing in or out (#34).
-- column active_admins_7d: The same over the 7 local days that end with this one (#35).
-- column active_admins_28d: The same over 28 local days (#35).
-- column plan_id: Plan in force at the end of the day.
-- column subscription_status: Status of its subscription.
-- column seats: Seats bought with that plan.
-- column seat_utilization_pct: active_admins_28d as a share of seats, in percent (#37).
-- column mrr_minor: Monthly recurring revenue at the end of the day, before discounts, in minor units of mrr_currency.
-- column mrr_currency: ISO 4217.
-- column oltp_conversations: Conversations that the operational database says began on the day.
-- column reconciliation_delta: That number less the distinct conversations with a start event; 0 when nothing is missing (#52).
WITH companies AS (
    SELECT company_id, timezone, created_at, deleted_at FROM ops.companies
    UNION ALL
    SELECT DISTINCT e.company_id, 'UTC', CAST(NULL AS TIMESTAMP WITH TIME ZONE), CAST(NULL AS TIMESTAMP WITH TIME ZONE)
    FROM core.events AS e
    JOIN run_days AS d ON d.report_date = e.report_date
    LEFT ANTI JOIN ops.companies AS o ON o.company_id = e.company_id
),
days AS (
    SELECT c.company_id, d.report_date,
           local_midnight(CAST(d.report_date + INTERVAL '1 day' AS DATE), c.timezone) AS day_end
    FROM companies AS c CROSS JOIN run_days AS d
    WHERE (c.created_at IS NULL OR local_date(c.created_at, c.timezone) <= d.report_date)
      AND (c.deleted_at IS NULL OR local_date(c.deleted_at, c.timezone) >= d.report_date)
),
usage AS (
    SELECT e.company_id, e.report_date,
           count(*) AS events,
           count(*) FILTER (WHERE seconds_between(e.event_time, e.received_at) > 86400) AS late_events,
           count(*) FILTER (WHERE e.event_name = 'Conversation Closed') AS closed_conversations,
           count(*) FILTER (WHERE e.event_name = 'Conversation Reopened') AS reopened_conversations,
           count(*) FILTER (WHERE e.event_name = 'Signed In' AND e.actor_type = 'admin') AS admin_logins,
           count(DISTINCT CASE WHEN e.event_name = 'Conversation Started' THEN e.conversation_id END) AS start_events
    FROM core.events AS e JOIN run_days AS d ON d.report_date = e.report_date
    GROUP BY e.company_id, e.report_date
),
messages AS (
    SELECT p.company_id, p.report_date,
           count(*) FILTER (WHERE p.is_admin_reply) AS admin_replies,
           count(*) FILTER (WHERE p.is_contact_comment) AS contact_replies
    FROM conversation_parts AS p JOIN run_days AS d ON d.report_date = p.report_date
    GROUP BY p.company_id, p.report_date
),
active_days AS (
    SELECT DISTINCT company_id, coalesce(actor_id, admin_id) AS admin_id, report_date
    FROM core.events
    WHERE actor_type = 'admin' AND event_name NOT IN ('Signed In', 'Signed Out', 'Sign In Failed')
      AND report_date > (SELECT CAST(min(report_date) - INTERVAL '28 days' AS DATE) FROM run_days)
),
active AS (
    SELECT a.company_id, d.report_date,
           count(DISTINCT CASE WHEN a.report_date = d.report_date THEN a.admin_id END) AS active_admins,
           count(DISTINCT CASE WHEN a.report_date > CAST(d.report_date - INTERVAL '7 days' AS DATE) THEN a.admin_id END) AS active_admins_7d,
           count(DISTINCT a.admin_id) AS active_admins_28d
    FROM run_days AS d
    JOIN active_days AS a
      ON a.report_date <= d.report_date AND a.report_date > CAST(d.report_date - INTERVAL '28 days' AS DATE)
    GROUP BY a.company_id, d.report_date
),
conversations AS (
    SELECT v.*,
           local_date(v.first_contact_at, c.timezone) AS first_contact_date,
           local_date(v.first_closed_at, c.timezone) AS first_closed_date,
           local_date(v.rated_at, c.timezone) AS rated_date,
           local_date(v.rating_requested_at, c.timezone) AS rating_requested_date
    FROM core.conversations AS v LEFT JOIN ops.companies AS c ON c.company_id = v.company_id
),
begun AS (
    SELECT v.company_id, v.report_date,
           count(*) AS conversations_started,
           count(v.first_admin_response_at) AS first_responses,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY CAST(seconds_between(v.started_at, v.first_admin_response_at) AS DOUBLE)) AS median_first_response_s
    FROM conversations AS v JOIN run_days AS d ON d.report_date = v.report_date
    GROUP BY v.company_id, v.report_date
),
contacted AS (
    SELECT v.company_id, v.first_contact_date AS report_date,
           count(*) AS new_conversations,
           count(*) FILTER (WHERE v.is_ai_involved) AS ai_conversations,
           count(*) FILTER (WHERE v.is_ai_involved AND v.resolution_state IN ('assumed_resolution', 'confirmed_resolution')) AS ai_resolved
    FROM conversations AS v JOIN run_days AS d ON d.report_date = v.first_contact_date
    GROUP BY v.company_id, v.first_contact_date
),
closed AS (
    SELECT v.company_id, v.first_closed_date AS report_date, count(*) AS new_closed_conversations
    FROM conversations AS v JOIN run_days AS d ON d.report_date = v.first_closed_date
    GROUP BY v.company_id, v.first_closed_date
),
rated AS (
    SELECT v.company_id, v.rated_date AS report_date,
           count(*) AS ratings,
           count(*) FILTER (WHERE v.rating >= 4) AS satisfied,
           count(*) FILTER (WHERE v.rating <= 2) AS dissatisfied
    FROM conversations AS v JOIN run_days AS d ON d.report_date = v.rated_date
    GROUP BY v.company_id, v.rated_date
),
requested AS (
    SELECT v.company_id, v.rating_requested_date AS report_date,
           count(*) AS ratings_requested,
           count(v.rated_at) AS answered
    FROM conversations AS v JOIN run_days AS d ON d.report_date = v.rating_requested_date
    GROUP BY v.company_id, v.rating_requested_date
),
oltp AS (
    SELECT o.company_id, local_date(o.created_at, c.timezone) AS report_date, count(*) AS oltp_conversations
    FROM ops.conversations AS o LEFT JOIN ops.companies AS c ON c.company_id = o.company_id
    GROUP BY 1, 2
)
SELECT
    days.company_id,
    days.report_date,
    coalesce(usage.events, 0) AS events,
    coalesce(usage.late_events, 0) AS late_events,
    coalesce(contacted.new_conversations, 0) AS new_conversations,
    coalesce(begun.conversations_started, 0) AS conversations_started,
    coalesce(usage.closed_conversations, 0) AS closed_conversations,
    coalesce(closed.new_closed_conversations, 0) AS new_closed_conversations,
    coalesce(usage.reopened_conversations, 0) AS reopened_conversations,
    coalesce(messages.admin_replies, 0) AS admin_replies,
    coalesce(messages.contact_replies, 0) AS contact_replies,
    CAST(begun.median_first_response_s AS DECIMAL(18, 1)) AS median_first_response_s,
    coalesce(begun.first_responses, 0) AS first_responses,
    coalesce(rated.ratings, 0) AS ratings,
    CAST(CAST(rated.satisfied * 100 AS DECIMAL(18, 4)) / nullif(rated.ratings, 0) AS DECIMAL(9, 2)) AS csat_pct,
    CAST(CAST(rated.dissatisfied * 100 AS DECIMAL(18, 4)) / nullif(rated.ratings, 0) AS DECIMAL(9, 2)) AS dsat_pct,
    coalesce(requested.ratings_requested, 0) AS ratings_requested,
    CAST(CAST(requested.answered * 100 AS DECIMAL(18, 4)) / nullif(requested.ratings_requested, 0) AS DECIMAL(9, 2)) AS rating_response_rate_pct,
    coalesce(contacted.ai_conversations, 0) AS ai_conversations,
    CAST(CAST(contacted.ai_conversations * 100 AS DECIMAL(18, 4)) / nullif(contacted.new_conversations, 0) AS DECIMAL(9, 2)) AS ai_involvement_pct,
    CAST(CAST(contacted.ai_resolved * 100 AS DECIMAL(18, 4)) / nullif(contacted.ai_conversations, 0) AS DECIMAL(9, 2)) AS ai_resolution_pct,
    CAST(CAST(contacted.ai_resolved * 100 AS DECIMAL(18, 4)) / nullif(contacted.new_conversations, 0) AS DECIMAL(9, 2)) AS ai_automation_pct,
    coalesce(usage.admin_logins, 0) AS admin_logins,
    coalesce(active.active_admins, 0) AS active_admins,
    coalesce(active.active_admins_7d, 0) AS active_admins_7d,
    coalesce(active.active_admins_28d, 0) AS active_admins_28d,
    plans.plan_id,
    plans.subscription_status,
    plans.seats,
    CAST(CAST(coalesce(active.active_admins_28d, 0) * 100 AS DECIMAL(18, 4)) / nullif(plans.seats, 0) AS DECIMAL(9, 2)) AS seat_utilization_pct,
    plans.mrr_minor,
    plans.currency AS mrr_currency,
    coalesce(oltp.oltp_conversations, 0) AS oltp_conversations,
    coalesce(oltp.oltp_conversations, 0) - coalesce(usage.start_events, 0) AS reconciliation_delta
FROM days
LEFT JOIN usage ON usage.company_id = days.company_id AND usage.report_date = days.report_date
LEFT JOIN messages ON messages.company_id = days.company_id AND messages.report_date = days.report_date
LEFT JOIN active ON active.company_id = days.company_id AND active.report_date = days.report_date
LEFT JOIN begun ON begun.company_id = days.company_id AND begun.report_date = days.report_date
LEFT JOIN contacted ON contacted.company_id = days.company_id AND contacted.report_date = days.report_date
LEFT JOIN closed ON closed.company_id = days.company_id AND closed.report_date = days.report_date
LEFT JOIN rated ON rated.company_id = days.company_id AND rated.report_date = days.report_date
LEFT JOIN requested ON requested.company_id = days.company_id AND requested.report_date = days.report_date
LEFT JOIN oltp ON oltp.company_id = days.company_id AND oltp.report_date = days.report_date
LEFT JOIN core.company_plans AS plans
       ON plans.company_id = days.company_id
      AND plans.valid_from < days.day_end
      AND (plans.valid_to IS NULL OR plans.valid_to >= days.day_end)
