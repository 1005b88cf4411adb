"""Who may send what: the rules on relaying, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from mta.config.units import Network
from mta.smtp.peer import ALL_RIGHTS, NO_RIGHTS, Peer, Rights


class ListenerPermissions:
    """The permissions of one listener's clients."""

    def __init__(self, relay_from: Sequence[Network]) -> None:
        self._relay_from = relay_from

    def rights_of(self, peer: Peer) -> Rights:
        """All rights for a client in one of the networks, none for others."""
        ip = ip_address(peer.address.partition("%")[0])
        return ALL_RIGHTS if any(ip in network for network in self._relay_from) else NO_RIGHTS
