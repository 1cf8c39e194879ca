"""The first command of the README on an empty directory, and the same command again."""

import re
import sys
import textwrap
import time
from zoneinfo import ZoneInfo

import pyarrow.compute as pc
import pytest

import readers
from house import BINARIES
from processes import Process, run, say
from waiting import eventually

ANY_PORTS = {
    f"HEADWATER__PORTS__{name}": "0"
    for name in ("HTTP", "HTTP_ADMIN", "QUIC", "QUIC_ADMIN", "SQL", "SQL_ADMIN")
}
# The development build is many times slower than the release build that people run.
FIRST_START_WITHIN_S = 1200
SECOND_START_WITHIN_S = 300


def quickstart(data, within_s):
    started = time.monotonic()
    done = run(
        [BINARIES / "headwater", "--exit", "--data-dir", data],
        environment=ANY_PORTS,
        directory=data.parent,
        within_s=within_s,
    )
    say(f"quickstart took {time.monotonic() - started:.0f} s")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


def conservation_line(output):
    """Returns the numbers of `sent N = stored N + duplicate N + quarantined N`."""
    for line in output.splitlines():
        words = line.lower()
        if "sent" in words and "stored" in words and "duplicate" in words and "quarantined" in words:
            numbers = [int(re.sub(r"[,_ ]", "", n)) for n in re.findall(r"\d[\d,_]*", line)]
            if len(numbers) >= 4:
                return numbers[:4]
    raise AssertionError(f"no conservation line in:\n{output[-4000:]}")


