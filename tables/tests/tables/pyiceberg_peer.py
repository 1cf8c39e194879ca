"""Reads or changes a table through PyIceberg's SqlCatalog or RestCatalog, on the catalog of the test.

Usage: pyiceberg_peer.py read|write|times TABLE CATALOG_URI WAREHOUSE PROPERTIES. Prints one JSON
object; PROPERTIES, another one, says how the warehouse is reached.
"""

import datetime
import json
import sys

import pyarrow as pa
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import EqualTo, GreaterThanOrEqual

TODAY = datetime.datetime(2026, 11, 20, tzinfo=datetime.timezone.utc)


def ids(scan) -> list[int]:
    return sorted(scan.to_arrow()["id"].to_pylist())


def read(table) -> dict:
    snapshots = sorted(table.metadata.snapshots, key=lambda snapshot: snapshot.sequence_number)
    summary = table.current_snapshot().summary
    replaced = next(s for s in snapshots if s.summary.operation.value == "replace")
    return {
        "ids": ids(table.scan()),
        "one_day": ids(table.scan(row_filter=GreaterThanOrEqual("at", TODAY.isoformat()))),
        "by_note": ids(table.scan(row_filter=EqualTo("note", "note 7"))),
        "operations": [snapshot.summary.operation.value for snapshot in snapshots],
        "total_records": summary["total-records"],
        "total_data_files": summary["total-data-files"],
        "replaced_ids": ids(table.scan(snapshot_id=replaced.snapshot_id)),
    }


def write(table) -> dict:
    rows = pa.table(
        {"id": [100], "at": [TODAY], "note": ["from python"]},
        schema=table.schema().as_arrow(),
    )
    table.append(rows)
    table.delete(EqualTo("id", 2))
    return {"metadata_location": table.metadata_location}


def times(table) -> dict:
    """Reads each moment by itself and everything from it on; ids have the order of the moments."""
    every = table.scan().to_arrow().sort_by("id")
    moments = [moment.isoformat() for moment in every["at"].to_pylist()]
    days = [partition["at_day"] for partition in table.inspect.partitions()["partition"].to_pylist()]
    epoch = datetime.date(1970, 1, 1)
    return {
        "partitions": sorted((day - epoch).days for day in days),
        "from": [ids(table.scan(row_filter=GreaterThanOrEqual("at", moment))) for moment in moments],
        "at": [ids(table.scan(row_filter=EqualTo("at", moment))) for moment in moments],
    }


def main() -> None:
    command, name, uri, warehouse, properties = sys.argv[1:]
    kind = RestCatalog if uri.startswith("http") else SqlCatalog
    catalog = kind("headwater", uri=uri, warehouse=warehouse, **json.loads(properties))
    table = catalog.load_table(name)
    print(json.dumps({"read": read, "write": write, "times": times}[command](table)))


main()
