"""Several collectors on one catalog without leader or lease: one stops, one dies, one freezes, and the
others go on."""

import os
from pathlib import Path

import pytest
import requests

import judge
import kill_matrix
import points
from cluster import AGENTS, COLLECTORS, COMMIT_TIMES, Cluster
from desk import as_track, conversations
from processes import say
from waiting import eventually

TIMES = 20 if os.environ.get("HEADWATER_SOAK") == "1" else 1
# Of a collector that stops: commit.stop_within_ms and two seconds for the answers and the closing.
STOP_WITHIN_S = 14
SEED = 7
# So long that what is staged is not committed before the stop.
LONG_INTERVAL_S = 60
# Of each sender, before the test goes on: among them are invalid ones.
EVENTS_MORE = 200


@pytest.fixture(params=range(TIMES))
def clusters(tmp_path, logs, request):
    """Starts clusters that are ended with the test."""
    made = []

    def start(commit=COMMIT_TIMES):
        cluster = Cluster(tmp_path / "house", logs / request.node.name, kill_matrix.WRITE_KEYS, commit)
        made.append(cluster)
        cluster.start_all()
        return cluster

    yield start
    for cluster in made:
        cluster.stop_all()


def assert_exactly_once(cluster, books):
    """Both readers find every event that was answered with 200, once, and nothing else."""
    stored = {name: read(cluster) for name, read in judge.READERS.items()}
    assert stored["pyiceberg"] == stored["chdb"]
    assert judge.faults(stored["pyiceberg"], books) == []
    assert judge.files_listed_twice(cluster) == []
    counts = {table: len(rows) for table, rows in stored["chdb"].items()}
    say(f"{counts['events']} rows stored, {counts['quarantine']} quarantined, 0 lost, 0 twice")


def post(cluster, agent, events):
    """Posts valid events once, and returns their ids."""
    batch = [as_track(next(events)) for _ in range(20)]
    answer = requests.post(
        f"{cluster.http_url_of(agent)}/v1/batch", json={"batch": batch}, auth=("key", ""), timeout=20
    )
    assert answer.status_code == 200, answer.text
    return {event["messageId"] for event in batch}


def let_them_send(all_senders):
    """Waits until each sender has been answered 200 for some more events."""
    wanted = {sender: len(sender.acknowledged) + EVENTS_MORE for sender in all_senders}
    eventually("events flow", lambda: all(len(sender.acknowledged) >= count for sender, count in wanted.items()))


def test_a_graceful_stop_commits_what_is_staged_and_acks_it(clusters):
    cluster = clusters({**COMMIT_TIMES, "interval_ms": LONG_INTERVAL_S * 1000})
    events = conversations(kill_matrix.COMPANY, kill_matrix.yesterday(), SEED)
    books = judge.Books()
    agent, collector = AGENTS[0], COLLECTORS[0]
    # The first commit of a collector is at once; the next is an interval away.
    books.must_be_stored |= post(cluster, agent, events)
    cluster.wait_for_drain()
    books.must_be_stored |= post(cluster, agent, events)
    eventually("the batch is staged", lambda: cluster.metric(collector, "collector_staged_bytes"))
    sent = cluster.metric(agent, "agent_batches_sent_total")
    head = cluster.head("events")
    assert cluster.status(agent)["events"] == 20

    assert cluster.processes[collector].stop(STOP_WITHIN_S) == 0
    assert cluster.head("events") != head, "what was staged is not committed"
    eventually("the batch is acknowledged", lambda: cluster.status(agent)["events"] == 0)
    assert cluster.metric(agent, "agent_batches_sent_total") == sent, "the batch was sent again"
    table = judge.rows_by_pyiceberg(cluster)["events"]
    assert judge.faults({"events": table, "quarantine": []}, books) == []


