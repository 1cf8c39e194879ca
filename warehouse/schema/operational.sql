-- The operational database that the nightly batch copies: customers, plans, billing and teammates.
--
-- One text for PostgreSQL and for SQLite. Ids are opaque text, money is integer minor units (cents)
-- with an ISO 4217 currency beside it, times are TIMESTAMPTZ in PostgreSQL and ISO-8601 text in UTC
-- (`2026-11-20T21:04:05.123456Z`) in SQLite, dates are `2026-11-20`, booleans in SQLite are 0 and 1.
-- A column that the batch reads may be a view or have more columns beside it; a missing one is an
-- error that names it.

CREATE TABLE companies (
    company_id         TEXT PRIMARY KEY,   -- the paying tenant: what a write key stands for
    name               TEXT NOT NULL,
    created_at         TIMESTAMPTZ NOT NULL,
    signed_up_at       TIMESTAMPTZ,
    industry           TEXT,
    size_employees     BIGINT,
    website            TEXT,
    country            TEXT,               -- ISO 3166 alpha-2
    timezone           TEXT NOT NULL,      -- IANA name such as `America/New_York`; decides the business day
    reporting_currency TEXT,               -- ISO 4217
    region             TEXT,
    owner_admin_id     TEXT,
    status             TEXT NOT NULL,      -- active, trial, churned, suspended
    stripe_customer_id TEXT,
    updated_at         TIMESTAMPTZ NOT NULL,
    deleted_at         TIMESTAMPTZ
);

CREATE TABLE plans (
    plan_id                 TEXT PRIMARY KEY,
    product_id              TEXT,
    name                    TEXT NOT NULL,
    tier_rank               BIGINT NOT NULL,   -- 0 = free; higher is larger
    billing_interval        TEXT NOT NULL,     -- day, week, month, year
    interval_count          BIGINT NOT NULL,
    currency                TEXT NOT NULL,
    unit_amount_minor       BIGINT NOT NULL,   -- per unit and billing interval
    usage_type              TEXT NOT NULL,     -- licensed, metered
    included_seats          BIGINT,
    included_conversations  BIGINT,
    included_ai_resolutions BIGINT,
    overage_unit_minor      BIGINT,
    active                  BOOLEAN NOT NULL,
    created_at              TIMESTAMPTZ NOT NULL,
    updated_at              TIMESTAMPTZ NOT NULL
);

CREATE TABLE subscriptions (
    subscription_id      TEXT PRIMARY KEY,
    company_id           TEXT NOT NULL,
    status               TEXT NOT NULL,    -- incomplete, incomplete_expired, trialing, active, past_due, canceled, unpaid, paused
    start_date           TIMESTAMPTZ NOT NULL,
    trial_start          TIMESTAMPTZ,
    trial_end            TIMESTAMPTZ,
    current_period_start TIMESTAMPTZ,
    current_period_end   TIMESTAMPTZ,
    billing_cycle_anchor TIMESTAMPTZ,
    cancel_at            TIMESTAMPTZ,
    cancel_at_period_end BOOLEAN NOT NULL,
    canceled_at          TIMESTAMPTZ,
    ended_at             TIMESTAMPTZ,
    collection_method    TEXT,
    created_at           TIMESTAMPTZ NOT NULL,
    updated_at           TIMESTAMPTZ NOT NULL
);

CREATE TABLE subscription_items (
    item_id         TEXT PRIMARY KEY,
    subscription_id TEXT NOT NULL,
    plan_id         TEXT NOT NULL,
    quantity        BIGINT NOT NULL,       -- seats, for a licensed plan
    created_at      TIMESTAMPTZ NOT NULL,
    updated_at      TIMESTAMPTZ NOT NULL,
    deleted_at      TIMESTAMPTZ
);

-- Exact history of what a subscription's plan was; a subscription without rows here never changed.
CREATE TABLE subscription_changes (
    change_id       TEXT PRIMARY KEY,
    subscription_id TEXT NOT NULL,
    changed_at      TIMESTAMPTZ NOT NULL,  -- the new plan holds from this very microsecond
    old_plan_id     TEXT,
    new_plan_id     TEXT NOT NULL,
    old_quantity    BIGINT,
    new_quantity    BIGINT NOT NULL
);

CREATE TABLE discounts (
    discount_id      TEXT PRIMARY KEY,
    subscription_id  TEXT NOT NULL,
    percent_off      BIGINT,               -- whole percent; either this or amount_off_minor
    amount_off_minor BIGINT,
    currency         TEXT,
    starts_at        TIMESTAMPTZ NOT NULL,
    ends_at          TIMESTAMPTZ,
    duration         TEXT NOT NULL         -- once, repeating, forever
);

