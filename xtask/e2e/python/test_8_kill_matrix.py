"""Three collectors on one catalog and three agents are killed at every point of their work: nothing is
lost and nothing is stored twice, as PyIceberg and chDB see it."""

import os
from collections import Counter
from types import SimpleNamespace

import pytest

import judge
import kill_matrix
import points
import readers
from cluster import Cluster
from processes import say

IS_SOAK = os.environ.get("HEADWATER_SOAK") == "1"
# In a soak each point is met 24 times. A round has a house of its own, which bounds its tables.
ROUNDS = int(os.environ.get("HEADWATER_E2E_ROUNDS") or (8 if IS_SOAK else 1))
HITS = 3 if IS_SOAK else 1
EVENTS_MIN = 2000


@pytest.fixture(scope="module", params=range(ROUNDS))
def matrix(request, tmp_path_factory, logs):
    """A cluster after a round of kills: all is running, all events are acknowledged."""
    cluster = Cluster(
        tmp_path_factory.mktemp("matrix") / "house", logs / f"matrix-{request.param}", kill_matrix.WRITE_KEYS
    )
    try:
        seed = kill_matrix.seed_of_round(request.param)
        cluster.start_all()
        kills, books = kill_matrix.run_round(cluster, seed, HITS)
        say(kill_matrix.table_of(kills))
        stored = {name: read(cluster) for name, read in judge.READERS.items()}
        yield SimpleNamespace(cluster=cluster, kills=kills, books=books, stored=stored)
    finally:
        cluster.stop_all()


def test_every_point_is_met(matrix):
    met = Counter(kill.point for kill in matrix.kills)
    wanted = [*points.OF_COLLECTOR, *points.OF_AGENT, points.IDLE]
    assert [point.name for point in wanted if met[point] < HITS] == []


def test_a_commit_is_done_from_its_swap_on_and_not_before(matrix):
    known = [kill for kill in matrix.kills if kill.committed is not None]
    assert known, "no kill fell on a commit"
    for kill in known:
        if kill.point.committed != points.EITHER:
            assert kill.committed == (kill.point.committed == points.ALWAYS), kill
    after = [kill for kill in matrix.kills if kill.point.committed == points.ALWAYS]
    assert after and all(kill.committed for kill in after), "not known whether the swap was done"


@pytest.mark.parametrize("reader", judge.READERS)
def test_nothing_is_lost_and_nothing_is_stored_twice(matrix, reader):
    stored = matrix.stored[reader]
    assert len(matrix.books.must_be_stored) >= EVENTS_MIN and matrix.books.must_be_quarantined
    assert judge.faults(stored, matrix.books) == []
    say(f"{reader}: {len(stored['events'])} rows stored, {len(stored['quarantine'])} quarantined, 0 lost, 0 twice")


def test_both_readers_see_the_same_rows(matrix):
    assert matrix.stored["pyiceberg"] == matrix.stored["chdb"]


def test_no_live_file_is_listed_twice(matrix):
    assert judge.files_listed_twice(matrix.cluster) == []


def test_the_judge_sees_an_event_that_comes_again_in_a_new_epoch(matrix):
    for stored in matrix.stored.values():
        agent, epoch, _, message_id = next(row for row in stored["events"] if row[3] in matrix.books.posted_once)
        again = {**stored, "events": [*stored["events"], (agent, epoch + 1, 1, message_id)]}
        epochs, twice = judge.faults(again, matrix.books)
        assert f"{agent} has 2 epochs" in epochs and message_id in twice


# The judge is shown tables that are wrong. These come last, because the tables stay so.


def first_file(table):
    return next(iter(table.scan().plan_files())).file


def faults_by_all(matrix):
    return [" ".join(judge.faults(read(matrix.cluster), matrix.books)) for read in judge.READERS.values()]


def test_the_judge_sees_a_file_that_is_committed_twice(matrix):
    table = readers.iceberg_table(matrix.cluster.data, "raw.events")
    file = first_file(table)
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        append.append_data_file(file)
    assert judge.files_listed_twice(matrix.cluster) == [file.file_path]
    assert all("raw.events" in found and "stored twice" in found for found in faults_by_all(matrix))


def test_the_judge_sees_a_file_that_is_gone(matrix):
    table = readers.iceberg_table(matrix.cluster.data, "raw.quarantine")
    with table.transaction() as transaction, transaction.update_snapshot().overwrite() as overwrite:
        overwrite.delete_data_file(first_file(table))
    for found in faults_by_all(matrix):
        assert "sequences are missing" in found
        assert "raw.quarantine" in found and "lost that were answered with 200" in found
