-- `core.events`, the days in {days}: what the night adds, deduplicated against what is there.
-- The earliest copy of (company_id, message_id) wins, however long ago the others came.
WITH keys AS (
    SELECT DISTINCT company_id, message_id FROM added_events
),
candidates AS (
    SELECT {core_columns}
    FROM core.events AS e
    LEFT SEMI JOIN keys ON keys.company_id = e.company_id AND keys.message_id = e.message_id
    UNION ALL
    SELECT {raw_columns},
           e.received_at AS first_received_at,
           CAST(1 AS INT) AS copies,
           p.plan_id AS plan_id_at_event,
           p.subscription_status AS subscription_status_at_event,
           local_date(e.event_time, c.timezone) AS report_date
    FROM added_events AS e
    LEFT JOIN ops.companies AS c ON c.company_id = e.company_id
    LEFT JOIN core.company_plans AS p
           ON p.company_id = e.company_id
          AND p.valid_from <= e.event_time
          AND (p.valid_to IS NULL OR e.event_time < p.valid_to)
),
ranked AS (
    SELECT e.*,
           row_number() OVER (PARTITION BY company_id, message_id
                              ORDER BY received_at, _agent_id, _epoch, _sequence) AS winner_rank,
           sum(copies) OVER (PARTITION BY company_id, message_id) AS all_copies
    FROM candidates AS e
)
SELECT {raw_columns},
       e.received_at AS first_received_at,
       CAST(e.all_copies AS INT) AS copies,
       e.plan_id_at_event,
       e.subscription_status_at_event,
       e.report_date
FROM ranked AS e
WHERE e.winner_rank = 1
UNION ALL
SELECT {core_columns}
FROM core.events AS e
LEFT ANTI JOIN keys ON keys.company_id = e.company_id AND keys.message_id = e.message_id
WHERE CAST(e.event_time AS DATE) IN ({days})
