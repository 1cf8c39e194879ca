"""Runs a program and ends or freezes it at one system call: `tracer.py REPORT [ORDER] -- PROGRAM ARGUMENT…`.

The program is the shipped one and knows nothing of this. It runs untouched until an order comes, as a
line of JSON on standard input or as ORDER for a program that is to end while it starts; then each of
its system calls is a line of text, `> ` before the kernel carries it out and `< ` after it has:

    < create /…/raw/events/data/….parquet      a file is made
    > pwrite64 /…/catalog.db-wal               about to be written
    < fsync /…/catalog.db-wal
    > unlock 120 /…/catalog.db-shm             a byte of the file is about to be unlocked
    > send                                     a datagram is about to leave
    < writev socket:[7] HTTP/1.1 200 OK…       an answer has left

An order's steps are regular expressions that lines must match one after the other; where a line
matches `back`, the first step is waited for again. At the last step the thread stands still in the
kernel, and the whole process gets SIGKILL (a call that stood before its execution never happens) or
SIGSTOP. What was done is then in REPORT, under the order's number. The tracer ends as the program does.

It is the parent of what it traces, so it needs no privilege.
"""

import ctypes
import json
import os
import platform
import re
import select
import signal
import struct
import sys
from pathlib import Path

# From linux/ptrace.h, linux/wait.h, linux/prctl.h, fcntl.h.
PTRACE_SYSCALL, PTRACE_DETACH = 24, 17
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_LISTEN, PTRACE_GET_SYSCALL_INFO = 0x4206, 0x4207, 0x4208, 0x420E
TRACE_SYSCALLS, TRACE_THREADS, TRACE_END_WITH_TRACER = 1, 1 << 3, 1 << 20
EVENT_STOP = 128
SYSCALL_STOP = signal.SIGTRAP | 0x80
ENTRY, EXIT = 1, 2
STOPPING_SIGNALS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
WAIT_ALL = 0x40000000
PR_SET_PDEATHSIG = 1
F_SETLK, F_SETLKW, F_UNLCK = 6, 7, 2
SYS_TGKILL = 234

# Numbers of x86-64.
ON_A_FILE = {1: "write", 3: "close", 18: "pwrite64", 74: "fsync", 75: "fdatasync"}
PLAIN = {46: "send", 307: "send", 47: "receive", 299: "receive", 49: "bind"}
OPENAT, FCNTL, WRITEV = 257, 72, 20
TEXT_BYTES = 64
CREATED_MAX = 100

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request, thread, address=0, data=0):
    """Returns whether the thread is still there to take the request."""
    if libc.ptrace(request, thread, address, data) != -1:
        return True
    number = ctypes.get_errno()
    try:
        raise OSError(number, os.strerror(number))
    except ProcessLookupError:
        return False


