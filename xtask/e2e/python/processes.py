"""Real processes: each in its own group with its own log, and none left behind."""

import os
import signal
import subprocess
import sys

RUNNING = set()


class Process:
    """A program that runs, or ran."""

    def __init__(self, name, arguments, log_path, environment=None, directory=None, stdin=None):
        self.name = name
        self.arguments = [str(argument) for argument in arguments]
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with open(log_path, "ab") as log:
            self.popen = subprocess.Popen(
                self.arguments,
                stdin=stdin or subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=directory,
                start_new_session=True,
            )
        RUNNING.add(self)

    def is_running(self):
        return self.popen.poll() is None

    def signal(self, number):
        """Sends a signal to the process and all that it started."""
        try:
            os.killpg(self.popen.pid, number)
        except ProcessLookupError:
            pass

    def kill(self):
        """Ends it as a power cut would: no last words. Returns whether it was alive until then."""
        was_running = self.is_running()
        self.signal(signal.SIGKILL)
        self.popen.wait()
        RUNNING.discard(self)
        return was_running and self.popen.returncode == -signal.SIGKILL

    def stop(self, within_s=30):
        """Asks it to end, waits, and returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(within_s)

    def wait(self, within_s):
        try:
            code = self.popen.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"`{self.name}` did not end within {within_s} s; its log ends:\n{self.tail()}"
            ) from None
        self.signal(signal.SIGKILL)
        RUNNING.discard(self)
        return code

    def tail(self, lines=30):
        text = self.log_path.read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def kill_all():
    """Ends whatever a test left behind."""
    for process in list(RUNNING):
        process.kill()


def run(arguments, environment=None, directory=None, within_s=120):
    """Runs a program to its end and returns it with `returncode`, `stdout`, `stderr` as text."""
    arguments = [str(argument) for argument in arguments]
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        cwd=directory,
        start_new_session=True,
    ) as popen:
        try:
            out, err = popen.communicate(timeout=within_s)
        except BaseException:
            os.killpg(popen.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(arguments, popen.returncode, out, err)


def say(text):
    """Progress for the person who watches, unbuffered."""
    print(f"    {text}", file=sys.stdout, flush=True)
