"""The points at which a process is killed: what a collector and an agent do, seen from the kernel.

They are the rows of "Where a collector can die" in docs/exactly-once.md, and more; `tracer.py` says how
the lines read.
"""

from dataclasses import dataclass

EVENTS, QUARANTINE = "events", "quarantine"
NEVER, ALWAYS, EITHER = "never", "always", "either"
# SQLite's write-ahead log, and the byte that its writer holds locked.
LOG, WRITER_LOCK = r"/catalog\.db-wal$", r"120 .*/catalog\.db-shm$"


@dataclass(frozen=True)
class Point:
    """Where a process dies, and what must then be true of the commit that it was working on."""

    name: str
    steps: tuple = ()
    # The table whose commit was on its way.
    table: str = ""
    # Whether that commit is done.
    committed: str = NEVER
    at_start: bool = False
    # It is frozen here first, and dies at its next commit, after others have committed.
    freezes: bool = False

    def order(self, number, then="kill"):
        """Returns the order for the tracer. Another metadata file is another commit: the last one lost."""
        back = r"^> create .*\.metadata\.json$"
        return {"number": number, "steps": self.steps, "back": back, "then": then}


def of_a_commit(table):
    """Returns the points of one table's commit up to its swap."""
    data = rf"/raw/{table}/data/.*\.parquet$"
    manifest = rf"/raw/{table}/metadata/[^/]*-m0\.avro$"
    listed = rf"/raw/{table}/metadata/snap-[^/]*\.avro$"
    metadata = rf"/raw/{table}/metadata/[^/]*\.metadata\.json$"
    # A file that is synced is gone after a power cut when its entry is not. The directories of data file and
    # metadata file are synced in the order of their paths; where one is left out, no swap is met.
    entries = (rf"^< fsync .*/raw/{table}/data/[^/]*$", rf"^< fsync .*/raw/{table}/metadata$")
    swap = (rf"^< fsync .*{metadata}", *entries, rf"^> pwrite64 .*{LOG}")
    on_disk = (*swap, rf"^< fsync .*{LOG}")
    done = (*on_disk, rf"^> unlock {WRITER_LOCK}")
    steps = {
        "data file made": ((rf"^< create .*{data}",), NEVER),
        "data file written": ((rf"^< fsync .*{data}",), NEVER),
        "data file closed": ((rf"^< close .*{data}",), NEVER),
        "manifest made": ((rf"^< create .*{manifest}",), NEVER),
        "manifest written": ((rf"^< fsync .*{manifest}",), NEVER),
        "manifest list written": ((rf"^< fsync .*{listed}",), NEVER),
        "metadata file made": ((rf"^< create .*{metadata}",), NEVER),
        "metadata file written": ((rf"^< fsync .*{metadata}",), NEVER),
        "swap asked for": (swap, NEVER),
        "swap half written": ((*swap, rf"^< pwrite64 .*{LOG}"), NEVER),
        # Readers learn of it through shared memory, which comes next, or when the log is recovered
        # because no process has it open any more.
        "swap on disk, nobody can see it": (on_disk, EITHER),
        "swap done, answer not read": (done, ALWAYS),
    }
    return [Point(f"{table}: {name}", way, table, committed) for name, (way, committed) in steps.items()]


ANY_MOMENT = Point("any moment")
IDLE = Point("idle")
OF_EVENTS = {point.name: point for point in of_a_commit(EVENTS)}
BEFORE_SWAP = OF_EVENTS["events: metadata file written"]
IN_LOG_ONLY = OF_EVENTS["events: swap on disk, nobody can see it"]
PLANNED = OF_EVENTS["events: data file closed"]
FROZEN = [
    Point("events: frozen with a plan and its data file", PLANNED.steps, EVENTS, freezes=True),
    Point("events: frozen before the swap", BEFORE_SWAP.steps, EVENTS, freezes=True),
]
NEXT_COMMIT = Point("next commit after the freeze", (r"^> create .*\.metadata\.json$",))


def after_the_swap():
    done = OF_EVENTS["events: swap done, answer not read"].steps
    return [
        Point("events: committed, nothing sent since", (*done, "^> send$"), EVENTS, ALWAYS),
        Point("events: committed, a datagram sent since", (*done, "^< send$"), EVENTS, ALWAYS),
    ]


OF_COLLECTOR = [
    Point("starting: port bound", ("^< bind$",), at_start=True),
    Point("starting: catalog opened", (r"^< (open|create) .*/catalog\.db$",), at_start=True),
    ANY_MOMENT,
    *of_a_commit(QUARANTINE),
    *OF_EVENTS.values(),
    *after_the_swap(),
    *FROZEN,
]

BUFFER, MARKS = r"/generations/[^/]*/db$", r"/marks$"

OF_AGENT = [
    Point("agent starting: buffer opened", (r"^< (open|create) .*/buffer\.json$",), at_start=True),
    Point("agent: events written, not synced", (rf"^< pwrite64 .*{BUFFER}",)),
    Point("agent: events durable, not answered", (rf"^< fdatasync .*{BUFFER}",)),
    Point("agent: answered with 200", (r"^< writev socket:\S* HTTP/1.1 200 OK\s+content-type: application/json",)),
    Point("agent: batch about to leave", (rf"^< fdatasync .*{MARKS}", "^> send$")),
    Point("agent: batch on its way", (rf"^< fdatasync .*{MARKS}", "^< send$")),
]
