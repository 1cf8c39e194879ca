// Reads everything through a Flight SQL JDBC driver as DBeaver would, and prints what it saw as JSON.
//
// Arguments: URL, user, password, CA certificate (PEM; all three empty when the URL says all), then a prepared query with four parameters
// (string, int, timestamp, string) as: SQL, string, int, timestamp (ISO), string.
// Run as: java --add-opens=java.base/java.nio=org.apache.arrow.memory.core,ALL-UNNAMED
//              -cp DRIVER.jar Main.java ...

import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Timestamp;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Calendar;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TimeZone;

public class Main {
    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        if (!arguments[1].isEmpty()) {
            properties.setProperty("user", arguments[1]);
            properties.setProperty("password", arguments[2]);
            properties.setProperty("useEncryption", "true");
            properties.setProperty("useSystemTrustStore", "false");
            properties.setProperty("tlsRootCerts", arguments[3]);
        }
        Map<String, Object> seen = new LinkedHashMap<>();
        try (Connection connection = DriverManager.getConnection(arguments[0], properties)) {
            DatabaseMetaData metadata = connection.getMetaData();
            seen.put("driver", metadata.getDriverVersion());
            seen.put("product", metadata.getDatabaseProductName());
            seen.put("quote", metadata.getIdentifierQuoteString());
            seen.put("readOnly", metadata.isReadOnly());
            seen.put("keywords", metadata.getSQLKeywords());
            seen.put("catalogs", column(metadata.getCatalogs(), "TABLE_CAT"));
            seen.put("schemas", column(metadata.getSchemas(), "TABLE_SCHEM"));
            seen.put("tableTypes", column(metadata.getTableTypes(), "TABLE_TYPE"));
            seen.put("typeInfoColumns", columnCount(metadata.getTypeInfo()));
            seen.put("tables", tables(connection, metadata));
            seen.put("prepared", prepared(connection, arguments));
            seen.put("million", million(connection));
            firstRows(connection, seen);
            seen.put("badQuery", badQuery(connection));
        }
        System.out.println(json(seen));
    }

    /** Everything that a tree of tables shows: columns, keys, and the number of rows. */
    static List<Object> tables(Connection connection, DatabaseMetaData metadata) throws SQLException {
        List<Map<String, Object>> tables = new ArrayList<>();
        try (ResultSet rows = metadata.getTables(null, null, "%", null)) {
            while (rows.next()) {
                Map<String, Object> table = new LinkedHashMap<>();
                table.put("catalog", rows.getString("TABLE_CAT"));
                table.put("schema", rows.getString("TABLE_SCHEM"));
                table.put("name", rows.getString("TABLE_NAME"));
                table.put("type", rows.getString("TABLE_TYPE"));
                tables.add(table);
            }
        }
        Map<String, List<Object>> columns = new LinkedHashMap<>();
        try (ResultSet rows = metadata.getColumns(null, null, "%", "%")) {
            while (rows.next()) {
                String table = rows.getString("TABLE_SCHEM") + "." + rows.getString("TABLE_NAME");
                columns.computeIfAbsent(table, unused -> new ArrayList<>())
                        .add(rows.getString("COLUMN_NAME") + " " + rows.getString("TYPE_NAME"));
            }
        }
        for (Map<String, Object> table : tables) {
            String schema = (String) table.get("schema");
            String name = (String) table.get("name");
            table.put("columns", columns.getOrDefault(schema + "." + name, List.of()));
            // `_` stands for any character here, so the name is escaped as DBeaver does it.
            String escaped = name.replace("_", metadata.getSearchStringEscape() + "_");
            table.put("columnsByEscapedName", column(metadata.getColumns(null, schema, escaped, null), "COLUMN_NAME").size());
            table.put("primaryKey", column(metadata.getPrimaryKeys((String) table.get("catalog"), schema, name), "COLUMN_NAME"));
            if (!schema.equals("information_schema")) {
                table.put("rows", count(connection, schema, name));
            }
        }
        return new ArrayList<>(tables);
    }

    static long count(Connection connection, String schema, String name) throws SQLException {
        String sql = "SELECT count(*) FROM \"" + schema + "\".\"" + name + "\"";
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getLong(1);
        }
    }

    /** A prepared statement, run with its parameters, then again with another one of them. */
    static Map<String, Object> prepared(Connection connection, String[] arguments) throws SQLException {
        Map<String, Object> seen = new LinkedHashMap<>();
        Calendar utc = Calendar.getInstance(TimeZone.getTimeZone("UTC"));
        try (PreparedStatement statement = connection.prepareStatement(arguments[4])) {
            seen.put("parameters", statement.getParameterMetaData().getParameterCount());
            for (String last : new String[] {arguments[8], "no such value"}) {
                statement.setString(1, arguments[5]);
                statement.setInt(2, Integer.parseInt(arguments[6]));
                statement.setTimestamp(3, Timestamp.from(Instant.parse(arguments[7])), utc);
                statement.setString(4, last);
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    seen.put(last.equals(arguments[8]) ? "count" : "countOfOther", rows.getLong(1));
                }
            }
        }
        return seen;
    }

    static Map<String, Object> million(Connection connection) throws SQLException {
        long rows = 0;
        long sum = 0;
        String sql = "SELECT value FROM generate_series(1, 1000000)";
        try (Statement statement = connection.createStatement(); ResultSet result = statement.executeQuery(sql)) {
            while (result.next()) {
                rows++;
                sum += result.getLong(1);
            }
        }
        return Map.of("rows", rows, "sum", sum);
    }

    /** A data view: the first rows of a wide table with every type, without LIMIT in the text. */
    static void firstRows(Connection connection, Map<String, Object> seen) throws SQLException {
        List<Object> ids = new ArrayList<>();
        Set<Object> unreadable = new LinkedHashSet<>();
        try (Statement statement = connection.createStatement()) {
            statement.setMaxRows(200);
            try (ResultSet rows = statement.executeQuery("SELECT t.* FROM core.events t")) {
                ResultSetMetaData metadata = rows.getMetaData();
                while (rows.next()) {
                    for (int column = 1; column <= metadata.getColumnCount(); column++) {
                        try {
                            rows.getObject(column);
                        } catch (SQLException | RuntimeException error) {
                            unreadable.add(metadata.getColumnLabel(column) + ": " + error);
                        }
                    }
                    ids.add(rows.getString("message_id"));
                }
            }
        }
        seen.put("firstRows", ids);
        seen.put("unreadableColumns", new ArrayList<>(unreadable));
    }

    /** What a person reads after a typing error. */
    static String badQuery(Connection connection) {
        try (Statement statement = connection.createStatement()) {
            statement.executeQuery("SELECT no_such_column FROM raw.events").close();
            return "";
        } catch (SQLException error) {
            return String.valueOf(error.getMessage());
        }
    }

    static List<Object> column(ResultSet rows, String name) throws SQLException {
        List<Object> values = new ArrayList<>();
        try (rows) {
            while (rows.next()) {
                values.add(rows.getString(name));
            }
        }
        return values;
    }

    static int columnCount(ResultSet rows) throws SQLException {
        try (rows) {
            while (rows.next()) {
                rows.getString("TYPE_NAME");
            }
            return rows.getMetaData().getColumnCount();
        }
    }

    static String json(Object value) {
        if (value instanceof Map<?, ?> map) {
            List<String> entries = new ArrayList<>();
            map.forEach((key, entry) -> entries.add(json(String.valueOf(key)) + ":" + json(entry)));
            return "{" + String.join(",", entries) + "}";
        }
        if (value instanceof List<?> list) {
            List<String> items = new ArrayList<>();
            list.forEach(item -> items.add(json(item)));
            return "[" + String.join(",", items) + "]";
        }
        if (value instanceof String text) {
            StringBuilder out = new StringBuilder("\"");
            for (char c : text.toCharArray()) {
                if (c == '"' || c == '\\') {
                    out.append('\\').append(c);
                } else if (c < ' ') {
                    out.append(String.format("\\u%04x", (int) c));
                } else {
                    out.append(c);
                }
            }
            return out.append('"').toString();
        }
        return String.valueOf(value);
    }
}
