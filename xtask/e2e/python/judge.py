"""Judges what is stored against what was answered with 200, from the rows as one reader sees them.

Every check is a pure function of rows and books, so that the tests can show it rows that are wrong.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import readers

POSITION = ("_agent_id", "_epoch", "_sequence")
COLUMNS = (*POSITION, "message_id")
TABLES = ("events", "quarantine")


@dataclass
class Books:
    """Message ids of the events that senders posted, valid and invalid ones, by what they were told."""

    must_be_stored: set = field(default_factory=set)
    may_be_stored: set = field(default_factory=set)
    must_be_quarantined: set = field(default_factory=set)
    may_be_quarantined: set = field(default_factory=set)
    # Posted a single time: a sender that retries may store an event twice, when an agent dies before its answer.
    posted_once: set = field(default_factory=set)

    def add(self, sender):
        self.must_be_stored |= sender.acknowledged
        self.may_be_stored |= sender.posted - sender.acknowledged
        self.must_be_quarantined |= sender.invalid_acknowledged
        self.may_be_quarantined |= sender.invalid_posted - sender.invalid_acknowledged
        if not sender.retries:
            self.posted_once |= sender.posted | sender.invalid_posted


def rows_by_pyiceberg(cluster):
    return {
        table: rows(readers.rows_of(readers.iceberg_table(cluster.data, f"raw.{table}"), *COLUMNS))
        for table in TABLES
    }


def rows_by_chdb(cluster):
    scratch = cluster.directory / "chdb.arrow"
    return {
        table: rows(readers.chdb_rows_of(Path(cluster.head(table)), COLUMNS, scratch)) for table in TABLES
    }


READERS = {"pyiceberg": rows_by_pyiceberg, "chdb": rows_by_chdb}


def rows(arrow):
    """Returns the rows as sorted tuples of `COLUMNS`."""
    return sorted(zip(*(arrow[column].to_pylist() for column in COLUMNS), strict=True))


def faults(stored, books):
    """Returns what is wrong with the rows of both tables, in words; nothing when all is well."""
    events, quarantine = stored["events"], stored["quarantine"]
    return [
        *twice("raw.events", events),
        *twice("raw.quarantine", quarantine),
        *in_both(events, quarantine),
        *gaps([*events, *quarantine]),
        *more_epochs([*events, *quarantine]),
        *again([*events, *quarantine], books.posted_once),
        *wrong_ids("raw.events", events, books.must_be_stored, books.may_be_stored),
        *wrong_ids("raw.quarantine", quarantine, books.must_be_quarantined, books.may_be_quarantined),
    ]


def twice(table, rows):
    counts = Counter(row[:3] for row in rows)
    found = [position for position, count in counts.items() if count > 1]
    return [f"{table}: {len(found)} positions are stored twice, one is {found[0]}"] if found else []


def in_both(events, quarantine):
    found = {row[:3] for row in events} & {row[:3] for row in quarantine}
    return [f"{len(found)} positions are stored and quarantined, one is {min(found)}"] if found else []


def gaps(rows):
    sequences = defaultdict(set)
    for agent, epoch, sequence, _ in rows:
        sequences[agent, epoch].add(sequence)
    missing = {source: set(range(1, max(there) + 1)) - there for source, there in sequences.items()}
    return [
        f"{agent}, epoch {epoch}: {len(found)} sequences are missing, one is {min(found)}"
        for (agent, epoch), found in missing.items()
        if found
    ]


def more_epochs(rows):
    """No disk is set back or wiped here, so an agent has no reason to begin another epoch."""
    epochs = defaultdict(set)
    for agent, epoch, _, _ in rows:
        epochs[agent].add(epoch)
    return [f"{agent} has {len(found)} epochs: {sorted(found)}" for agent, found in epochs.items() if len(found) > 1]


def again(rows, posted_once):
    counts = Counter(row[3] for row in rows if row[3] in posted_once)
    found = [message_id for message_id, count in counts.items() if count > 1]
    return [f"{len(found)} events have two positions and were posted once, one is {min(found)}"] if found else []


def wrong_ids(table, rows, must, may):
    stored = {row[3] for row in rows}
    lost, unknown = must - stored, stored - must - may
    found = []
    if lost:
        found.append(f"{table}: {len(lost)} events are lost that were answered with 200, one is {min(lost)}")
    if unknown:
        found.append(f"{table}: {len(unknown)} events are stored that nobody sent there, one is {min(unknown)}")
    return found


def files_listed_twice(cluster):
    """Returns the data files that a table's head names more than once, as PyIceberg lists them."""
    found = []
    for table in TABLES:
        scan = readers.iceberg_table(cluster.data, f"raw.{table}").scan()
        counts = Counter(task.file.file_path for task in scan.plan_files())
        assert counts, f"raw.{table} has no file"
        found += [path for path, count in counts.items() if count > 1]
    return found
