"""The night turns events and the operational database into reports, and doing it again changes nothing."""

import pyarrow.compute as pc

import readers

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
    import psycopg

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


def test_company_day_counts_what_was_sent(after_night, house, companies):
    """The usage in a report is the usage that happened, by a count that this test makes itself."""
    events = readers.rows_of(
        readers.iceberg_table(house.data, "core.events"), "company_id", "event_name", "report_date"
    ).to_pylist()
    assert {event["report_date"] for event in events} == {after_night.day}
    report = readers.rows_of(readers.iceberg_table(house.data, "reports.company_day")).to_pylist()
    for company in companies:
        started = sum(
            event["company_id"] == company["id"] and event["event_name"] == "Conversation Started"
            for event in events
        )
        rows = [
            row
            for row in report
            if row["company_id"] == company["id"] and row["report_date"] == after_night.day
        ]
        assert len(rows) == 1, rows
        assert rows[0]["conversations_created"] == started, company["id"]


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
