-- `core.conversations`: the latest state of the conversations in `touched_conversations`.
WITH parts AS (
    SELECT e.*,
           min(CASE WHEN e.is_contact_comment THEN e.event_time END)
               OVER (PARTITION BY e.company_id, e.conversation_id) AS first_contact_at
    FROM conversation_parts AS e
    LEFT SEMI JOIN touched_conversations AS t
      ON t.company_id = e.company_id AND t.conversation_id = e.conversation_id
)
SELECT
    company_id,
    conversation_id,
    coalesce(min(event_time) FILTER (WHERE event_name = 'Conversation Started'), min(event_time)) AS started_at,
    -- The business day of `started_at`: report dates grow with time inside one company.
    coalesce(min(report_date) FILTER (WHERE event_name = 'Conversation Started'), min(report_date)) AS report_date,
    coalesce(last_value(new_state ORDER BY event_time, part_id, message_id) FILTER (WHERE new_state IS NOT NULL), 'open') AS state,
    first_value(channel ORDER BY event_time, part_id, message_id) FILTER (WHERE channel IS NOT NULL) AS channel,
    first_value(initiated_type ORDER BY event_time, part_id, message_id) FILTER (WHERE initiated_type IS NOT NULL) AS initiated_type,
    last_value(contact_id ORDER BY event_time, part_id, message_id) FILTER (WHERE contact_id IS NOT NULL) AS contact_id,
    last_value(team_id ORDER BY event_time, part_id, message_id) FILTER (WHERE team_id IS NOT NULL) AS team_id,
    last_value(new_assignee_type ORDER BY event_time, part_id, message_id) FILTER (WHERE new_assignee_type IS NOT NULL) AS assignee_type,
    nullif(last_value(new_assignee_id ORDER BY event_time, part_id, message_id) FILTER (WHERE new_assignee_id IS NOT NULL), '') AS assignee_id,
    first_value(plan_id_at_event ORDER BY event_time, part_id, message_id) AS plan_id_at_start,
    min(first_contact_at) AS first_contact_at,
    min(event_time) FILTER (WHERE is_admin_response AND event_time > first_contact_at) AS first_admin_response_at,
    min(event_time) FILTER (WHERE event_name = 'Conversation Closed') AS first_closed_at,
    max(event_time) FILTER (WHERE event_name = 'Conversation Closed') AS last_closed_at,
    min(event_time) FILTER (WHERE event_name = 'Conversation Rating Requested') AS rating_requested_at,
    max(event_time) FILTER (WHERE rating IS NOT NULL AND event_name = 'Conversation Rated') AS rated_at,
    last_value(rating ORDER BY event_time, part_id, message_id) FILTER (WHERE rating IS NOT NULL AND event_name = 'Conversation Rated') AS rating,
    coalesce(bool_or(event_name IN ('AI Agent Involved', 'AI Agent Answered')), false) AS is_ai_involved,
    last_value(resolution_state ORDER BY event_time, part_id, message_id) FILTER (WHERE resolution_state IS NOT NULL) AS resolution_state,
    max(event_time) AS last_event_at,
    count(*) AS events
FROM parts
GROUP BY company_id, conversation_id
