"""The scenarios: how much mail of what kind goes where."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_ADDRESS = "127.0.0.10"
"""The sink's first address; the others follow it."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of load."""

    name: str
    title: str
    messages: int
    size: int = 5000
    """Bytes of a message."""
    recipients: int = 1
    """Recipients of a message."""
    domains: int = 50
    addresses: int = 50
    """Receiving addresses; the domains' MX hosts are spread over them."""
    sessions: int = 20
    """Injecting sessions at once."""
    delay_ms: int = 0
    """Delay of the receivers' replies."""
    receivers_up: bool = True
    zone: str = "test"
    """Top-level domain of the recipients; `dead`: their MX hosts never answer, whatever the sink does."""
    connections: int | None = None
    """Connections at once to a domain, when the scenario is about them; else what the MTA does by itself."""
    sync_delay_ms: float = 0
    """So much longer does every sync of the MTA take: a slower disk."""

    @property
    def expected(self) -> int:
        """Recipients in all."""
        return self.messages * self.recipients


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("S1", "one domain", 20_000, domains=1, addresses=1),
        Scenario("S2", "50 domains", 20_000),
        Scenario("S3", "100 KB messages", 2_000, size=100_000),
        Scenario("S4", "1,000 recipients per message", 60, recipients=1000),
        Scenario("S5", "replies 50 ms late", 5_000, delay_ms=50),
        Scenario("S6", "receivers down: accept and defer", 20_000, receivers_up=False),
        Scenario("S8", "10 connections, replies 50 ms late", 4_000, domains=1, addresses=1, delay_ms=50,
                 connections=10),
        Scenario("S9", "5,000 domains, cold DNS", 5_000, domains=5_000),
        Scenario("D1", "S1 on a disk whose syncs take 5 ms longer", 20_000, domains=1, addresses=1, sync_delay_ms=5),
    )
}
