"""Several agents and several collectors on one catalog: no leader, no lease, nothing shared but the tables."""

import gzip
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlparse

from house import BINARIES, House, free_port
from processes import Process
from waiting import eventually

COLLECTORS = ("collector-1", "collector-2", "collector-3")
AGENTS = ("agent-1", "agent-2", "agent-3")
TRACER = Path(__file__).parent / "tracer.py"
# Shorter than in production, so that a dead or frozen collector costs a test some seconds; longer than
# handshakes take on a machine that has too much to do.
AGENT_TIMES = {
    "backoff_min_ms": 50,
    "backoff_max_ms": 300,
    "keep_alive_ms": 800,
    "idle_timeout_ms": 2500,
    "stall_timeout_ms": 15000,
    "connect_timeout_ms": 4000,
    "preferred_probe_ms": 500,
    "linger_ms": 50,
}
COMMIT_TIMES = {"interval_ms": 400, "retry_min_ms": 20, "retry_max_ms": 500}


class TracedProcess(Process):
    """A program under `tracer.py`, which leaves it alone until there is an order."""

    def __init__(self, name, command, log_path, report_path, directory, order=None):
        self.report_path = report_path
        report_path.unlink(missing_ok=True)
        orders = [json.dumps(order)] if order else []
        tracer = [sys.executable, "-I", "-S", TRACER, report_path, *orders, "--"]
        super().__init__(name, [*tracer, *command], log_path, directory=directory, stdin=subprocess.PIPE)

    def order(self, order):
        self.popen.stdin.write(json.dumps(order).encode() + b"\n")
        self.popen.stdin.flush()

    def report(self, number):
        """Returns what the tracer says about that order, `None` when it is not carried out yet."""
        if not self.report_path.is_file():
            return None
        report = json.loads(self.report_path.read_text())
        return report if report["number"] == number else None

    def is_frozen(self):
        """Whether the program itself is stopped."""
        pid = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text().split()[0]
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"

    def thaw(self):
        self.signal(signal.SIGCONT)


class Cluster(House):
    """The house with `COLLECTORS` and `AGENTS`; each agent's list begins with another collector."""

    AGENT_IDS = AGENTS

    def __init__(self, directory, logs, write_keys, commit=COMMIT_TIMES):
        self.commit = commit
        self.instance_ports = {
            name: {purpose: free_port() for purpose in ("listen", "admin")} for name in (*AGENTS, *COLLECTORS)
        }
        super().__init__(directory, logs, write_keys)

    def write_configs(self, write_keys, source_uri):
        sections = super().sections(write_keys)
        for name in COLLECTORS:
            settings = {
                **sections["collector"],
                "quic": {"listen": self.address(name, "listen")},
                "admin": {"listen": self.address(name, "admin")},
                "commit": self.commit,
                "log": {"level": "info,headwater_collector=debug,headwater_tables=debug"},
            }
            self.configs[name] = self.write_config(name, settings)
        for index, name in enumerate(AGENTS):
            in_order = COLLECTORS[index:] + COLLECTORS[:index]
            settings = {
                **sections["agent"],
                "http": {"listen": self.address(name, "listen")},
                "admin": {"listen": self.address(name, "admin")},
                "buffer": {"directory": str(self.data / name)},
                "collector": {
                    "addresses": [self.address(collector, "listen") for collector in in_order],
                    **AGENT_TIMES,
                },
                "tls": {**sections["agent"]["tls"], **self.tls(name)},
            }
            self.configs[name] = self.write_config(name, settings)

    def address(self, name, purpose):
        return f"127.0.0.1:{self.instance_ports[name][purpose]}"

    def admin_port(self, program):
        return self.instance_ports[program]["admin"]

    def http_url_of(self, agent):
        return f"http://{self.address(agent, 'listen')}"

    def start(self, program, order=None):
        """Starts a program without waiting for it; `order` is for its first moments."""
        binary = program.rsplit("-", 1)[0]
        self.processes[program] = TracedProcess(
            program,
            [BINARIES / f"headwater-{binary}", "--config", self.configs[program]],
            self.logs / f"{program}.log",
            self.directory / f"{program}-report.json",
            self.directory,
            order,
        )
        return self.processes[program]

    def start_all(self):
        """Starts everybody; each agent is with the first collector of its list then."""
        self.start_and_wait(*COLLECTORS)
        self.start_and_wait(*AGENTS)
        for agent, collector in zip(AGENTS, COLLECTORS, strict=True):
            eventually(f"{agent} is with {collector}", lambda: self.collector_of(agent) == collector)

    # What is seen from outside.

    def status(self, agent):
        """Returns what the agent says about itself, exact at this moment; its gauges follow within a second."""
        return json.loads(self.get(agent, "/status"))

    def collector_of(self, agent):
        """Returns the collector that an agent's session is with, `None` while there is no session."""
        session = self.status(agent)["session"]
        return next((name for name in COLLECTORS if self.address(name, "listen") == session), None)

    def wait_for_drain(self, within_s=180):
        for agent in AGENTS:
            eventually(f"{agent} has nothing unacknowledged", lambda: self.status(agent)["events"] == 0, within_s)

    def head(self, table):
        """Returns the path of the metadata file that the catalog names for `raw.<table>`, if any."""
        database = sqlite3.connect(f"file:{self.data / 'catalog.db'}?mode=ro", uri=True, timeout=10)
        try:
            row = database.execute(
                "SELECT metadata_location FROM iceberg_tables WHERE table_namespace = 'raw' AND table_name = ?",
                [table],
            ).fetchone()
        finally:
            database.close()
        return urlparse(row[0]).path if row else None

    def has_been_head(self, table, path):
        """Whether a metadata file is the table's head or one of its last fifty former heads."""
        head = self.head(table)
        metadata = json.loads(gzip.decompress(Path(head).read_bytes()))
        # The first head has no log.
        former = {urlparse(entry["metadata-file"]).path for entry in metadata.get("metadata-log", [])}
        return path in former | {head}
