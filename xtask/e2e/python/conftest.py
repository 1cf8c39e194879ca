"""What the tests share: one house, one run of kills over it, one night after them.

The tests form one story (events sent under kills, the night, the readers), so the expensive parts
are fixtures of the session and each test looks at one promise.
"""

import os
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

import kills
import processes
from house import BINARIES, House
from processes import run, say

POSTGRES = os.environ.get("HEADWATER_E2E_POSTGRES")


@pytest.fixture(autouse=True, scope="session")
def no_process_survives():
    yield
    processes.kill_all()


@pytest.fixture(scope="session")
def logs():
    """Directory of the programs' logs; stays after the run."""
    directory = Path(os.environ.get("HEADWATER_E2E_LOGS", "/tmp/headwater-e2e-logs"))
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("**/*.log"):
        old.unlink()
    return directory


@pytest.fixture(scope="session")
def operational_database():
    """A database of its own on the run's PostgreSQL, filled with the sample customers."""
    assert POSTGRES, "HEADWATER_E2E_POSTGRES is not set; run `cargo xtask test --only e2e`"
    name = f"e2e_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(POSTGRES, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    uri = POSTGRES.rsplit("/", 1)[0] + f"/{name}"
    done = run([BINARIES / "headwater", "operational-db", "--uri", uri], within_s=300)
    assert done.returncode == 0, done.stderr
    say(f"sample operational database: {uri}")
    return uri


@pytest.fixture(scope="session")
def companies(operational_database):
    """Three companies of the sample with teammates and customers to write events about."""
    with psycopg.connect(operational_database) as connection:
        found = connection.execute(
            """SELECT c.company_id, c.timezone,
                      (SELECT array_agg(admin_id) FROM admins a WHERE a.company_id = c.company_id),
                      (SELECT array_agg(contact_id) FROM contacts t WHERE t.company_id = c.company_id)
               FROM companies c WHERE c.deleted_at IS NULL AND c.status = 'active'
               ORDER BY c.company_id"""
        ).fetchall()
    usable = [
        {"id": company, "timezone": zone, "admins": admins[:8], "contacts": contacts[:50]}
        for company, zone, admins, contacts in found
        if admins and contacts
    ]
    assert len(usable) >= 3, f"the sample has only {len(usable)} companies with people"
    return usable[:3]


@pytest.fixture(scope="session")
def day():
    """The day that events are about: yesterday, so that it is over."""
    return (datetime.now(timezone.utc) - timedelta(days=1)).date()


@pytest.fixture(scope="session")
def house(tmp_path_factory, logs, operational_database, companies):
    write_keys = [
        {"key": f"key-{index}", "company": company["id"], "source": "e2e", "kind": "server"}
        for index, company in enumerate(companies)
    ]
    house = House(
        tmp_path_factory.mktemp("house") / "house", logs / "house", write_keys, operational_database
    )
    yield house
    house.stop_all()


@pytest.fixture(scope="session")
def after_kills(house, companies, day):
    """Sends events while agent and collector are killed; returns the books of all senders."""
    house.start_and_wait("collector", "agent")
    return kills.send_under_kills(house, companies, day)


@pytest.fixture(scope="session")
def after_night(after_kills, house, day):
    """Runs the night after the kills."""
    say(f"the night of {day}")
    done = house.night(day)
    assert done.returncode == 0, f"the night failed:\n{done.stderr[-4000:]}"
    return SimpleNamespace(day=day, output=done.stdout + done.stderr)


@pytest.fixture(scope="session")
def served(after_night, house):
    """The Flight SQL server over everything that was stored."""
    house.start_and_wait("flight-sql")
    return SimpleNamespace(port=house.ports["flight"], ca=house.pki / "ca.pem", data=house.data)
