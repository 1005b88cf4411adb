"""All MTAs that can be measured, under the names of the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench import exim, haraka, opensmtpd, ours, postfix
from bench.candidate import Candidate, Setup
from bench.namespace import SMTP_PORT
from bench.scenarios import FIRST_ADDRESS

DIRECT = "direct"


class Direct(Candidate):
    """No MTA: the source talks to the sink, which shows what the load alone can do."""

    def __init__(self, setup: Setup) -> None:
        self._address = f"{FIRST_ADDRESS}:{setup.sink_port}"

    def start(self) -> str:
        return self._address

    def queued(self) -> int:
        return 0

    def stop(self) -> list[str]:
        return []


@dataclass(frozen=True, slots=True)
class Kind:
    """One MTA that can be a candidate."""

    make: Callable[[Setup], Candidate]
    unavailable: Callable[[], str | None]
    """Why it cannot run here, or None."""
    version: Callable[[], str]
    own_resolver: bool = True
    """It asks the resolver of /etc/resolv.conf, at port 53."""
    sink_port: int | None = None
    """The only port that it delivers to by MX; None: any."""
    slowed: bool = True
    """Whether its syncs can be slowed (`bench.slowdisk`)."""


def _always() -> str | None:
    return None


CANDIDATES: dict[str, Kind] = {
    ours.NAME: Kind(ours.Ours, _always, ours.version, own_resolver=False),
    postfix.NAME: Kind(postfix.Postfix, postfix.unavailable, postfix.version),
    haraka.NAME: Kind(haraka.Haraka, haraka.unavailable, haraka.version, sink_port=SMTP_PORT),
    # Exim clears its environment, and OpenSMTPD does not sync.
    exim.NAME: Kind(exim.Exim, exim.unavailable, exim.version, slowed=False),
    opensmtpd.NAME: Kind(opensmtpd.OpenSmtpd, opensmtpd.unavailable, opensmtpd.version, sink_port=SMTP_PORT,
                         slowed=False),
    DIRECT: Kind(Direct, _always, str, own_resolver=False, slowed=False),
}
OTHERS = [name for name in CANDIDATES if name != ours.NAME]
