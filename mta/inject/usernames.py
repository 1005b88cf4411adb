"""The names of system users at the other ends of Unix sockets.

A name may come from a directory service, which may take seconds to say that it does not answer. So it is asked for in a
thread, once however many wait for it, and kept. Who has no name may have one in a moment, when the directory answers
again: it goes by its number, for which nothing is configured, and is asked for anew after `NAMELESS_S`.
"""

from __future__ import annotations

import logging
import math
import pwd
import time
from collections.abc import Callable
from typing import Final

import gevent

from mta.loop.threads import in_thread

NAMELESS_S: Final = 10.0
"""Till a system user without a name is looked up again."""

Then = Callable[[str], None]
log = logging.getLogger(__name__)


class UserNames:
    """What is known of them. Must be used within one hub."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, float]] = {}  # each with the time until which it holds
        self._waiting: dict[int, list[Then]] = {}

    def find(self, uid: int, then: Then) -> None:
        """Call `then` with the name of a user, or its number when it has none: at once, or later on the hub."""
        name, until_s = self._known.get(uid, ("", 0.0))
        if time.monotonic() < until_s:
            then(name)
        elif uid in self._waiting:
            self._waiting[uid].append(then)
        else:
            self._waiting[uid] = [then]
            gevent.spawn(self._look_up, uid)

    def _look_up(self, uid: int) -> None:
        name, until_s = str(uid), time.monotonic() + NAMELESS_S
        try:
            name, until_s = in_thread(_name_of, uid), math.inf
        except KeyError:
            pass
        except Exception:  # memory may lack; whoever waits must not wait for ever
            log.exception("the name of the system user %d cannot be looked up", uid)
        self._known[uid] = name, until_s
        for then in self._waiting.pop(uid):
            then(name)


def _name_of(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name


USER_NAMES: Final = UserNames()
"""Those that this process knows."""
