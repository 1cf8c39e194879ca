"""Headless Chromium that shows a page of a site, and the site.

The site is an origin of its own, as a customer's is, so that all the page sends to the agent is under
the browser's rules for other origins (CORS). The page loads the bundle that Segment's browser library
ships, and does what the test orders: `browser/page.js`.
"""

import collections
import json
import os
import queue
import threading
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from processes import Process

PAGES = Path(__file__).parent.parent / "browser"
LIBRARY = Path(os.environ.get("NODE_PATH", "node_modules")) / "@segment" / "analytics-next" / "dist" / "umd" / "index.js"
FILES = {
    "/desk.html": (PAGES / "desk.html", "text/html"),
    "/elsewhere.html": (PAGES / "elsewhere.html", "text/html"),
    "/page.js": (PAGES / "page.js", "text/javascript"),
    "/analytics-next.js": (LIBRARY, "text/javascript"),
}
FLAGS = (
    "--headless",
    # Its sandbox does not work for root. It shows our own page only, and reaches nothing but loopback.
    "--no-sandbox",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # A page that is left is gone, as when its tab is closed, and not kept to come back to.
    "--disable-features=BackForwardCache",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-crash-reporter",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--no-first-run",
    # What the page says on its console comes into the log too.
    "--enable-logging=stderr",
)


class Site(ThreadingHTTPServer):
    """Serves the pages, gives them their orders and takes what came of them."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Visit)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.orders = queue.SimpleQueue()
        self.awaited = collections.deque()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def outcome(self):
        """Returns the future of what the page tells next."""
        self.awaited.append(Future())
        return self.awaited[-1]


class Visit(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path not in FILES:
            self.send_error(404)
            return
        path, content_type = FILES[self.path]
        self.answer(path.read_bytes(), content_type)

    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["content-length"])))
        awaited = self.server.awaited.popleft()
        if "error" in told:
            awaited.set_exception(AssertionError(told["error"]))
        else:
            awaited.set_result(told.get("result"))
        self.answer(json.dumps(self.server.orders.get()).encode(), "application/json")

    def answer(self, body, content_type):
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Browser:
    """A visitor's browser with the site's desk open. Its profile is `directory`."""

    def __init__(self, name, directory, log_path):
        self.site = Site()
        self.shown = self.site.outcome()
        self.process = Process(
            name,
            ["chromium", *FLAGS, f"--user-data-dir={directory}", f"{self.site.url}/desk.html"],
            log_path,
            {"HOME": str(directory)},
        )

    def order(self, name, *details):
        """Gives the page an order of `browser/page.js`; returns the future of its result."""
        outcome = self.site.outcome()
        self.site.orders.put([name, *details])
        return outcome

    def do(self, name, *details, within_s=30):
        """Gives the page an order and returns the result."""
        outcome = self.order(name, *details)
        try:
            return outcome.result(within_s)
        except TimeoutError:
            raise AssertionError(f"not within {within_s} s: {name}; the log ends:\n{self.process.tail()}") from None

    def close(self):
        self.process.kill()
        self.site.shutdown()
        self.site.server_close()


def segment_options(address, **options):
    """Returns the library's options under `integrations['Segment.io']` that name the host."""
    host, port = address
    return {"apiHost": f"{host}:{port}/v1", "protocol": "http", **options}
