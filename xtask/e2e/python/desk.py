"""A support desk in short: believable events with known message ids, and a few invalid ones."""

import random
import uuid
from datetime import datetime, timedelta, timezone

INVALID_EVERY = 40
ADMIN = "admin"
CONTACT = "contact_user"
# From one step of a conversation to the next; the reply is two steps after the start.
SECONDS_BETWEEN = 20
FIRST_RESPONSE_S = 2 * SECONDS_BETWEEN


def conversations(company, day, seed):
    """Yields events of a company's conversations on `day` (a date), without end.

    Each event has `messageId`, `event`, `userId`, `timestamp` (aware) and `properties`. Times stay
    within four hours around noon UTC, so that the day is the same in the zones that people live in.
    """
    chance = random.Random(seed)
    at = datetime(day.year, day.month, day.day, 10, 0, tzinfo=timezone.utc)
    moments = 4 * 3600 * 1000
    offset_ms = 0
    while True:
        offset_ms = (offset_ms + 137) % moments
        started = at + timedelta(milliseconds=offset_ms)
        conversation = f"conv-{uuid.UUID(int=chance.getrandbits(128))}"
        admin = chance.choice(company["admins"])
        contact = chance.choice(company["contacts"])
        replied = {"part_id": f"part-{chance.getrandbits(48):x}", "part_type": "comment", "is_visible": True}
        steps = [
            (ADMIN, admin, "Signed In", {"method": "password"}),
            (CONTACT, contact, "Conversation Started", {"channel": "chat", "initiated_type": "customer_initiated", "contact_id": contact}),
            (ADMIN, admin, "Conversation Assigned", {"assigned_to_type": "admin", "assigned_to_id": admin}),
            (ADMIN, admin, "Conversation Replied", {**replied, "body_length": chance.randint(5, 400)}),
            (ADMIN, admin, "Conversation Closed", {}),
            (CONTACT, contact, "Conversation Rated", {"rating": chance.randint(1, 5), "rated_type": "teammate", "teammate_id": admin}),
        ]
        for index, (actor, user, name, properties) in enumerate(steps):
            about = {} if name == "Signed In" else {"conversation_id": conversation}
            yield {
                "messageId": f"m-{uuid.UUID(int=chance.getrandbits(128))}",
                "event": name,
                "userId": user,
                "timestamp": started + timedelta(seconds=SECONDS_BETWEEN * index),
                "properties": {"actor_type": actor, **about, **properties},
            }


def as_track(event):
    """Returns the event as the body that SDKs send."""
    return {**event, "type": "track", "timestamp": iso(event["timestamp"])}


def as_invalid(event):
    """Returns the event as a body that must end in quarantine: a `track` without a name."""
    body = as_track(event)
    del body["event"]
    return body


def iso(moment):
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
