"""What happens at the doors beside mail that is accepted: logins, and whom we refuse; as events and lines in the log.

A flood must not fill the disk, so how many are written is bounded, whatever comes. Each is told when it happens for the
first time; what repeats it is counted, and told with its number once a minute as long as it goes on. What is the same
is told by who, what and why: not by port, nor by the address that mail was for; of IPv6 a /64 is one client. Beyond
`REFUSALS` different ones at a time (`LOGINS` of logins) only their number is told. So a worker writes `REFUSALS` lines
of refusals at once and then as many in a minute at most, some 60 MB in a day, and keeps as many in memory.

No password, nor anything that was made of one, comes here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from mta.access.attempts import network_of
from mta.config.problems import printable
from mta.queue import events

WINDOW_S: Final = 60.0
REFUSALS: Final = 100
LOGINS: Final = 1_000
_USER_LIMIT: Final = 130
_WORDS: Final = {"session": "a session", "mail": "mail"}

log = logging.getLogger(__name__)


class _Kind(NamedTuple):
    """What is the same. `via` of a login; `what` and `why` of a refusal."""

    client: str
    user: str
    listener: str
    what: str = ""
    why: str = ""
    via: str = ""


class _Told(NamedTuple):
    client: str  # the address, where the kind has a network
    level: int
    more: list[int]  # since it was told; one number


class Incidents:
    """Those of one worker. `look` is to be called every few seconds."""

    def __init__(self, write: Callable[[bytes], None] = lambda event: None,
                 clock_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        """`write` puts an event where events go."""
        self._write = write
        self._clock_us = clock_us
        self._refusals: dict[_Kind, _Told] = {}
        self._logins: dict[_Kind, _Told] = {}
        self._other_refusals = 0
        self._other_logins = 0
        self._since_s = time.monotonic()

    def logged_in(self, user: str, client: str, listener: str, via: str) -> None:
        """A client has logged in."""
        kind = _Kind(network_of(client), user[:_USER_LIMIT], listener, via=via)
        told = self._logins.get(kind)
        if told is not None:
            told.more[0] += 1
        elif len(self._logins) >= LOGINS:
            self._other_logins += 1
        else:
            self._logins[kind] = _Told(client, logging.DEBUG, [0])
            self._tell_login(kind, client, 1)

    def refused(self, what: str, client: str, listener: str, why: str, *, user: str = "", detail: str = "",
                level: int = logging.INFO) -> None:
        """Somebody was refused: `what` is `session`, `login` or `mail`. `detail` is told, but makes no difference."""
        kind = _Kind(network_of(client), user[:_USER_LIMIT], listener, what, why)
        told = self._refusals.get(kind)
        if told is not None:
            told.more[0] += 1
        elif len(self._refusals) >= REFUSALS:
            self._other_refusals += 1
        else:
            self._refusals[kind] = _Told(client, level, [0])
            self._tell_refusal(kind, client, 1, detail, level)

    def look(self, now_s: float | None = None) -> None:
        """Tell what has repeated itself, if a minute is over. What has not is news when it comes again."""
        now_s = time.monotonic() if now_s is None else now_s
        if now_s - self._since_s >= WINDOW_S:
            self._since_s = now_s
            self.tell_rest()

    def tell_rest(self) -> None:
        """Tell what has not been told yet."""
        self._refusals = {kind: told for kind, told in self._refusals.items() if told.more[0]}
        for kind, told in self._refusals.items():
            self._tell_refusal(kind, told.client, told.more[0], "", told.level)
            told.more[0] = 0
        self._logins = {kind: told for kind, told in self._logins.items() if told.more[0]}
        for kind, told in self._logins.items():
            self._tell_login(kind, told.client, told.more[0])
            told.more[0] = 0
        if self._other_refusals:
            kind = _Kind("", "", "", "", "others: too many to be told one by one")
            self._tell_refusal(kind, "", self._other_refusals, "", logging.WARNING)
            self._other_refusals = 0
        if self._other_logins:
            self._tell_login(_Kind("", "", ""), "", self._other_logins)
            self._other_logins = 0

    def _tell_login(self, kind: _Kind, client: str, count: int) -> None:
        log.debug("login of %s from [%s] by %s%s", printable(kind.user, _USER_LIMIT), client or "local", kind.via,
                  _times(count))
        self._write(events.login(user=kind.user, client=client, listener=kind.listener, via=kind.via, count=count,
                                 time_us=self._clock_us()))

    def _tell_refusal(self, kind: _Kind, client: str, count: int, detail: str, level: int) -> None:
        user = printable(kind.user, _USER_LIMIT)
        if kind.what == "login":
            log.log(level, "login of %s from [%s] refused: %s%s", user, client, kind.why, _times(count))
        else:
            log.log(level, "refused: %s of [%s]%s: %s%s", printable(detail, 300) or _WORDS.get(kind.what, "something"),
                    client or "local", f" as {user}" if user else "", kind.why, _times(count))
        self._write(events.refused(what=kind.what, user=kind.user, client=client, listener=kind.listener,
                                   text=f"{detail}: {kind.why}" if detail else kind.why, count=count,
                                   time_us=self._clock_us()))


def _times(count: int) -> str:
    return f" ({count} more)" if count > 1 else ""
