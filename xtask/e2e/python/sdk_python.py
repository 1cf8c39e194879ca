"""Sends events with `segment-analytics-python` as an application would, until its input closes.

Arguments: host, write key, file with one event per line, file for the report. Only the host differs
from the SDK's defaults.
"""

import json
import sys
import threading
from datetime import datetime

from segment.analytics.client import Client

PACE_S = 0.01


def main(host, write_key, events_path, report_path):
    closed = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), closed.set()), daemon=True).start()

    given_up = []
    client = Client(
        write_key,
        host=host,
        on_error=lambda error, items: given_up.append(f"{error}: {len(items)} events"),
    )
    sent = []
    with open(events_path) as events:
        for line in events:
            # Also paces: an application is not a flood.
            if closed.wait(PACE_S):
                break
            event = json.loads(line)
            queued, _ = client.track(
                user_id=event["userId"],
                event=event["event"],
                properties=event["properties"],
                timestamp=datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00")),
                message_id=event["messageId"],
            )
            if queued:
                sent.append(event["messageId"])
    closed.wait()
    client.flush()
    client.join()
    with open(report_path, "w") as report:
        json.dump({"sent": sent, "given_up": given_up}, report)


main(*sys.argv[1:])