def test_a_rolling_restart_under_load_costs_nothing(clusters):
    cluster = clusters()
    books = judge.Books()
    with_retries = kill_matrix.start_senders(cluster, True, SEED)
    duplicates = 0
    for collector in COLLECTORS:
        let_them_send(with_retries)
        eventually("it has staged", lambda: cluster.metric(collector, "collector_staged_bytes"), interval_s=0.01)
        duplicates += cluster.metric(collector, "collector_events_duplicate_total") or 0
        assert cluster.processes[collector].stop(STOP_WITHIN_S) == 0, cluster.processes[collector].tail()
        let_them_send(with_retries)
        cluster.start_and_wait(collector)
    kill_matrix.finish(cluster, with_retries, books)
    assert [sender.failures for sender in with_retries] == [0, 0, 0]
    duplicates += sum(cluster.metric(name, "collector_events_duplicate_total") or 0 for name in COLLECTORS)
    say(f"events that came again: {duplicates:.0f}")
    assert_exactly_once(cluster, books)


def test_the_others_take_over_from_a_collector_that_dies_in_the_middle_of_a_batch(clusters):
    cluster = clusters()
    books = judge.Books()
    agent, collector = AGENTS[0], COLLECTORS[0]
    with_retries = kill_matrix.start_senders(cluster, True, SEED)
    process = cluster.processes[collector]
    process.order(points.BEFORE_SWAP.order(1))
    eventually(f"{collector} dies with a commit prepared", lambda: process.report(1))
    process.wait(within_s=60)
    left = cluster.status(agent)
    assert left["events"] > 0, "nothing was on its way"
    let_them_send(with_retries)
    kill_matrix.finish(cluster, with_retries, books)
    assert cluster.collector_of(agent) != collector
    assert cluster.status(agent)["acked"] > left["acked"]
    assert_exactly_once(cluster, books)


def test_a_commit_that_only_the_catalogs_log_holds_comes_true_when_the_log_is_recovered(clusters):
    cluster = clusters()
    books = judge.Books()
    collector, *others = COLLECTORS
    for other in others:
        assert cluster.kill(other)
    with_retries = kill_matrix.start_senders(cluster, True, SEED)
    process = cluster.processes[collector]
    process.order(points.IN_LOG_ONLY.order(1))
    report = eventually(f"{collector} dies in its swap", lambda: process.report(1))
    process.wait(within_s=60)
    # Nobody has the catalog open now.
    cluster.start_and_wait(collector)
    made = [path for path in report["created"] if "/raw/events/" in path and path.endswith(".metadata.json")]
    assert cluster.has_been_head("events", made[-1])
    cluster.start_and_wait(*others)
    let_them_send(with_retries)
    kill_matrix.finish(cluster, with_retries, books)
    assert_exactly_once(cluster, books)


@pytest.mark.parametrize("point", points.FROZEN, ids=["with-its-data-file", "before-its-swap"])
def test_a_collector_that_wakes_after_others_have_committed_is_refused(clusters, point):
    cluster = clusters()
    books = judge.Books()
    agent, collector = AGENTS[0], COLLECTORS[0]
    with_retries = kill_matrix.start_senders(cluster, True, SEED)
    process = cluster.processes[collector]
    process.order(point.order(1, then="freeze"))
    report = eventually(f"{collector} freezes in its commit", lambda: process.report(1))
    eventually("it is frozen", process.is_frozen)
    prepared = report["created"][-1]
    assert Path(prepared).exists() and "/raw/events/" in prepared

    head = cluster.head("events")
    eventually("others commit", lambda: cluster.head("events") != head)
    let_them_send(with_retries)
    kill_matrix.finish(cluster, with_retries, books)
    assert cluster.collector_of(agent) != collector
    assert process.is_frozen()
    before = judge.rows_by_pyiceberg(cluster)

    process.thaw()
    refused = 'outcome="conflict"'
    eventually("its commit is refused", lambda: cluster.metric(collector, "collector_commits_total", refused))
    eventually("it holds nothing any more", lambda: cluster.metric(collector, "collector_staged_bytes") == 0)
    assert not cluster.has_been_head("events", prepared)
    assert judge.rows_by_pyiceberg(cluster) == before
    eventually(f"{agent} is back with it", lambda: cluster.collector_of(agent) == collector)
    again = kill_matrix.start_senders(cluster, True, SEED + 100)
    eventually("it commits again", lambda: cluster.metric(collector, "collector_commits_total", 'outcome="ok"'))
    let_them_send(again)
    kill_matrix.finish(cluster, again, books)
    assert_exactly_once(cluster, books)
