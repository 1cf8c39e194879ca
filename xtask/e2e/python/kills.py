"""The kills: SDKs and bare HTTP send without a pause while agent and collector die again and again."""

import os
import random
from types import SimpleNamespace

import readers
import senders
from processes import say
from waiting import eventually, until_moment

KILLS = int(os.environ.get("HEADWATER_E2E_KILLS", "24"))
KILLS_EACH_MIN = 8
# Of the agent, the events that it has accepted and the collector has not acknowledged yet.
DRAIN_WITHIN_S = 180


def send_under_kills(house, companies, day):
    """Runs all senders under `KILLS` kills, lets them finish, waits for the drain."""
    seed = int(os.environ.get("HEADWATER_E2E_SEED") or random.SystemRandom().randrange(2**32))
    say(f"seed of the kills: {seed} (HEADWATER_E2E_SEED={seed} repeats their order and times)")
    chance = random.Random(seed)

    node = senders.node_sdk(house, "key-0", companies[0], day, seed + 1)
    python = senders.python_sdk(house, "key-1", companies[1], day, seed + 2)
    stubborn = senders.HttpSender("stubborn", True, house.http_url, "key-2", companies[2], day, seed + 3)
    once = senders.HttpSender("once", False, house.http_url, "key-2", companies[2], day, seed + 4)
    eventually("the first events are acknowledged", lambda: stubborn.acknowledged and once.acknowledged)

    killed = kill_at_random(house, chance, lambda: len(stubborn.acknowledged))

    house.wait_until_answering("collector")
    house.wait_until_answering("agent")
    stubborn.finish()
    once.finish()
    node_sent, node_given_up = node.finish()
    python_sent, python_given_up = python.finish()
    must_be_stored = {
        "segment-analytics-node": node_sent,
        "segment-analytics-python": python_sent,
        "HTTP with retries": stubborn.posted,
        "HTTP without, acknowledged": once.acknowledged,
    }
    for name, ids in must_be_stored.items():
        say(f"sent by {name}: {len(ids)} events")
    books = SimpleNamespace(
        seed=seed,
        killed=killed,
        must_be_stored=must_be_stored,
        may_be_stored=once.posted - once.acknowledged,
        must_be_quarantined=stubborn.invalid_posted | once.invalid_acknowledged,
        may_be_quarantined=once.invalid_posted - once.invalid_acknowledged,
        given_up=node_given_up + python_given_up,
        failed_requests=stubborn.failures + once.failures,
    )
    wait_for_drain(house, books)
    return books


def kill_at_random(house, chance, progress):
    """Kills agent and collector at random moments and starts them again; returns the counts."""
    killed = {"agent": 0, "collector": 0}
    while sum(killed.values()) < KILLS or min(killed.values()) < KILLS_EACH_MIN:
        program = chance.choice(["agent", "collector"])
        until_moment(chance.uniform(0.05, 1.2))
        if not house.kill(program):
            process = house.processes[program]
            raise AssertionError(f"{program} had ended by itself:\n{process.tail()}")
        killed[program] += 1
        # An outage of some length; the other one goes on.
        until_moment(chance.uniform(0.0, 0.6))
        house.start(program)
        # Now and then it dies again before it is up, else life goes on first.
        if chance.random() < 0.7:
            before = progress()
            house.wait_until_answering(program)
            eventually(f"events are acknowledged after kill {killed}", lambda: progress() > before)
    say(f"killed: {killed}")
    return killed


def wait_for_drain(house, books):
    """Waits until everything that must be in the tables is there."""

    def missing():
        stored = set(readers.rows_of(readers.iceberg_table(house.data, "raw.events"), "message_id")["message_id"].to_pylist())
        return {name: len(ids - stored) for name, ids in books.must_be_stored.items() if ids - stored}

    def is_drained():
        left = missing()
        if left:
            raise AssertionError(f"not stored yet: {left}")
        return True

    eventually("every event is stored", is_drained, within_s=DRAIN_WITHIN_S, interval_s=1.0)
