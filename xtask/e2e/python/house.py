"""A whole Headwater on loopback: configuration files, certificates and the programs as processes."""

import json
import os
import socket
import urllib.request
from pathlib import Path

from processes import Process, run
from waiting import eventually

BINARIES = Path(os.environ.get("HEADWATER_E2E_BINARIES", "target/debug"))
SQL_USER = "analyst"
SQL_PASSWORD = "correct-horse"
AGENT_ID = "agent-1"

_taken_ports = set()


def free_port():
    """Returns a loopback port that is free for TCP and UDP and was not handed out before."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
            tcp.bind(("127.0.0.1", 0))
            port = tcp.getsockname()[1]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                try:
                    udp.bind(("127.0.0.1", port))
                except OSError:
                    continue
        if port not in _taken_ports:
            _taken_ports.add(port)
            return port


def toml_text(sections):
    """Writes settings as TOML: a dict per section, a list of dicts for repeated ones."""
    lines = []
    for name, content in sections.items():
        repeated = isinstance(content, list)
        for entry in content if repeated else [content]:
            lines.append(f"[[{name}]]" if repeated else f"[{name}]")
            # JSON's strings, numbers and booleans are TOML's.
            lines.extend(f"{key} = {json.dumps(value)}" for key, value in entry.items())
            lines.append("")
    return "\n".join(lines)


class House:
    """Everything in one directory. Programs are started and killed one by one."""

    AGENT_IDS = (AGENT_ID,)

    def __init__(self, directory, logs, write_keys, source_uri=None):
        self.directory = Path(directory)
        self.logs = Path(logs)
        self.data = self.directory / "data"
        self.pki = self.directory / "pki"
        self.ports = {
            name: free_port()
            for name in ("http", "agent_admin", "quic", "collector_admin", "flight", "flight_admin")
        }
        self.processes = {}
        self.data.mkdir(parents=True)
        self.make_certificates()
        self.configs = {}
        self.write_configs(write_keys, source_uri)

    # Files.

    def make_certificates(self):
        agents = [argument for name in self.AGENT_IDS for argument in ("--agent", name)]
        done = run([BINARIES / "headwater", "certificates", "--dir", self.pki, *agents])
        assert done.returncode == 0, done.stderr
        for name in ("ca", "collector", "flight-sql", *self.AGENT_IDS):
            assert (self.pki / f"{name}.pem").is_file(), f"no certificate for {name}"

    def tls(self, name):
        return {"certificate": str(self.pki / f"{name}.pem"), "key": str(self.pki / f"{name}.key")}

    def catalog_section(self):
        return {
            "uri": f"sqlite://{self.data / 'catalog.db'}",
            "warehouse": str(self.data / "warehouse"),
        }

    def sections(self, write_keys=(), source_uri=None):
        """Returns the settings of each program; tests change copies of them."""
        address = "127.0.0.1:{}".format
        ca = str(self.pki / "ca.pem")
        ports = self.ports
        return {
            "agent": {
                "http": {"listen": address(ports["http"])},
                "admin": {"listen": address(ports["agent_admin"])},
                "buffer": {"directory": str(self.data / "agent")},
                "collector": {
                    "addresses": [address(ports["quic"])],
                    "backoff_min_ms": 50,
                    "backoff_max_ms": 500,
                    "keep_alive_ms": 500,
                    "idle_timeout_ms": 2000,
                },
                "tls": {**self.tls(AGENT_ID), "ca": ca},
                "write_keys": list(write_keys),
            },
            "collector": {
                "quic": {"listen": address(ports["quic"])},
                "admin": {"listen": address(ports["collector_admin"])},
                "tls": {**self.tls("collector"), "ca": ca},
                "catalog": self.catalog_section(),
                "commit": {"interval_ms": 300},
            },
            "flight-sql": {
                "flight": {"listen": address(ports["flight"])},
                "admin": {"listen": address(ports["flight_admin"])},
                "tls": self.tls("flight-sql"),
                "catalog": self.catalog_section(),
                "users": [{"name": SQL_USER, "password": SQL_PASSWORD}],
            },
            "warehouse": {
                "catalog": self.catalog_section(),
                "source": {"uri": source_uri or f"sqlite://{self.data / 'operational.db'}"},
            },
        }

    def write_configs(self, write_keys, source_uri):
        for program, sections in self.sections(write_keys, source_uri).items():
            self.configs[program] = self.write_config(program, sections)

    def write_config(self, name, sections):
        path = self.directory / f"{name}.toml"
        path.write_text(toml_text(sections))
        return path

    # Programs.

    def start(self, program):
        """Starts a program without waiting for it."""
        self.processes[program] = Process(
            program,
            [BINARIES / f"headwater-{program}", "--config", self.configs[program]],
            self.logs / f"{program}.log",
            directory=self.directory,
        )
        return self.processes[program]

    def start_and_wait(self, *programs):
        for program in programs:
            self.start(program)
        for program in programs:
            self.wait_until_answering(program)

    def admin_port(self, program):
        return self.ports[{"flight-sql": "flight_admin"}.get(program, f"{program}_admin")]

    def is_answering(self, program):
        process = self.processes[program]
        if not process.is_running():
            raise AssertionError(
                f"{program} ended with {process.popen.returncode}:\n{process.tail()}"
            )
        return self.get(program, "/healthz")

    def wait_until_answering(self, program):
        eventually(f"{program} answers", lambda: self.is_answering(program))

    def get(self, program, path):
        url = f"http://127.0.0.1:{self.admin_port(program)}{path}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()

    def metric(self, program, name, label=""):
        """Returns the sum of a metric's values over all labels, or over those with `label`; `None` when
        it has none yet."""
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in self.get(program, "/metrics").splitlines()
            if line.split("{")[0].split(" ")[0] == name and label in line
        ]
        return sum(values) if values else None

    def kill(self, program):
        return self.processes[program].kill()

    def stop_all(self):
        for process in self.processes.values():
            process.kill()

    def night(self, date, within_s=600):
        """Runs `headwater-warehouse nightly` to its end."""
        return run(
            [
                BINARIES / "headwater-warehouse",
                "--config",
                self.configs["warehouse"],
                "nightly",
                "--date",
                date,
            ],
            directory=self.directory,
            within_s=within_s,
        )

    @property
    def http_url(self):
        return f"http://127.0.0.1:{self.ports['http']}"
