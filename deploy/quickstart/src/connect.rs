//! How to connect: what a person types next, with the real addresses and paths of this run.

use std::net::SocketAddr;
use std::path::Path;

use crate::node::{DEMO_SOURCE, DEMO_USER, DEMO_WRITE_KEY};

/// Returns the text for a node that listens on `http` and `sql` and whose CA is `ca`.
pub fn text(http: SocketAddr, sql: SocketAddr, admin: [SocketAddr; 3], ca: &Path) -> String {
    let ca = ca.display();
    let port = sql.port();
    let [agent, collector, flight_sql] = admin;
    format!(
        r#"Send an event of your own (write key {DEMO_WRITE_KEY})

  curl -u {DEMO_WRITE_KEY}: http://{http}/v1/track -d '{{"userId": "me", "event": "Hello Headwater"}}'

  and find it two seconds later: SELECT * FROM events WHERE source_id = '{DEMO_SOURCE}'
  and in the reports after `headwater night` (cargo run --release -- night)

SQL (user {DEMO_USER}, password {DEMO_USER})

  JDBC, DBeaver (driver org.apache.arrow:flight-sql-jdbc-driver)

  jdbc:arrow-flight-sql://localhost:{port}/?useEncryption=true&user={DEMO_USER}&password={DEMO_USER}&tlsRootCerts={ca}

  Python (pip install adbc-driver-flightsql pyarrow)

  from adbc_driver_flightsql import dbapi
  with dbapi.connect("grpc+tls://localhost:{port}", db_kwargs={{
      "username": "{DEMO_USER}", "password": "{DEMO_USER}",
      "adbc.flight.sql.client_option.tls_root_certs": open("{ca}").read(),
  }}, autocommit=True) as connection, connection.cursor() as cursor:
      cursor.execute("SELECT event_name, count(*) AS n FROM events WHERE type = 'track' GROUP BY 1 ORDER BY n DESC")
      for event_name, n in cursor.fetchall():
          print(n, event_name)

Metrics: http://{agent}/metrics (agent), http://{collector}/metrics (collector), http://{flight_sql}/metrics (SQL)
"#
    )
}
