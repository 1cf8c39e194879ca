"""The night turns events and the operational database into reports, and doing it again changes nothing."""

from decimal import Decimal

import psycopg
import pyarrow.compute as pc

import readers
from desk import ADMIN, FIRST_RESPONSE_S

REPORTS = ("reports.company_day", "reports.admin_day", "reports.conversation")


def test_core_events_hold_each_message_once(after_night, after_kills, house):
    ids = readers.rows_of(readers.iceberg_table(house.data, "core.events"), "company_id", "message_id")
    rows = [tuple(row.values()) for row in ids.to_pylist()]
    assert len(rows) == len(set(rows))
    raw = readers.rows_of(readers.iceberg_table(house.data, "raw.events"), "company_id", "message_id")
    assert set(rows) == {tuple(row.values()) for row in raw.to_pylist()}


def test_copies_are_counted(after_night, house):
    raw = readers.iceberg_table(house.data, "raw.events").scan().count()
    core = readers.rows_of(readers.iceberg_table(house.data, "core.events"), "copies")
    assert pc.sum(core["copies"]).as_py() == raw


def test_operational_tables_equal_the_database(after_night, house, operational_database):
    with psycopg.connect(operational_database) as connection:
        for table in ("companies", "plans", "subscriptions", "invoices", "admins", "teams", "contacts"):
            (expected,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            assert expected > 0, f"the sample has no {table}"
            assert readers.iceberg_table(house.data, f"ops.{table}").scan().count() == expected, table


def test_every_report_has_rows_of_the_companies_that_sent(after_night, house, companies):
    for name in REPORTS:
        table = readers.iceberg_table(house.data, name)
        found = set(readers.rows_of(table, "company_id")["company_id"].to_pylist())
        assert {company["id"] for company in companies} <= found, name


def test_company_day_shows_what_was_sent(after_night, house, companies):
    """The report equals a count of the events that this test makes itself, and has the billing."""
    events = readers.rows_of(readers.iceberg_table(house.data, "core.events")).to_pylist()
    assert {event["report_date"] for event in events} == {after_night.day}
    report = readers.rows_of(readers.iceberg_table(house.data, "reports.company_day")).to_pylist()
    for company in companies:
        own = [event for event in events if event["company_id"] == company["id"]]
        rows = [
            row
            for row in report
            if row["company_id"] == company["id"] and row["report_date"] == after_night.day
        ]
        assert len(rows) == 1, rows
        expected = usage_of(own)
        assert {name: rows[0][name] for name in expected} == expected, company["id"]
        assert rows[0]["plan_id"] and rows[0]["seats"] > 0 and rows[0]["mrr_minor"] is not None, rows


def usage_of(events):
    """Returns some columns of `reports.company_day` by the plainest count."""

    def named(name):
        return [event for event in events if event["event_name"] == name]

    ratings = [event["rating"] for event in named("Conversation Rated")]
    satisfied = sum(rating >= 4 for rating in ratings)
    started = {event["conversation_id"] for event in named("Conversation Started")}
    replied = {event["conversation_id"] for event in named("Conversation Replied")}
    signing = ("Signed In", "Signed Out")
    return {
        "events": len(events),
        # One whose start was invalid counts from its first event on.
        "conversations_started": len({e["conversation_id"] for e in events if e["conversation_id"]}),
        "new_conversations": len(started),
        "closed_conversations": len(named("Conversation Closed")),
        "admin_replies": len(replied),
        "contact_replies": len(started),
        "first_responses": len(started & replied),
        "median_first_response_s": FIRST_RESPONSE_S,
        "ratings": len(ratings),
        "csat_pct": round(Decimal(100 * satisfied) / len(ratings), 2),
        "admin_logins": len(named("Signed In")),
        "active_admins": len(
            {e["actor_id"] for e in events if e["actor_type"] == ADMIN and e["event_name"] not in signing}
        ),
    }


def test_a_second_night_changes_no_row_and_no_snapshot(after_night, house):
    def state():
        tables = readers.iceberg_tables(house.data)
        return {
            name: (table.metadata.current_snapshot_id, table.scan().to_arrow())
            for name, table in tables.items()
            # What each night did is recorded each night.
            if not name.startswith("system.")
        }

    before = state()
    done = house.night(after_night.day)
    assert done.returncode == 0, done.stderr[-4000:]
    after = state()
    assert before.keys() == after.keys()
    for name, (snapshot, rows) in before.items():
        assert after[name][0] == snapshot, f"the second night wrote a snapshot of {name}"
        assert after[name][1].equals(rows), f"the second night changed rows of {name}"


def test_runs_record_their_snapshots(after_night, house):
    runs = readers.rows_of(readers.iceberg_table(house.data, "system.runs")).to_pylist()
    assert runs, "no run was recorded"