CREATE TABLE invoices (
    invoice_id             TEXT PRIMARY KEY,
    company_id             TEXT NOT NULL,
    subscription_id        TEXT,
    number                 TEXT,
    status                 TEXT NOT NULL,  -- draft, open, paid, void, uncollectible
    currency               TEXT NOT NULL,
    subtotal_minor         BIGINT NOT NULL,
    tax_minor              BIGINT NOT NULL,
    total_minor            BIGINT NOT NULL,
    amount_due_minor       BIGINT NOT NULL,
    amount_paid_minor      BIGINT NOT NULL,
    amount_remaining_minor BIGINT NOT NULL,
    period_start           TIMESTAMPTZ,
    period_end             TIMESTAMPTZ,
    created_at             TIMESTAMPTZ NOT NULL,
    finalized_at           TIMESTAMPTZ,
    due_date               TIMESTAMPTZ,
    paid_at                TIMESTAMPTZ,
    attempt_count          BIGINT NOT NULL,
    billing_reason         TEXT
);

CREATE TABLE invoice_line_items (
    line_id                         TEXT PRIMARY KEY,
    invoice_id                      TEXT NOT NULL,
    subscription_item_id            TEXT,
    plan_id                         TEXT,
    quantity                        BIGINT,
    unit_amount_excluding_tax_minor BIGINT,
    amount_minor                    BIGINT NOT NULL,
    proration                       BOOLEAN NOT NULL,
    period_start                    TIMESTAMPTZ,
    period_end                      TIMESTAMPTZ,
    type                            TEXT NOT NULL   -- subscription, invoiceitem
);

CREATE TABLE payments (
    payment_id   TEXT PRIMARY KEY,
    invoice_id   TEXT NOT NULL,
    amount_minor BIGINT NOT NULL,
    currency     TEXT NOT NULL,
    status       TEXT NOT NULL,            -- succeeded, failed, pending
    failure_code TEXT,
    created_at   TIMESTAMPTZ NOT NULL
);

CREATE TABLE refunds (
    refund_id    TEXT PRIMARY KEY,
    payment_id   TEXT NOT NULL,
    amount_minor BIGINT NOT NULL,
    created_at   TIMESTAMPTZ NOT NULL
);

CREATE TABLE admins (
    admin_id          TEXT PRIMARY KEY,    -- a teammate of the company
    company_id        TEXT NOT NULL,
    name              TEXT NOT NULL,
    email_hash        TEXT,
    job_title         TEXT,
    role              TEXT,
    has_inbox_seat    BOOLEAN NOT NULL,
    away_mode_enabled BOOLEAN NOT NULL,
    created_at        TIMESTAMPTZ NOT NULL,
    deactivated_at    TIMESTAMPTZ,
    last_login_at     TIMESTAMPTZ
);

CREATE TABLE teams (
    team_id             TEXT PRIMARY KEY,
    company_id          TEXT NOT NULL,
    name                TEXT NOT NULL,
    distribution_method TEXT
);

CREATE TABLE team_admins (
    team_id   TEXT NOT NULL,
    admin_id  TEXT NOT NULL,
    joined_at TIMESTAMPTZ NOT NULL,
    left_at   TIMESTAMPTZ,
    PRIMARY KEY (team_id, admin_id, joined_at)
);

CREATE TABLE contacts (
    contact_id     TEXT PRIMARY KEY,       -- a customer of the company
    company_id     TEXT NOT NULL,
    role           TEXT NOT NULL,          -- user, lead, visitor
    external_id    TEXT,
    created_at     TIMESTAMPTZ NOT NULL,
    last_seen_at   TIMESTAMPTZ,
    country        TEXT,
    unsubscribed   BOOLEAN NOT NULL,
    merged_into_id TEXT,
    deleted_at     TIMESTAMPTZ
);

-- Control total: reconciles the events with what the application itself counted.
CREATE TABLE conversations (
    conversation_id TEXT PRIMARY KEY,
    company_id      TEXT NOT NULL,
    created_at      TIMESTAMPTZ NOT NULL,
    state           TEXT NOT NULL,         -- open, closed, snoozed
    updated_at      TIMESTAMPTZ NOT NULL
);

CREATE TABLE fx_rates_daily (
    date   DATE NOT NULL,
    base   TEXT NOT NULL,
    quote  TEXT NOT NULL,
    rate   NUMERIC(18, 8) NOT NULL,        -- 1 base = rate quote
    source TEXT,
    PRIMARY KEY (date, base, quote)
);