class Trace:
    """One order carried out on a process: from the attaching to the end, or to the freeze."""

    def __init__(self, pid, order):
        self.pid = pid
        self.steps = [re.compile(step) for step in order["steps"]]
        self.back = re.compile(order["back"]) if order.get("back") else None
        self.freezes = order["then"] == "freeze"
        self.at = 0
        self.created = []
        self.threads = set()
        # What each thread asked the kernel for and has not got yet.
        self.calls = {}

    def run(self, report):
        """Returns the status of the program's end, or `None` when it is frozen."""
        self.attach()
        while True:
            thread, status = os.waitpid(-1, WAIT_ALL)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                self.threads.discard(thread)
                if thread == self.pid:
                    return status
                continue
            self.threads.add(thread)
            is_watched = self.steps and os.WSTOPSIG(status) == SYSCALL_STOP
            line = self.line_of(thread) if is_watched else None
            if line and self.is_last_step(line):
                report({"seen": line, "created": self.created})
                if self.freezes:
                    self.freeze(thread)
                    return None
                os.kill(self.pid, signal.SIGKILL)
                # What the other threads were about to do is of no interest, and their memory goes.
                self.steps = []
                continue
            resume(thread, status)

    def attach(self):
        """Takes every thread; those that they start are taken by the kernel."""
        options = TRACE_SYSCALLS | TRACE_THREADS | TRACE_END_WITH_TRACER
        new = {self.pid}
        while new:
            for thread in new:
                if ptrace(PTRACE_SEIZE, thread, 0, options):
                    ptrace(PTRACE_INTERRUPT, thread)
            self.threads |= new
            found = {int(name) for name in os.listdir(f"/proc/{self.pid}/task")}
            new = {thread for thread in found - self.threads if not is_traced(thread)}

    def is_last_step(self, line):
        if line.startswith("< create "):
            self.created = [*self.created, line.removeprefix("< create ")][-CREATED_MAX:]
        if self.back and self.back.search(line):
            self.at = 0
        if self.steps[self.at].search(line):
            self.at += 1
        return self.at == len(self.steps)

    def freeze(self, thread):
        """Stops the process before `thread` leaves the kernel, and lets go of it."""
        libc.syscall(SYS_TGKILL, self.pid, thread, signal.SIGSTOP)
        for other in self.threads - {thread}:
            ptrace(PTRACE_INTERRUPT, other)
            _, status = os.waitpid(other, WAIT_ALL)
            if os.WIFSTOPPED(status):
                ptrace(PTRACE_DETACH, other, 0, signal_to_deliver(status))
        ptrace(PTRACE_DETACH, thread)

    # What a thread does, as text.

    def line_of(self, thread):
        info = ctypes.create_string_buffer(88)
        if not ptrace(PTRACE_GET_SYSCALL_INFO, thread, len(info), ctypes.addressof(info)):
            return None
        if info.raw[0] == ENTRY:
            number, *arguments = struct.unpack_from("=7Q", info.raw, 24)
            call = self.calls[thread] = self.describe(number, arguments)
            return call and f"> {call}"
        call = self.calls.pop(thread, None)
        result, has_failed = struct.unpack_from("=qB", info.raw, 24)
        return None if has_failed or result < 0 or not call else f"< {call}"

    def describe(self, number, arguments):
        if number == OPENAT:
            word = "create" if arguments[2] & os.O_CREAT else "open"
            return f"{word} {self.text(arguments[1], 4096)}"
        if number in PLAIN:
            return PLAIN[number]
        if number in ON_A_FILE:
            return f"{ON_A_FILE[number]} {self.path(arguments[0])}"
        if number == WRITEV:
            (start,) = struct.unpack("=Q", self.memory(arguments[1], 8))
            return f"writev {self.path(arguments[0])} {self.text(start, TEXT_BYTES)}"
        if number == FCNTL and arguments[1] in (F_SETLK, F_SETLKW):
            kind, start = struct.unpack("=hxxxxxxq", self.memory(arguments[2], 16))
            return f"{'unlock' if kind == F_UNLCK else 'lock'} {start} {self.path(arguments[0])}"
        return None

    def path(self, descriptor):
        try:
            return os.readlink(f"/proc/{self.pid}/fd/{descriptor}")
        except FileNotFoundError:
            return "closed"

    def memory(self, address, size):
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            return os.pread(memory.fileno(), size, address)

    def text(self, address, size):
        return self.memory(address, size).split(b"\0")[0].decode(errors="replace")


def is_traced(thread):
    try:
        status = Path(f"/proc/{thread}/status").read_text()
    except OSError:
        return True  # gone
    return "TracerPid:\t0\n" not in status


def signal_to_deliver(status):
    """Returns the signal that a stopped thread was about to get, 0 for other reasons of a stop."""
    number = os.WSTOPSIG(status)
    return 0 if status >> 16 or number == SYSCALL_STOP else number


def resume(thread, status):
    if status >> 16 == EVENT_STOP and os.WSTOPSIG(status) in STOPPING_SIGNALS:
        ptrace(PTRACE_LISTEN, thread)
    else:
        ptrace(PTRACE_SYSCALL, thread, 0, signal_to_deliver(status))


def start(command):
    """Forks the program; it runs when the returned function is called."""
    gate, opener = os.pipe()
    pid = os.fork()
    if pid == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(opener)
        os.read(gate, 1)
        standard_input = os.open(os.devnull, os.O_RDONLY)
        os.dup2(standard_input, 0)
        os.execv(command[0], command)
    os.close(gate)
    return pid, lambda: os.close(opener)


def wait_for_order(pid, wake):
    """Returns the next order, or the status of the program's end (and no order)."""
    while True:
        ready, _, _ = select.select([sys.stdin, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return None, status
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line:
                os.kill(pid, signal.SIGKILL)
                return None, os.waitpid(pid, 0)[1]
            return json.loads(line), None


def end_as(status):
    """Ends this process as the program ended."""
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def main():
    assert platform.machine() == "x86_64", "the numbers of the system calls are those of x86-64"
    split = sys.argv.index("--")
    report_path, *orders = sys.argv[1:split]
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    # A handler, because what is ignored stays so in the program.
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)

    pid, let_it_run = start(sys.argv[split + 1 :])
    order, status = json.loads(orders[0]) if orders else None, None
    if not order:
        let_it_run()
    while status is None:
        if order:
            number = order["number"]

            def report(found):
                partial = Path(report_path + ".partial")
                partial.write_text(json.dumps({"number": number, **found}))
                partial.rename(report_path)

            trace = Trace(pid, order)
            if orders:
                let_it_run()
                orders = []
            status = trace.run(report)
        if status is None:
            order, status = wait_for_order(pid, wake)
    end_as(status)


if __name__ == "__main__":
    main()
