"""Those who send: two untouched SDKs as processes of their own, and bare HTTP in threads."""

import base64
import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import requests

from desk import INVALID_EVERY, as_invalid, as_track, conversations, iso
from processes import Process

HERE = Path(__file__).parent
NODE = os.environ.get("HEADWATER_E2E_NODE", "node")
EVENTS_IN_FILE = 30_000


class SdkSender:
    """An SDK in a process that reads events from a file and sends them until its input closes."""

    def __init__(self, name, command, house, write_key, company, day, seed):
        self.name = name
        events = house.directory / f"{name}-events.jsonl"
        self.report_path = house.directory / f"{name}-report.json"
        with open(events, "w") as out:
            for event in itertools.islice(conversations(company, day, seed), EVENTS_IN_FILE):
                out.write(json.dumps({**event, "timestamp": iso(event["timestamp"])}) + "\n")
        self.process = Process(
            name,
            [*command, house.http_url, write_key, events, self.report_path],
            house.logs / f"{name}.log",
            stdin=subprocess.PIPE,
        )

    def finish(self, within_s=180):
        """Lets it send what it holds, and returns (ids handed to the SDK, ids it gave up on)."""
        self.process.popen.stdin.close()
        code = self.process.wait(within_s)
        assert code == 0, f"{self.name} failed:\n{self.process.tail()}"
        report = json.loads(self.report_path.read_text())
        return set(report["sent"]), report["given_up"]


def node_sdk(*arguments):
    script = HERE.parent / "node" / "send.cjs"
    return SdkSender("segment-analytics-node", [NODE, script], *arguments)


def python_sdk(*arguments):
    script = HERE / "sdk_python.py"
    return SdkSender("segment-analytics-python", [sys.executable, "-u", script], *arguments)


class HttpSender:
    """Bare HTTP that keeps book: what was posted, what was answered with 200, what was invalid.

    With `retries` every batch is posted until it is acknowledged; without, each is posted once, so
    that it is known whether an acknowledged batch can get lost.
    """

    def __init__(self, name, retries, http_url, write_key, company, day, seed):
        self.name = name
        self.retries = retries
        self.url = http_url + "/v1/batch"
        token = base64.b64encode(f"{write_key}:".encode()).decode()
        self.headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        self.events = conversations(company, day, seed)
        self.posted = set()
        self.acknowledged = set()
        self.invalid_posted = set()
        self.invalid_acknowledged = set()
        self.failures = 0
        self.refusals = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, name=name, daemon=True)
        self.thread.start()

    def run(self):
        count = 0
        while not self.stopping.is_set():
            batch, valid, invalid = [], set(), set()
            for event in itertools.islice(self.events, 20):
                count += 1
                if count % INVALID_EVERY == 0:
                    batch.append(as_invalid(event))
                    invalid.add(event["messageId"])
                else:
                    batch.append(as_track(event))
                    valid.add(event["messageId"])
            self.posted |= valid
            self.invalid_posted |= invalid
            if self.post_until_done(json.dumps({"batch": batch})):
                self.acknowledged |= valid
                self.invalid_acknowledged |= invalid
            self.stopping.wait(0.1)

    def post_until_done(self, body):
        # Bounded: an agent that never comes back must fail the test, not hang it.
        for _ in range(2000 if self.retries else 1):
            if self.post(body):
                return True
            if self.retries:
                threading.Event().wait(0.05)
        return False

    def post(self, body):
        try:
            answer = requests.post(self.url, data=body, headers=self.headers, timeout=20)
        except requests.RequestException:
            self.failures += 1
            return False
        if answer.status_code == 200:
            return True
        self.failures += 1
        if answer.status_code not in (429, 503):
            self.refusals.append((answer.status_code, answer.text[:200]))
        return False

    def finish(self, within_s=120):
        self.stopping.set()
        self.thread.join(within_s)
        assert not self.thread.is_alive(), f"{self.name} did not finish"
        assert not self.refusals, f"{self.name} was refused for good: {self.refusals[:3]}"
