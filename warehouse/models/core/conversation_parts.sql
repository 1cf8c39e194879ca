-- View `conversation_parts`: one row per event of a conversation, classified once for all models.
-- Order of events everywhere: event_time, part_id, message_id.
SELECT
    company_id,
    conversation_id,
    message_id,
    coalesce(part_id, '') AS part_id,
    event_time,
    report_date,
    event_name,
    CASE
        WHEN actor_type IN ('contact_user', 'contact_lead', 'visitor', 'contact', 'user', 'lead') THEN 'contact'
        ELSE actor_type
    END AS actor,
    -- Who did it; the property `admin_id` may name somebody else.
    CASE WHEN actor_type = 'admin' THEN coalesce(actor_id, admin_id) END AS admin_id,
    CASE WHEN event_name = 'Conversation Assigned' AND json_text(properties, 'assigned_to_type') = 'team'
         THEN coalesce(team_id, json_text(properties, 'assigned_to_id')) ELSE team_id END AS team_id,
    contact_id,
    channel,
    rating,
    plan_id_at_event,
    json_text(properties, 'initiated_type') AS initiated_type,
    json_text(properties, 'resolution_state') AS resolution_state,
    -- What an admin wrote and a contact can read; answers that an AI wrote in an admin's name are not.
    actor_type = 'admin'
        AND event_name = 'Conversation Replied'
        AND coalesce(json_text(properties, 'is_visible'), 'true') = 'true'
        AND coalesce(json_text(properties, 'is_ai_answer'), 'false') <> 'true' AS is_admin_reply,
    actor_type IN ('contact_user', 'contact_lead', 'visitor', 'contact', 'user', 'lead')
        AND (event_name = 'Conversation Started'
             OR (event_name = 'Conversation Replied' AND coalesce(part_type, 'comment') = 'comment')) AS is_contact_comment,
    -- Metric 2 also counts an assignment that carries a text.
    actor_type = 'admin'
        AND ((event_name = 'Conversation Replied'
              AND coalesce(part_type, 'comment') = 'comment'
              AND coalesce(json_text(properties, 'is_visible'), 'true') = 'true'
              AND coalesce(json_text(properties, 'is_ai_answer'), 'false') <> 'true')
             OR (event_name = 'Conversation Assigned'
                 AND coalesce(json_text(properties, 'body_length'), '0') <> '0')) AS is_admin_response,
    event_name IN ('Conversation Replied', 'Conversation Assigned', 'Conversation Unassigned', 'Conversation Noted',
                   'Conversation Closed', 'Conversation Reopened', 'Conversation Snoozed', 'Conversation Unsnoozed') AS is_part,
    CASE event_name
        WHEN 'Conversation Started' THEN 'open'
        WHEN 'Conversation Reopened' THEN 'open'
        WHEN 'Conversation Unsnoozed' THEN 'open'
        WHEN 'Conversation Closed' THEN 'closed'
        WHEN 'Conversation Snoozed' THEN 'snoozed'
    END AS new_state,
    CASE event_name
        WHEN 'Conversation Assigned' THEN coalesce(json_text(properties, 'assigned_to_type'), 'admin')
        WHEN 'Conversation Unassigned' THEN 'nobody'
    END AS new_assignee_type,
    CASE event_name
        WHEN 'Conversation Assigned' THEN coalesce(json_text(properties, 'assigned_to_id'), '')
        WHEN 'Conversation Unassigned' THEN ''
    END AS new_assignee_id,
    CASE event_name
        WHEN 'Handling Paused' THEN true
        WHEN 'Handling Resumed' THEN false
    END AS new_is_paused
FROM core.events
WHERE conversation_id IS NOT NULL
