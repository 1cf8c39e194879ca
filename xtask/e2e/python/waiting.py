"""Waiting for conditions. The only place of these tests that lets time pass."""

import time


def eventually(what, condition, within_s=60.0, interval_s=0.1):
    """Calls `condition` until it returns something true, and returns that.

    An exception counts as "not yet". After `within_s` seconds the test fails and says what was
    awaited and what the last look found.
    """
    deadline = time.monotonic() + within_s
    while True:
        try:
            found = condition()
            last = f"the last look found {found!r}"
        except Exception as error:  # noqa: BLE001 - any reason is "not yet" until the deadline
            found = None
            last = f"the last look failed: {type(error).__name__}: {error}"
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:.0f} s: {what}; {last}")
        time.sleep(interval_s)


def until_moment(seconds):
    """Lets a random moment come: for faults, never for hoping that something is finished."""
    time.sleep(seconds)
