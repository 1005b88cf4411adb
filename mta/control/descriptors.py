"""How a worker divides the descriptors that the system lets it have.

What clients, remote hosts and DNS may take is bounded beforehand, so that the store always finds one when it needs to
open a file, and that clients cannot keep delivery from connecting, nor the other way round.
"""

from __future__ import annotations

import os
import resource
from typing import Final, NamedTuple

from mta.config.schema import Config
from mta.delivery.dns import MOST_UNDER_WAY

RESERVE: Final = 100  # for files of store and spool directories, and for those who ask on the control socket
LOOKUP_SHARE: Final = 16  # of what there is, one part in so many is for lookups
SOCKETS_PER_LOOKUP: Final = 2


class Shares(NamedTuple):
    """How many there may be at once in one worker."""

    sessions: int  # of clients
    connections: int  # to remote hosts
    lookups: int  # of names


def divide(limit: int, in_use: int, config: Config) -> Shares:
    """The shares of a process that may have `limit` descriptors, of which `in_use` are taken for good.

    With enough of them they are what the configuration says. Else sessions and connections get half each, and one
    what the other has no use for; somebody gets through however few there are.
    """
    free = max(limit - in_use - min(RESERVE, limit // 4), 0)
    lookups = min(MOST_UNDER_WAY, max(free // LOOKUP_SHARE, 1))
    free = max(free - lookups * SOCKETS_PER_LOOKUP, 2)
    wanted_in, wanted_out = config.smtp.sessions, config.delivery.connections
    connections = min(wanted_out, max(free // 2, free - wanted_in))
    return Shares(min(wanted_in, free - connections), connections, lookups)


class Descriptors:
    """Those of this process; made when what it holds for good is open."""

    def __init__(self) -> None:
        self._limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._in_use = len(os.listdir("/proc/self/fd"))

    def shares(self, config: Config) -> Shares:
        """What there is for whom."""
        if self._limit == resource.RLIM_INFINITY:
            return Shares(config.smtp.sessions, config.delivery.connections, MOST_UNDER_WAY)
        return divide(self._limit, self._in_use, config)
