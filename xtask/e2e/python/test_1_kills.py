"""No event is lost and none is stored twice, however often agent and collector are killed."""

from collections import defaultdict

import readers
from processes import say

POSITION = ("_agent_id", "_epoch", "_sequence")


def positions_of(house, name):
    rows = readers.rows_of(readers.iceberg_table(house.data, name), *POSITION).to_pylist()
    return [tuple(row[column] for column in POSITION) for row in rows]


def message_ids_of(house, name):
    table = readers.iceberg_table(house.data, name)
    return readers.rows_of(table, "message_id")["message_id"].to_pylist()


def test_kills_and_traffic_really_happened(after_kills):
    assert sum(after_kills.killed.values()) >= 20
    assert min(after_kills.killed.values()) >= 8
    assert after_kills.failed_requests > 0, "no request ever failed: were the kills real?"
    for name, ids in after_kills.must_be_stored.items():
        assert len(ids) >= 200, f"{name} sent only {len(ids)} events"


def test_no_sdk_gave_up(after_kills):
    assert after_kills.given_up == []


def test_stored_events_are_exactly_the_sent_ones(after_kills, house):
    stored = set(message_ids_of(house, "raw.events"))
    sent = set().union(*after_kills.must_be_stored.values())
    assert sent - stored == set(), "acknowledged events are lost"
    assert stored - sent - after_kills.may_be_stored == set(), "events that nobody sent"
    say(f"{len(stored)} distinct events stored, 0 lost")


def test_each_position_is_stored_once(after_kills, house):
    stored = positions_of(house, "raw.events")
    assert len(stored) == len(set(stored)), "an event is stored twice"
    quarantined = positions_of(house, "raw.quarantine")
    assert len(quarantined) == len(set(quarantined)), "an event is quarantined twice"
    assert not set(stored) & set(quarantined), "an event is stored and quarantined"
    say(f"{len(stored)} rows stored and {len(quarantined)} quarantined, 0 twice")


def test_sequences_have_no_gaps(after_kills, house):
    by_epoch = defaultdict(set)
    for agent, epoch, sequence in positions_of(house, "raw.events") + positions_of(house, "raw.quarantine"):
        by_epoch[agent, epoch].add(sequence)
    for (agent, epoch), sequences in by_epoch.items():
        assert sequences == set(range(1, max(sequences) + 1)), f"gaps in {agent}, epoch {epoch}"


def test_invalid_events_are_in_quarantine_with_reason_and_bytes(after_kills, house):
    table = readers.iceberg_table(house.data, "raw.quarantine")
    rows = readers.rows_of(table, "message_id", "failure_type", "errors", "payload").to_pylist()
    quarantined = {row["message_id"] for row in rows}
    assert after_kills.must_be_quarantined, "no invalid event was sent"
    assert after_kills.must_be_quarantined <= quarantined
    assert quarantined <= after_kills.must_be_quarantined | after_kills.may_be_quarantined
    for row in rows:
        assert row["failure_type"] == "schema_violation"
        (error,) = row["errors"]
        assert (error["path"], error["keyword"]) == ("$.event", "required"), error
        assert row["message_id"].encode() in row["payload"], "not the original bytes"
