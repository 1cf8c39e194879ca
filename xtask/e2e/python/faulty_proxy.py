"""A TCP proxy between one SDK and the agent that injects faults into HTTP, each a known number of times.

| fault | what the SDK meets |
|---|---|
| `503`, `429` | the agent's own answer for it, with `Retry-After: 1`; the agent hears nothing |
| `reset` | the connection is reset after the request is read; the agent hears nothing |
| `lost_reply` | the agent has stored the events and answered 200; the connection is reset all the same |
| `outage` | the agent is dead: its connection is refused, or breaks before the answer is whole |

Faults come in a seeded order, and no event meets more of the first four than its SDK bears beside the
outage: two, where it gives up after three retries. An event that has met the outage waits for the next
agent, so that how long a restart takes on a slow machine decides nothing. What a browser asks before it
sends (OPTIONS) carries no event: it is not counted, and fails while the agent is dead. What the agent
allows pages of other origins there, the proxy's own answers allow too.
"""

import gzip
import random
import re
import socket
import struct
import threading
import time

from waiting import eventually

FAULTS = ("503", "429", "reset", "lost_reply")
ANSWERS = {
    "503": ("503 Service Unavailable", "unavailable", "the agent is stopping"),
    "429": ("429 Too Many Requests", "busy", "too much is waiting; send again later"),
}
IO_TIMEOUT_S = 60
ALLOWED = re.compile(rb"\r\n(access-control-[^\r]*)")
MESSAGE_ID = re.compile(rb'"(?:messageId|uuid)"\s*:\s*"([^"]+)"')


class FaultyProxy:
    """Listens on loopback and forwards to `agent`, an address; `met` counts the faults, and
    `refusals` holds what the agent itself answered other than 200. `waits_s` are the seconds from each
    429 to the next request with one of its events."""

    def __init__(self, name, agent, seed, times, per_event_max):
        self.name = name
        self.agent = agent
        self.per_event_max = per_event_max
        self.plan = list(FAULTS) * times
        random.Random(seed).shuffle(self.plan)
        self.met = dict.fromkeys((*FAULTS, "outage"), 0)
        self.requests = 0
        self.refusals = []
        self.allowed = []
        self.waits_s = []
        self.told_to_wait = {}
        self.injected = {}
        self.orphans = set()
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = self.listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        threading.Thread(target=self.accept, name=name, daemon=True).start()

    def close(self):
        self.listener.close()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        client.settimeout(IO_TIMEOUT_S)
        try:
            while request := read_message(client):
                if not self.answer(client, request):
                    reset(client)
                    return
        except OSError:
            pass  # the SDK has gone away
        client.close()

    def answer(self, client, request):
        """Answers one request, or returns False when the connection is to be reset."""
        head, body = request
        if head.startswith(b"OPTIONS "):
            answer = self.exchange(head + body)
            if answer:
                self.allowed = ALLOWED.findall(answer)
                client.sendall(answer)
            return answer is not None
        fault, ids = self.decide(body)
        if fault in ANSWERS:
            status, code, message = ANSWERS[fault]
            text = f'{{"success":false,"code":"{code}","message":"{message}"}}'
            headers = ["content-type: application/json", "retry-after: 1", f"content-length: {len(text)}"]
            headers += [line.decode() for line in self.allowed]
            client.sendall("\r\n".join([f"HTTP/1.1 {status}", *headers, "", text]).encode())
            return True
        if fault == "reset":
            return False
        answer = self.forward(head + body, ids)
        if answer is None:
            self.put_back(fault, ids)
            return False
        if not answer.startswith(b"HTTP/1.1 200"):
            self.refusals.append((head.split(b"\r\n")[0], answer))
        if fault == "lost_reply":
            return False
        client.sendall(answer)
        return True

    def decide(self, body):
        """Takes the next fault of the plan, unless an event of the request has met enough of them."""
        if body.startswith(b"\x1f\x8b"):
            body = gzip.decompress(body)
        ids = MESSAGE_ID.findall(body)
        with self.lock:
            self.requests += 1
            told = {self.told_to_wait.pop(each) for each in ids if each in self.told_to_wait}
            self.waits_s.extend(time.monotonic() - moment for moment in told)
            most = max((self.injected.get(each, 0) for each in ids), default=self.per_event_max)
            if not self.plan or most >= self.per_event_max:
                return None, ids
            fault = self.plan.pop()
            self.met[fault] += 1
            for each in ids:
                self.injected[each] = self.injected.get(each, 0) + 1
            if fault == "429":
                self.told_to_wait |= dict.fromkeys(ids, time.monotonic())
            return fault, ids

    def put_back(self, fault, ids):
        """The agent died before its reply could be lost: that is for another request."""
        if fault:
            with self.lock:
                self.plan.append(fault)
                self.met[fault] -= 1
                for each in ids:
                    self.injected[each] -= 1

    def forward(self, request, ids):
        """Returns the agent's answer, or `None` when it is dead and the events meet that first now."""
        if answer := self.exchange(request):
            return answer
        with self.lock:
            is_first = not self.orphans.issuperset(ids)
            self.orphans.update(ids)
            self.met["outage"] += is_first
        if is_first:
            return None
        return eventually(f"{self.name}: the agent is back", lambda: self.exchange(request))

    def exchange(self, request):
        try:
            with socket.create_connection(self.agent, timeout=IO_TIMEOUT_S) as agent:
                agent.sendall(request)
                answer = read_message(agent)
                return answer and answer[0] + answer[1]
        except OSError:
            return None


def read_message(stream):
    """Returns the head and the body of an HTTP message, or `None` when it ends before it is whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = stream.recv(65536)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    lower = head.lower()
    length = re.search(rb"\r\ncontent-length:\s*(\d+)", lower)
    is_chunked = re.search(rb"\r\ntransfer-encoding:\s*chunked", lower)
    while len(body) < int(length[1]) if length else is_chunked and not body.endswith(b"0\r\n\r\n"):
        part = stream.recv(65536)
        if not part:
            return None
        body += part
    return head + b"\r\n\r\n", body


def reset(stream):
    """Closes so that the peer gets a reset and not an orderly end."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()
