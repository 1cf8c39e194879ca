"""Those who read: PyIceberg and chDB from the files, Python ADBC and JDBC through Flight SQL."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pyarrow
from adbc_driver_flightsql import DatabaseOptions, dbapi
from pyiceberg.catalog.sql import SqlCatalog

from house import SQL_PASSWORD, SQL_USER
from processes import run

JAVA_SOURCE = Path(__file__).parent.parent / "java" / "Main.java"
# In a process of its own, at the root: chDB reads no file outside its directory.
CHDB = "import chdb, sys; open(sys.argv[2], 'wb').write(chdb.query(sys.argv[1], 'Arrow').bytes())"
JDBC_DRIVERS = dict(
    entry.split("=", 1) for entry in os.environ.get("HEADWATER_E2E_JDBC", "").split(",") if entry
)


def iceberg_catalog(data):
    """Opens the SQLite catalog of a data directory with PyIceberg."""
    return SqlCatalog(
        "headwater", uri=f"sqlite:///{data / 'catalog.db'}", warehouse=f"file://{data / 'warehouse'}"
    )


def iceberg_tables(data):
    """Returns every table by its name `namespace.table`."""
    catalog = iceberg_catalog(data)
    return {
        ".".join(identifier): catalog.load_table(identifier)
        for namespace in catalog.list_namespaces()
        for identifier in catalog.list_tables(namespace)
    }


def iceberg_table(data, name):
    return iceberg_catalog(data).load_table(name)


def rows_of(table, *columns):
    """Returns the columns of all rows, read from the files by PyIceberg."""
    selected = columns if columns else ("*",)
    return table.scan(selected_fields=selected).to_arrow()


def chdb_rows_of(head, columns, scratch):
    """Returns the columns of all rows, read from the files by chDB (ClickHouse).

    `head` is the metadata file that the catalog names: beside it lie others of the same version, which
    a killed commit has left and no catalog names.
    """
    source = f"icebergLocal('{head.parent.parent}/', SETTINGS iceberg_metadata_file_path = 'metadata/{head.name}')"
    sql = f"SELECT {', '.join(columns)} FROM {source}"
    done = run([sys.executable, "-c", CHDB, sql, scratch], directory="/", within_s=300)
    assert done.returncode == 0, f"chDB failed:\n{done.stderr[-4000:]}"
    return pyarrow.ipc.open_file(scratch).read_all()


@contextmanager
def flight_sql(port, ca, user=SQL_USER, password=SQL_PASSWORD):
    """Connects Python ADBC."""
    options = {
        "username": user,
        "password": password,
        DatabaseOptions.TLS_ROOT_CERTS.value: ca.read_text(),
    }
    with dbapi.connect(f"grpc+tls://127.0.0.1:{port}", options, autocommit=True) as connection:
        yield connection


def query(connection, sql, parameters=None):
    """Runs a statement and returns its rows as tuples."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()


def jdbc(version, port, ca, prepared):
    """Runs the Java program with one driver and returns what it saw."""
    url = f"jdbc:arrow-flight-sql://localhost:{port}"
    return jdbc_by(version, [url, SQL_USER, SQL_PASSWORD, ca, *prepared])


def jdbc_by_url(version, url, prepared):
    """As `jdbc`, with a URL that says everything, as people copy it."""
    return jdbc_by(version, [url, "", "", "", *prepared])


def jdbc_by(version, arguments, within_s=300):
    done = run(
        [
            "java",
            "-Duser.timezone=America/New_York",
            "--add-opens=java.base/java.nio=org.apache.arrow.memory.core,ALL-UNNAMED",
            "-cp",
            JDBC_DRIVERS[version],
            JAVA_SOURCE,
            *arguments,
        ],
        within_s=within_s,
    )
    assert done.returncode == 0, f"JDBC {version} failed:\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.strip().splitlines()[-1])
