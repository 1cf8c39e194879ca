"""The kill matrix: collectors and agents of one cluster die at each point of `points.py`, under load.

Each collector has a thread that kills it and starts it again, so that two or three are dead at times;
a fourth thread kills agents. The seed decides the order of the points, who meets them and the outages;
the rest is as the machine has it.
"""

import os
import random
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import points
import senders
from cluster import AGENTS, COLLECTORS
from judge import Books
from processes import say
from waiting import eventually, until_moment

COMPANY = {"id": "company", "admins": ["admin-1", "admin-2"], "contacts": ["contact-1", "contact-2"]}
WRITE_KEYS = [{"key": "key", "company": COMPANY["id"], "source": "e2e", "kind": "server"}]
HIT_WITHIN_S = 300
OUTAGE_MAX_S = 1.0
ACKNOWLEDGED_AFTER_IDLE_MIN = 100


@dataclass
class Kill:
    """One death."""

    program: str
    point: points.Point
    # Whether the commit that it was working on is done; `None` when there was none, or it is not known.
    committed: bool | None = None


def seed_of_round(number):
    """Returns the seed of a round; `HEADWATER_E2E_SEED` is that of the first."""
    seed = int(os.environ.get("HEADWATER_E2E_SEED") or random.SystemRandom().randrange(2**32)) + number
    say(f"seed of the kills: {seed} (HEADWATER_E2E_SEED={seed} repeats their order and outages)")
    return seed


def run_round(cluster, seed, hits):
    """Kills at each point `hits` times under load, then everybody while idle; returns (kills, books)."""
    books = Books()
    with_retries = start_senders(cluster, True, seed)
    all_senders = [*with_retries, *start_senders(cluster, False, seed + 1000)]
    eventually("the first events are acknowledged", lambda: all(it.acknowledged for it in all_senders))
    kills = kill_at_all_points(cluster, random.Random(seed), hits)
    finish(cluster, all_senders, books)

    for _ in range(hits):
        kills += kill_all_idle(cluster)
    afterwards = start_senders(cluster, True, seed + 2000)
    eventually(
        "events are acknowledged after the kills",
        lambda: all(len(it.acknowledged) > ACKNOWLEDGED_AFTER_IDLE_MIN for it in afterwards),
    )
    finish(cluster, afterwards, books)
    return kills, books


def start_senders(cluster, retries, seed):
    """Starts a sender for each agent."""
    word = "retries" if retries else "once"
    return [
        senders.HttpSender(
            f"{agent} {word}", retries, cluster.http_url_of(agent), "key", COMPANY, yesterday(), seed + index
        )
        for index, agent in enumerate(AGENTS)
    ]


def yesterday():
    return (datetime.now(timezone.utc) - timedelta(days=1)).date()


def finish(cluster, all_senders, books):
    for sender in all_senders:
        sender.finish()
        books.add(sender)
    cluster.wait_for_drain()


def kill_at_all_points(cluster, chance, hits):
    of_collectors = chance.sample(points.OF_COLLECTOR * hits, len(points.OF_COLLECTOR) * hits)
    of_agents = chance.sample(points.OF_AGENT * hits, len(points.OF_AGENT) * hits)
    count = len(COLLECTORS)
    plans = [[(name, point) for point in of_collectors[index::count]] for index, name in enumerate(COLLECTORS)]
    plans.append([(chance.choice(AGENTS), point) for point in of_agents])
    a_killer_failed = threading.Event()
    killers = [Killer(cluster, plan, chance.getrandbits(32), a_killer_failed) for plan in plans]
    for killer in killers:
        killer.thread.start()
    for killer in killers:
        killer.thread.join()
    failures = [killer.failure for killer in killers if killer.failure]
    if failures:
        raise failures[0]
    return [kill for killer in killers for kill in killer.kills]


class Killer:
    """Kills at the points of its plan, one after the other, and starts again what it has killed."""

    def __init__(self, cluster, plan, seed, a_killer_failed):
        self.cluster = cluster
        self.a_killer_failed = a_killer_failed
        self.plan = plan
        self.chance = random.Random(seed)
        self.kills = []
        self.failure = None
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        try:
            for number, (program, point) in enumerate(self.plan, 1):
                if self.a_killer_failed.is_set():
                    return
                until_moment(self.chance.uniform(0.0, 1.0))
                self.kills.append(self.kill(program, point, number))
                until_moment(self.chance.uniform(0.0, OUTAGE_MAX_S))
                self.cluster.start(program)
                self.cluster.wait_until_answering(program)
        except BaseException as failure:  # noqa: BLE001 - the thread that waits for this one raises it
            self.failure = failure
            self.a_killer_failed.set()

    def kill(self, program, point, number):
        process = self.cluster.processes[program]
        if not point.steps or point.at_start:
            assert process.kill(), f"{program} had ended by itself:\n{process.tail()}"
            if not point.steps:
                return Kill(program, point)
            process = self.cluster.start(program, point.order(number))
        elif point.freezes:
            created = self.freeze(process, point, number)
            number = f"{number}, woken"
            process.order(points.NEXT_COMMIT.order(number))
        else:
            process.order(point.order(number))
        report = self.report(process, point, number)
        code = process.wait(within_s=60)
        assert code < 0, f"{program} ended with {code} at `{point.name}`:\n{process.tail()}"
        return Kill(program, point, self.is_committed(point, created if point.freezes else report["created"]))

    def report(self, process, point, number):
        what = f"{process.name} comes to `{point.name}`"
        return eventually(what, lambda: process.report(number), HIT_WITHIN_S, 0.01)

    def freeze(self, process, point, number):
        """Freezes the process until others have its agents and have committed; returns the files that it
        had made by then."""
        process.order(point.order(number, then="freeze"))
        created = self.report(process, point, number)["created"]
        eventually(
            f"no agent is with {process.name}",
            lambda: process.name not in [self.cluster.collector_of(agent) for agent in AGENTS],
            HIT_WITHIN_S,
        )
        head = self.cluster.head(point.table)
        eventually("others commit", lambda: self.cluster.head(point.table) != head, HIT_WITHIN_S)
        process.thaw()
        return created

    def is_committed(self, point, created):
        """Whether the commit that was on its way has become the head; `None` before it had a metadata file."""
        last = [path for path in created if f"/raw/{point.table}/" in path][-1:]
        if not last or not last[0].endswith(".metadata.json"):
            return None
        return self.cluster.has_been_head(point.table, last[0])


def kill_all_idle(cluster):
    """Kills everybody while nothing is on its way, so that the catalog's log is recovered by who comes first."""
    for program in (*COLLECTORS, *AGENTS):
        assert cluster.kill(program), f"{program} had ended by itself"
    cluster.start_all()
    return [Kill(program, points.IDLE) for program in COLLECTORS]


def table_of(kills):
    """Returns the figures as text: how often each point was met, and how often the commit was done by then."""
    lines = []
    for point in {kill.point for kill in kills}:
        here = [kill for kill in kills if kill.point == point]
        known = [kill.committed for kill in here if kill.committed is not None]
        done = f", commit done {sum(known)} of {len(known)}" if known else ""
        lines.append(f"{point.name:45} {len(here):4} killed{done}")
    return "\n    ".join(sorted(lines))
