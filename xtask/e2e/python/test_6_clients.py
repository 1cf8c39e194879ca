"""Each SDK, untouched, sends through 503, 429, resets, lost replies and a kill of the agent: what is
stored is what was sent.

SDKs that give up on a fault by themselves are in the table of `docs/agent.md`. Segment's browser library
runs in a browser, on a page of another origin.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import readers
from browser import Browser, segment_options
from faulty_proxy import FAULTS, FaultyProxy
from house import House
from processes import Process, say
from senders import HERE, NODE
from waiting import eventually, until_moment

IS_SOAK = os.environ.get("HEADWATER_SOAK") == "1"
# Four batches of the clients that send 100 at once: two faults for each leave half of the places free.
EVENTS = 2000 if IS_SOAK else 400
FAULT_TIMES = 5 if IS_SOAK else 1
PAGE_PACE_MS = 10  # as in the clients of Node.js and Python
WITHIN_S = 600 if IS_SOAK else 120

NODE_CLIENTS = ("segment-node", "segment-node-legacy", "rudder-node", "posthog-node", "jitsu")
PYTHON_CLIENTS = (
    "segment-python",
    "segment-python-gzip",
    "rudder-python",
    "posthog-python-v0",
    "posthog-python-v1",
)
BROWSER_CLIENTS = ("segment-browser",)
# Faults that an event may meet beside the outage: most SDKs give up after three retries. Segment's for
# Python has ten and puts a refused batch back behind newer events, so that any later batch may hold an
# event that has met some already: there each fault must find a place all the same.
PER_EVENT_MAX = {"segment-python": 4, "segment-python-gzip": 4}
# One SDK, two protocols: name of the test, name of the client, environment.
MODES = {"posthog-node-v1": ("posthog-node", {"POSTHOG_CAPTURE_MODE": "v1"})}
CLIENTS = (*NODE_CLIENTS, *MODES, *PYTHON_CLIENTS, *BROWSER_CLIENTS)


def write_key(name):
    # Jitsu's SDK takes no key without a colon, and Basic authorization none with one.
    return f"key-{name}:secret" if name == "jitsu" else f"key-{name}"


class Client:
    """An SDK, its process, its proxy, and what it reports."""

    def __init__(self, name, house, seed):
        self.name = name
        self.company = f"company-{name}"
        agent = ("127.0.0.1", house.ports["http"])
        self.proxy = FaultyProxy(name, agent, f"{seed}-{name}", FAULT_TIMES, PER_EVENT_MAX.get(name, 2))
        self.process = self.start(house)

    def has_sent(self):
        assert self.process.is_running(), f"{self.name} ended by itself:\n{self.process.tail()}"
        return self.proxy.requests > 0

    def close(self):
        self.proxy.close()
        self.process.kill()


class ServerClient(Client):
    """An SDK for servers, in a process of its own."""

    def start(self, house):
        name = self.name
        self.report_path = house.directory / f"{name}.json"
        client, environment = MODES.get(name, (name, {}))
        command = [sys.executable, "-u", HERE / "sdk_clients.py"]
        if client in NODE_CLIENTS:
            command = [NODE, HERE.parent / "node" / "clients.cjs"]
        return Process(
            name,
            [*command, client, self.proxy.url, write_key(name), EVENTS // 2, self.report_path],
            house.logs / f"{name}.log",
            environment,
            stdin=subprocess.PIPE,
        )

    def say(self, word):
        self.process.popen.stdin.write(f"{word}\n".encode())
        self.process.popen.stdin.flush()

    def report(self):
        assert self.process.is_running(), f"{self.name} ended by itself:\n{self.process.tail()}"
        return self.report_path.is_file() and json.loads(self.report_path.read_text())


class BrowserClient(Client):
    """Segment's browser library on a page in a browser. It has no flush: it goes on while the page is
    open; what it says of errors is in the browser's log."""

    def start(self, house):
        self.browser = Browser(self.name, house.directory / self.name, house.logs / f"{self.name}.log")
        self.browser.order("load", write_key(self.name), segment_options(self.proxy.address))
        self.halves = [self.browser.order("track", EVENTS // 2, PAGE_PACE_MS)]
        return self.browser.process

    def say(self, word):
        if word == "second half":
            self.halves.append(self.browser.order("track", EVENTS // 2, PAGE_PACE_MS))

    def report(self):
        assert self.process.is_running(), f"{self.name} ended by itself:\n{self.process.tail()}"
        ids = [half.result(timeout=0) for half in self.halves]
        return {"sent": sum(ids, []), "errors": [f"see {self.process.log_path}"]}

    def close(self):
        self.proxy.close()
        self.browser.close()


def client_of(name, *details):
    return (BrowserClient if name in BROWSER_CLIENTS else ServerClient)(name, *details)


@pytest.fixture(scope="module")
def clients(tmp_path_factory, logs):
    """Runs them all at once, kills the agent in the middle, and returns them with their books."""
    keys = [
        {
            "key": write_key(name),
            "company": f"company-{name}",
            "source": "e2e",
            "kind": "browser" if name in BROWSER_CLIENTS else "server",
        }
        for name in CLIENTS
    ]
    seed = int(os.environ.get("HEADWATER_E2E_SEED") or random.SystemRandom().randrange(2**32))
    say(f"seed of the faults: {seed} (HEADWATER_E2E_SEED={seed} repeats their order)")
    house = House(tmp_path_factory.mktemp("clients") / "house", logs / "clients", keys)
    house.start_and_wait("collector", "agent")
    clients = {name: client_of(name, house, seed) for name in CLIENTS}
    everyone = list(clients.values())
    try:
        eventually("every client sends", lambda: is_nobody(it for it in everyone if not it.has_sent()), WITHIN_S)
        for client in everyone:
            client.say("second half")
        until_moment(random.Random(seed).uniform(0.2, 0.8))
        assert house.kill("agent"), house.processes["agent"].tail()
        eventually(
            "every client meets the dead agent",
            lambda: is_nobody(it for it in everyone if not it.proxy.met["outage"]),
            WITHIN_S,
        )
        house.start("agent")
        for client in everyone:
            client.say("flush")
        for client in everyone:
            client.books = eventually(f"{client.name} is done", client.report, WITHIN_S)
        wait_for_stored(house, everyone)
        yield clients, house
    finally:
        for client in everyone:
            client.close()
        house.stop_all()


def is_nobody(clients):
    names = [client.name for client in clients]
    assert not names, f"not yet: {names}"
    return True


def stored_ids(house):
    """Returns the message ids in `raw.events` by company."""
    table = readers.iceberg_table(house.data, "raw.events")
    rows = readers.rows_of(table, "company_id", "message_id").to_pydict()
    found = {}
    for company, message_id in zip(rows["company_id"], rows["message_id"]):
        found.setdefault(company, []).append(message_id)
    return found


def wait_for_stored(house, everyone):
    def is_stored():
        found = stored_ids(house)
        missing = {it.name: len(set(it.books["sent"]) - set(found.get(it.company, []))) for it in everyone}
        missing = {name: count for name, count in missing.items() if count}
        errors = {it.name: it.books["errors"][:3] for it in everyone if it.name in missing}
        assert not missing, f"not stored yet: {missing}; errors: {errors}"
        return True

    eventually("everything sent is stored", is_stored, WITHIN_S, interval_s=0.5)


@pytest.mark.parametrize("name", CLIENTS)
def test_what_is_stored_is_what_was_sent(clients, name):
    everyone, house = clients
    client = everyone[name]
    assert len(set(client.books["sent"])) == EVENTS
    stored = stored_ids(house)[client.company]
    assert set(stored) == set(client.books["sent"])
    for fault in FAULTS:
        assert client.proxy.met[fault] == FAULT_TIMES, f"{fault}: {client.proxy.met}"
    assert client.proxy.met["outage"] > 0
    assert client.proxy.refusals == []
    if name in BROWSER_CLIENTS:
        # A browser shows a page of another origin `Retry-After` only where the agent allows it.
        assert min(client.proxy.waits_s) >= 1.0, client.proxy.waits_s
    say(f"{name}: {EVENTS} events, {client.proxy.requests} requests, {len(stored) - EVENTS} stored twice, {client.proxy.met}")


def test_nothing_of_it_is_quarantined(clients):
    _, house = clients
    rows = readers.rows_of(readers.iceberg_table(house.data, "raw.quarantine"), "company_id", "errors")
    assert rows.to_pylist() == []
