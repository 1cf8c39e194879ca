"""A visitor leaves the page before all its events are sent.

What Segment's browser library promises then depends on how the site lets it send:

- one by one, its default: what no answer has come for is kept in the site's storage and sent at the
  next visit (its `plugins/segmentio/index.ts`, `lib/priority-queue/persisted.ts`);
- in batches: what waits for its batch is sent in the moment of leaving, by requests that outlive the
  page (its `plugins/segmentio/batched-dispatcher.ts`).
"""

import signal
from contextlib import contextmanager

import pytest

import readers
from browser import Browser, segment_options
from house import House
from waiting import eventually

KEYS = ("kept", "sent-at-once")


@pytest.fixture(scope="module")
def desk(tmp_path_factory, logs):
    keys = [{"key": f"key-{name}", "company": name, "source": "e2e", "kind": "browser"} for name in KEYS]
    house = House(tmp_path_factory.mktemp("browser") / "house", logs / "browser", keys)
    house.start_and_wait("collector", "agent")
    yield house
    house.stop_all()


@pytest.fixture
def browser(desk, request):
    browser = Browser("chromium", desk.directory / request.node.name, desk.logs / f"{request.node.name}.log")
    yield browser
    browser.close()


def load(browser, desk, name, **options):
    browser.do("load", f"key-{name}", segment_options(("127.0.0.1", desk.ports["http"]), **options))


@contextmanager
def silent(process):
    """It takes connections meanwhile, and what is sent on them, and answers nothing."""
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


def wait_for_stored(desk, company, ids):
    def is_stored():
        table = readers.iceberg_table(desk.data, "raw.events")
        rows = readers.rows_of(table, "company_id", "message_id").to_pylist()
        stored = {row["message_id"] for row in rows if row["company_id"] == company}
        assert stored == set(ids), f"missing {len(set(ids) - stored)}, unknown {len(stored - set(ids))}"
        return True

    eventually("what was made is stored", is_stored)


def test_what_was_not_answered_is_sent_at_the_next_visit(desk, browser):
    load(browser, desk, "kept")
    answered = browser.do("track", 20)
    browser.do("tried")
    with silent(desk.processes["agent"]):
        # Some requests are under way when the page goes, most have not begun.
        unanswered = browser.do("track", 40)
        browser.do("visit", "/elsewhere.html")
        assert sorted(browser.do("left")) == sorted(unanswered)
    browser.do("visit", "/desk.html")
    load(browser, desk, "kept")
    assert len(set(answered + unanswered)) == 60
    wait_for_stored(desk, "kept", answered + unanswered)


def test_a_batch_that_waits_is_sent_when_the_page_goes(desk, browser):
    load(browser, desk, "sent-at-once", deliveryStrategy={"strategy": "batching"})
    before = desk.metric("agent", "agent_events_received_total")
    ids = browser.do("track", 5)
    assert len(set(ids)) == 5
    assert desk.metric("agent", "agent_events_received_total") == before, "a batch waits 5 s for 10 events"
    browser.do("visit", "/elsewhere.html")
    assert browser.do("left") == []
    wait_for_stored(desk, "sent-at-once", ids)
