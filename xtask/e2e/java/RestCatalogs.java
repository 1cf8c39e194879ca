import jakarta.servlet.ServletException;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletRequestWrapper;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.Stream;
import org.apache.hadoop.conf.Configuration;
import org.apache.iceberg.CatalogUtil;
import org.apache.iceberg.catalog.Catalog;
import org.apache.iceberg.rest.RESTCatalogAdapter;
import org.apache.iceberg.rest.RESTCatalogServlet;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.servlet.ServletContextHandler;
import org.eclipse.jetty.servlet.ServletHolder;

/**
 * Apache Iceberg's own REST catalog (its test fixture: servlet, adapter, JdbcCatalog), as many of them
 * as are asked for: {@code /NAME/v1/...} is the catalog in {@code DIRECTORY/NAME.db}. Its own main
 * method has one catalog and listens to the whole network; this one listens on loopback.
 *
 * <p>Usage: RestCatalogs DIRECTORY PORT. Prints the port. When its standard input ends, whoever started
 * it has gone: it removes the directory and ends.
 */
public final class RestCatalogs extends HttpServlet {
  private final Path directory;
  private final Configuration hadoop = new Configuration();
  private final Map<String, RESTCatalogServlet> catalogs = new ConcurrentHashMap<>();

  private RestCatalogs(Path directory) {
    this.directory = directory;
  }

  public static void main(String[] arguments) throws Exception {
    InetSocketAddress address =
        new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[1]));
    Server server = new Server(address);
    ServletContextHandler context = new ServletContextHandler();
    context.addServlet(new ServletHolder(new RestCatalogs(Path.of(arguments[0]))), "/*");
    server.setHandler(context);
    server.start();
    System.out.println(((ServerConnector) server.getConnectors()[0]).getLocalPort());
    while (System.in.read() != -1) {}
    server.stop();
    try (Stream<Path> files = Files.walk(Path.of(arguments[0]))) {
      files.sorted(Comparator.reverseOrder()).forEach(file -> file.toFile().delete());
    }
    Runtime.getRuntime().halt(0);
  }

  @Override
  protected void service(HttpServletRequest request, HttpServletResponse response)
      throws ServletException, IOException {
    String[] path = request.getRequestURI().split("/", 3);
    RESTCatalogServlet catalog = catalogs.computeIfAbsent(path[1], this::open);
    catalog.service(
        new HttpServletRequestWrapper(request) {
          @Override
          public String getRequestURI() {
            return "/" + path[2];
          }
        },
        response);
  }

  private RESTCatalogServlet open(String name) {
    Path database = directory.resolve(name + ".db");
    Map<String, String> settings =
        Map.of(
            "catalog-impl", "org.apache.iceberg.jdbc.JdbcCatalog",
            "uri", "jdbc:sqlite:" + database + "?busy_timeout=5000&synchronous=OFF&journal_mode=WAL",
            // One connection: a read of another one can lock the file for good.
            "clients", "1",
            "jdbc.schema-version", "V1",
            "warehouse", directory.resolve(name).toString());
    Catalog catalog = CatalogUtil.buildIcebergCatalog("rest_backend", settings, hadoop);
    return new RESTCatalogServlet(new RESTCatalogAdapter(catalog));
  }
}
