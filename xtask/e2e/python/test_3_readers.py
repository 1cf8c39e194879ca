"""Every reader sees the same: PyIceberg from the files, Python ADBC and JDBC through Flight SQL."""

from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlparse

import pytest

import readers
from processes import say

# A date far from both ends of time: drivers that mix up milliseconds and microseconds miss it.
PREPARED_SQL = (
    "SELECT count(*) FROM raw.events "
    "WHERE company_id = ? AND _sequence >= ? AND received_at >= ? AND event_name = ?"
)


@pytest.fixture(scope="session")
def expected_rows(served):
    """Number of rows of each table by PyIceberg."""
    rows = {name: table.scan().count() for name, table in readers.iceberg_tables(served.data).items()}
    assert len(rows) >= 10, rows
    say(f"{len(rows)} tables, {sum(rows.values())} rows by PyIceberg")
    return rows


@pytest.fixture(scope="session")
def prepared(served, companies):
    """The prepared query's parameters and the count that a scan of the files gives for them."""
    table = readers.iceberg_table(served.data, "raw.events")
    columns = ("company_id", "_sequence", "received_at", "event_name")
    events = readers.rows_of(table, *columns).to_pylist()
    company = companies[0]["id"]
    moments = sorted(event["received_at"] for event in events)
    # Whole milliseconds: what a driver can bind.
    moment = moments[len(moments) // 2].replace(microsecond=0).astimezone(timezone.utc)
    least = 50
    count = sum(
        event["company_id"] == company
        and event["_sequence"] >= least
        and event["received_at"] >= moment
        and event["event_name"] == "Conversation Replied"
        for event in events
    )
    assert 0 < count < len(events)
    return (company, least, moment, "Conversation Replied"), count


def test_pyiceberg_reads_every_row_of_every_table(served, expected_rows):
    for name, table in readers.iceberg_tables(served.data).items():
        assert table.scan().to_arrow().num_rows == expected_rows[name], name


def test_adbc_counts_equal(served, expected_rows):
    with readers.flight_sql(served.port, served.ca) as connection:
        for name, expected in expected_rows.items():
            schema, table = name.split(".")
            (row,) = readers.query(connection, f'SELECT count(*) FROM "{schema}"."{table}"')
            assert row == (expected,), name


def test_every_reader_sees_the_same_errors_of_the_quarantine(served, tmp_path):
    """They are a list of structs."""
    columns = ("quarantine_id", "errors")

    def by_id(rows):
        return {row["quarantine_id"]: row["errors"] for row in rows.to_pylist()}

    table = readers.iceberg_table(served.data, "raw.quarantine")
    expected = by_id(readers.rows_of(table, *columns))
    assert expected and all(error["keyword"] for errors in expected.values() for error in errors)
    head = Path(urlparse(table.metadata_location).path)
    assert by_id(readers.chdb_rows_of(head, columns, tmp_path / "chdb.arrow")) == expected
    with readers.flight_sql(served.port, served.ca) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT {', '.join(columns)} FROM raw.quarantine")
        assert by_id(cursor.fetch_arrow_table()) == expected


def test_events_view_is_deduplicated_and_complete(served):
    raw = readers.rows_of(readers.iceberg_table(served.data, "raw.events"), "company_id", "message_id")
    distinct = {tuple(row.values()) for row in raw.to_pylist()}
    with readers.flight_sql(served.port, served.ca) as connection:
        (row,) = readers.query(
            connection, "SELECT count(*), count(DISTINCT message_id) FROM events"
        )
    assert row == (len(distinct), len(distinct))


def test_conservation_by_sql(served):
    """The check of the README: rows equal distinct positions."""
    with readers.flight_sql(served.port, served.ca) as connection:
        (row,) = readers.query(
            connection,
            "SELECT count(*) AS rows, (SELECT count(*) FROM (SELECT DISTINCT _agent_id, _epoch, _sequence "
            "FROM raw.events)) AS positions FROM raw.events",
        )
    assert row[0] == row[1] > 0


def test_adbc_get_objects_lists_every_table_with_its_columns(served, expected_rows):
    with readers.flight_sql(served.port, served.ca) as connection:
        catalogs = connection.adbc_get_objects(depth="all").read_all().to_pylist()
    found = {
        f"{schema['db_schema_name']}.{table['table_name']}": table["table_columns"]
        for catalog in catalogs
        for schema in catalog["catalog_db_schemas"]
        for table in schema["db_schema_tables"]
    }
    assert expected_rows.keys() <= found.keys()
    for name, table in readers.iceberg_tables(served.data).items():
        columns = [column["column_name"] for column in found[name]]
        assert columns == [field.name for field in table.schema().fields], name


def test_adbc_parameters(served, prepared):
    (company, least, moment, event_name), expected = prepared
    with readers.flight_sql(served.port, served.ca) as connection:
        sql = PREPARED_SQL
        assert readers.query(connection, sql, (company, least, moment, event_name)) == [(expected,)]
        assert readers.query(connection, sql, (company, least, moment, "no such value")) == [(0,)]


def test_wrong_password_is_refused(served):
    with pytest.raises(Exception, match="(?i)unauthenticated"):
        with readers.flight_sql(served.port, served.ca, password="wrong") as connection:
            readers.query(connection, "SELECT 1")


def test_statements_that_write_are_refused(served):
    statements = [
        "CREATE TABLE t (a int)",
        "DROP TABLE raw.events",
        "INSERT INTO raw.events SELECT * FROM raw.events",
        "EXPLAIN ANALYZE INSERT INTO raw.events SELECT * FROM raw.events",
        "COPY raw.events TO 'out.parquet'",
        "SET datafusion.execution.batch_size = 1",
    ]
    with readers.flight_sql(served.port, served.ca) as connection:
        for statement in statements:
            with pytest.raises(Exception):
                readers.query(connection, statement)


@pytest.fixture(scope="session", params=sorted(readers.JDBC_DRIVERS))
def seen_by_jdbc(request, served, prepared):
    """What the Java program saw through one driver, from a client in another time zone."""
    (company, least, moment, event_name), _ = prepared
    instant = moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")
    arguments = (PREPARED_SQL, company, str(least), instant, event_name)
    return readers.jdbc(request.param, served.port, served.ca, arguments)


def test_there_is_a_jdbc_driver():
    assert "18.3.0" in readers.JDBC_DRIVERS


def test_jdbc_counts_equal(seen_by_jdbc, expected_rows):
    rows = {f"{table['schema']}.{table['name']}": table.get("rows") for table in seen_by_jdbc["tables"]}
    assert {name: rows.get(name) for name in expected_rows} == expected_rows


def test_jdbc_metadata_is_complete(seen_by_jdbc, served):
    seen = seen_by_jdbc
    assert seen["catalogs"] == ["headwater"]
    assert {"raw", "ops", "core", "reports", "system", "public"} <= set(seen["schemas"])
    assert seen["quote"] == '"' and seen["readOnly"] is True
    assert seen["tableTypes"] and seen["typeInfoColumns"] >= 18
    tables = {f"{table['schema']}.{table['name']}": table for table in seen["tables"]}
    assert "public.events" in tables
    for name, table in readers.iceberg_tables(served.data).items():
        columns = [column.split(" ")[0] for column in tables[name]["columns"]]
        assert columns == [field.name for field in table.schema().fields], name
        assert tables[name]["columnsByEscapedName"] == len(columns), name


def test_jdbc_prepared_statement(seen_by_jdbc, prepared):
    _, expected = prepared
    assert seen_by_jdbc["prepared"] == {"parameters": 4, "count": expected, "countOfOther": 0}


def test_jdbc_reads_a_million_rows(seen_by_jdbc):
    assert seen_by_jdbc["million"] == {"rows": 1_000_000, "sum": 500_000_500_000}


def test_jdbc_shows_first_rows_of_a_wide_table(seen_by_jdbc):
    assert seen_by_jdbc["unreadableColumns"] == []
    assert len(seen_by_jdbc["firstRows"]) == 200


def test_jdbc_error_names_the_column(seen_by_jdbc):
    assert "no_such_column" in seen_by_jdbc["badQuery"]


def test_events_sent_now_are_in_the_view_at_once(served, house, companies):
    """Freshness: what is committed after the night is in `events`, without another night."""
    import base64
    import requests

    from waiting import eventually

    message_id = f"fresh-{datetime.now(timezone.utc).timestamp()}"
    body = {
        "batch": [
            {"type": "track", "event": "Feature Used", "userId": "u", "messageId": message_id, "properties": {"feature_key": "e2e"}}
        ]
    }
    token = base64.b64encode(b"key-0:").decode()
    answer = requests.post(house.http_url + "/v1/batch", json=body, headers={"Authorization": f"Basic {token}"}, timeout=20)
    assert answer.status_code == 200, answer.text
    with readers.flight_sql(served.port, served.ca) as connection:
        eventually(
            "the event is in the view",
            lambda: readers.query(connection, f"SELECT company_id FROM events WHERE message_id = '{message_id}'")
            == [(companies[0]["id"],)],
            within_s=30,
        )
