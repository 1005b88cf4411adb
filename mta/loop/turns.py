"""Giving way on the hub, in the middle of work that takes long."""

from __future__ import annotations

from typing import Final

import gevent

SHORTEST_S: Final = 1e-6
"""The shortest time that makes a timer, which comes in the next turn of the loop."""


def give_way() -> None:
    """Go on in another turn of the loop.

    What sleeps for 0 with gevent goes on up to fifty times in the same turn, and no socket, timer or thread is looked
    at in between.
    """
    gevent.sleep(SHORTEST_S)
