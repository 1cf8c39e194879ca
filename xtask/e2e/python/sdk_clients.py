"""Sends events with one of the Python SDKs, as an application would.

Arguments, input and report are those of `node/clients.cjs`. Nothing of an SDK's defaults is changed
but the host, and gzip where the client's name says so.
"""

import json
import os
import sys
import threading
import uuid

PACE_S = 0.01


def segment(host, write_key, errors, **options):
    from segment.analytics.client import Client

    return segment_like(Client, host, write_key, errors, **options)


def rudder(host, write_key, errors):
    from rudderstack.analytics.client import Client

    return segment_like(Client, host, write_key, errors)


def segment_like(make, host, write_key, errors, **options):
    client = make(write_key, host=host, on_error=lambda error, items: errors.append(str(error)), **options)

    def track(message_id, user_id, event, properties):
        queued, _ = client.track(user_id, event, properties, message_id=message_id)
        assert queued

    def flush():
        client.flush()
        client.join()

    return track, flush


def posthog(host, write_key, errors, capture_mode):
    from posthog import Posthog

    client = Posthog(
        write_key, host=host, capture_mode=capture_mode, on_error=lambda error, items: errors.append(str(error))
    )

    def track(message_id, user_id, event, properties):
        sent = client.capture(event, distinct_id=user_id, properties=properties, uuid=message_id)
        assert sent == message_id, f"the SDK made {sent} of {message_id}"

    return track, client.shutdown


CLIENTS = {
    "segment-python": segment,
    "segment-python-gzip": lambda *arguments: segment(*arguments, gzip=True),
    "rudder-python": rudder,
    "posthog-python-v0": lambda *arguments: posthog(*arguments, capture_mode="v0"),
    "posthog-python-v1": lambda *arguments: posthog(*arguments, capture_mode="v1"),
}


def main(name, host, write_key, half, report_path):
    errors = []
    track, flush = CLIENTS[name](host, write_key, errors)
    sent = []
    pace = threading.Event()

    def send():
        for index in range(int(half)):
            message_id = str(uuid.uuid4())
            properties = {
                "conversation_id": f"c-{len(sent)}",
                "channel": "chat",
                "initiated_type": "customer_initiated",
            }
            track(message_id, f"user-{index % 7}", "Conversation Started", properties)
            sent.append(message_id)
            pace.wait(PACE_S)  # an application is not a flood

    send()
    sys.stdin.readline()
    send()
    sys.stdin.readline()
    flush()
    with open(f"{report_path}.partial", "w") as report:
        json.dump({"sent": sent, "errors": errors}, report)
    os.rename(f"{report_path}.partial", report_path)
    sys.stdin.read()


main(*sys.argv[1:])
