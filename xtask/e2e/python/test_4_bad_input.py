"""A mistake costs one clear line that says what to do: nothing starts, nothing is lost."""

import copy
import shutil
import socket

import pytest

from house import BINARIES, House, free_port
from processes import run

KEYS = [{"key": "k", "company": "c", "source": "s", "kind": "server"}]
SERVERS = ("agent", "collector", "flight-sql")
PROGRAMS = (*SERVERS, "warehouse")


@pytest.fixture(scope="module")
def idle_house(tmp_path_factory, logs):
    """Certificates and settings, but nothing runs."""
    return House(tmp_path_factory.mktemp("idle") / "house", logs / "idle", KEYS)


@pytest.fixture
def settings(idle_house):
    return copy.deepcopy(idle_house.sections(KEYS))


def start(house, program, sections, *arguments):
    config = house.write_config(f"{program}-changed", sections)
    extra = arguments or (("nightly", "--date", "2026-01-01") if program == "warehouse" else ())
    return run(
        [BINARIES / f"headwater-{program}", "--config", config, *extra],
        directory=house.directory,
        within_s=60,
    )


def assert_one_clear_line(done, *words):
    """Not 0, one line of error, and in it what a person needs."""
    assert done.returncode not in (0, None), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1, f"expected one error line:\n{done.stderr}"
    assert "panicked" not in done.stderr, done.stderr
    for word in words:
        assert word in errors[0], f"`{word}` is not in: {errors[0]}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_unknown_key(idle_house, settings, program):
    settings[program].setdefault("log", {})["colour"] = "red"
    assert_one_clear_line(start(idle_house, program, settings[program]), "colour", ".toml")


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_config_file(idle_house, program):
    extra = ("nightly", "--date", "2026-01-01") if program == "warehouse" else ()
    done = run(
        [BINARIES / f"headwater-{program}", "--config", "no-such.toml", *extra],
        directory=idle_house.directory,
        within_s=60,
    )
    assert_one_clear_line(done, "no-such.toml", "--config")


@pytest.mark.parametrize("program", PROGRAMS)
def test_good_settings_pass_the_check(idle_house, settings, program):
    """So that the others fail for their reason."""
    done = start(idle_house, program, settings[program], "--check-config")
    assert done.returncode == 0, done.stderr
    assert "configuration is valid" in done.stdout


@pytest.mark.parametrize("program", SERVERS)
def test_port_in_use(idle_house, settings, program):
    section, kind = {
        "agent": ("http", socket.SOCK_STREAM),
        "collector": ("quic", socket.SOCK_DGRAM),
        "flight-sql": ("flight", socket.SOCK_STREAM),
    }[program]
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings[program][section]["listen"] = address
        assert_one_clear_line(start(idle_house, program, settings[program]), address)


@pytest.mark.parametrize("program", SERVERS)
def test_missing_certificate(idle_house, settings, program):
    settings[program]["tls"]["certificate"] = "gone.pem"
    assert_one_clear_line(start(idle_house, program, settings[program]), "gone.pem", "[tls]")


@pytest.mark.parametrize("program", ("collector", "flight-sql", "warehouse"))
def test_unreadable_catalog(idle_house, settings, program, tmp_path):
    broken = tmp_path / "catalog.db"
    broken.write_bytes(b"this is no database " * 100)
    settings[program]["catalog"]["uri"] = f"sqlite://{broken}"
    if program == "warehouse":
        # Only the catalog is wrong here.
        operational = tmp_path / "operational.db"
        made = run([BINARIES / "headwater", "operational-db", "--uri", f"sqlite://{operational}"])
        assert made.returncode == 0, made.stderr
        settings[program]["source"]["uri"] = f"sqlite://{operational}"
    done = start(idle_house, program, settings[program])
    assert_one_clear_line(done, "catalog")
    assert broken.read_bytes().startswith(b"this is no database"), "the file was overwritten"


@pytest.mark.parametrize("date", ("2026-02-30", "yesterday", "20260101x"))
def test_wrong_date(idle_house, settings, date):
    done = start(idle_house, "warehouse", settings["warehouse"], "nightly", "--date", date)
    assert_one_clear_line(done, date)


def test_unreachable_postgres(idle_house, settings):
    port = free_port()
    settings["warehouse"]["source"]["uri"] = f"postgres://me:geheim@127.0.0.1:{port}/customers"
    done = start(idle_house, "warehouse", settings["warehouse"])
    assert_one_clear_line(done, str(port))
    assert "geheim" not in done.stderr, "the password is in the error"


def test_unusable_buffer_directory(idle_house, settings, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where a directory should be")
    settings["agent"]["buffer"]["directory"] = str(blocked / "agent")
    assert_one_clear_line(start(idle_house, "agent", settings["agent"]), str(blocked))


def test_collector_of_another_ca_is_not_trusted_and_nothing_is_lost(idle_house, logs, tmp_path_factory):
    """The agent keeps accepting and keeps its events when it cannot trust the collector."""
    import requests

    from waiting import eventually

    house = House(tmp_path_factory.mktemp("foreign") / "house", logs / "foreign", KEYS)
    shutil.copy(idle_house.pki / "ca.pem", house.pki / "ca-other.pem")
    sections = house.sections(KEYS)["agent"]
    sections["tls"]["ca"] = str(house.pki / "ca-other.pem")
    house.configs["agent"] = house.write_config("agent", sections)
    try:
        house.start_and_wait("collector", "agent")
        answer = requests.post(
            house.http_url + "/v1/track",
            json={"event": "Signed In", "userId": "u", "messageId": "kept", "properties": {"method": "sso"}},
            auth=("k", ""),
            timeout=20,
        )
        assert answer.status_code == 200, answer.text
        eventually(
            "the agent says why it cannot ship",
            lambda: "certificate" in house.processes["agent"].tail(200).lower(),
        )
        # With the right CA the event arrives.
        house.kill("agent")
        house.write_configs(KEYS, None)
        house.start_and_wait("agent")
        import readers

        eventually(
            "the event is stored",
            lambda: readers.rows_of(readers.iceberg_table(house.data, "raw.events"), "message_id")["message_id"].to_pylist()
            == ["kept"],
        )
    finally:
        house.stop_all()