def copies_recognised(output):
    """Returns the numbers of `copies recognised N by the agent, N by message id in the tables`."""
    (line,) = [line for line in output.splitlines() if "copies recognised" in line]
    return [int(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?= by)", line)]


@pytest.fixture(scope="module")
def first_start(tmp_path_factory):
    data = tmp_path_factory.mktemp("quickstart") / "data"
    return data, quickstart(data, FIRST_START_WITHIN_S)


def test_conservation_adds_up(first_start):
    _, output = first_start
    sent, stored, duplicate, quarantined = conservation_line(output)
    assert sent == stored + duplicate + quarantined
    assert sent > 100_000 and duplicate > 0 and quarantined > 0
    by_agent, in_tables = copies_recognised(output)
    assert by_agent > 0 and in_tables > 0 and by_agent + in_tables == duplicate
    say(f"sent {sent} = stored {stored} + duplicate {duplicate} + quarantined {quarantined}")


def test_conservation_equals_what_pyiceberg_counts(first_start):
    data, output = first_start
    sent, stored, duplicate, quarantined = conservation_line(output)
    raw = readers.rows_of(readers.iceberg_table(data, "raw.events"), "company_id", "message_id")
    distinct = raw.group_by(["company_id", "message_id"]).aggregate([]).num_rows
    assert distinct == stored
    by_agent, in_tables = copies_recognised(output)
    assert raw.num_rows - distinct == in_tables == duplicate - by_agent
    assert readers.iceberg_table(data, "raw.quarantine").scan().count() == quarantined


def test_rows_equal_distinct_positions(first_start):
    data, _ = first_start
    columns = ["_agent_id", "_epoch", "_sequence"]
    raw = readers.rows_of(readers.iceberg_table(data, "raw.events"), *columns)
    assert raw.group_by(columns).aggregate([]).num_rows == raw.num_rows


def test_every_report_has_rows_for_three_days(first_start):
    data, _ = first_start
    for name in ("company_day", "admin_day", "conversation"):
        report = readers.rows_of(readers.iceberg_table(data, f"reports.{name}"), "report_date")
        assert len(set(report["report_date"].to_pylist())) >= 3, name


def test_output_says_how_to_connect(first_start):
    _, output = first_start
    for text in ("jdbc:arrow-flight-sql://", "demo-write-key", "demo", "curl"):
        assert text in output, text


def test_second_start_reuses_the_data(first_start):
    data, _ = first_start

    def rows():
        # Each start may add to its own book of runs.
        return {
            name: table.scan().count()
            for name, table in readers.iceberg_tables(data).items()
            if not name.startswith("system.")
        }

    before = rows()
    quickstart(data, SECOND_START_WITHIN_S)
    assert rows() == before


@pytest.fixture(scope="module")
def served(first_start, logs):
    """The quickstart as a person has it: it serves, and says how to connect."""
    data, _ = first_start
    process = Process(
        "headwater",
        [BINARIES / "headwater", "--data-dir", data],
        logs / "quickstart.log",
        environment=ANY_PORTS,
        directory=data.parent,
    )

    def output():
        text = process.log_path.read_text()
        if not process.is_running():
            raise AssertionError(f"the quickstart ended:\n{process.tail()}")
        return text if "Serving until Ctrl-C" in text else None

    yield eventually("the quickstart serves", output, within_s=SECOND_START_WITHIN_S)
    assert process.stop() == 0, process.tail()


def printed(output, start):
    """Returns the line that begins with `start`, as one would copy it."""
    found = [line.strip() for line in output.splitlines() if line.strip().startswith(start)]
    assert len(found) == 1, f"{len(found)} lines begin with `{start}`:\n{output}"
    return found[0]


def printed_python(output):
    lines = output.splitlines()
    first = next(i for i, line in enumerate(lines) if "from adbc_driver_flightsql" in line)
    last = next(i for i in range(first, len(lines)) if not lines[i].strip())
    return textwrap.dedent("\n".join(lines[first:last]))


def test_printed_commands_work_as_they_are(served):
    """curl, then the Python snippet, until the event of one's own is among the counts."""
    sent = run(["bash", "-c", printed(served, "curl")])
    assert sent.returncode == 0 and '"success":true' in sent.stdout.replace(" ", ""), sent

    def counted():
        asked = run([sys.executable, "-c", printed_python(served)])
        assert asked.returncode == 0, asked.stderr[-2000:]
        return "Hello Headwater" in asked.stdout

    eventually("the event of one's own is counted", counted, within_s=60)


@pytest.mark.parametrize("driver", sorted(readers.JDBC_DRIVERS))
def test_printed_jdbc_url_works_as_it_is(served, driver):
    prepared = (
        "SELECT count(*) FROM raw.events "
        "WHERE source_id <> ? AND _sequence >= ? AND received_at >= ? AND event_name <> ?",
        *("none", "1", "2020-01-01T00:00:00Z", "none"),
    )
    seen = readers.jdbc_by_url(driver, printed(served, "jdbc:arrow-flight-sql://"), prepared)
    assert seen["prepared"]["count"] > 100_000
    assert seen["million"]["rows"] == 1_000_000


def test_a_night_brings_events_of_ones_own_into_the_report(first_start, served):
    """While it serves, as the text after the start says."""
    data, _ = first_start
    sent = run(["bash", "-c", printed(served, "curl")])
    assert sent.returncode == 0, sent

    def arrived():
        raw = readers.rows_of(readers.iceberg_table(data, "raw.events"), "source_id", "company_id", "event_time")
        return raw.filter(pc.equal(raw["source_id"], "demo")).to_pylist() or None

    own = eventually("the event of one's own is committed", arrived, within_s=60)[-1]
    companies = readers.rows_of(readers.iceberg_table(data, "ops.companies"), "company_id", "timezone")
    zones = dict(zip(companies["company_id"].to_pylist(), companies["timezone"].to_pylist(), strict=True))
    day = own["event_time"].astimezone(ZoneInfo(zones[own["company_id"]])).date()
    night = run(
        [BINARIES / "headwater", "night", "--date", str(day), "--data-dir", data],
        within_s=SECOND_START_WITHIN_S,
    )
    assert night.returncode == 0, night.stdout + night.stderr
    assert f"reports.company_day of {day}" in night.stdout
    report = readers.rows_of(
        readers.iceberg_table(data, "reports.company_day"), "company_id", "report_date", "events"
    )
    rows = [
        row
        for row in report.to_pylist()
        if row["company_id"] == own["company_id"] and row["report_date"] == day
    ]
    assert len(rows) == 1 and rows[0]["events"] >= 1, rows
