"""Simulations of a few lines: configuration, receivers and mail as YAML."""

from __future__ import annotations

from mta.config.loader import loads
from mta.sandbox.reading import read_text as read_settings
from mta.simulate.campaign import read_text as read_campaign
from mta.simulate.result import SiteResult
from mta.simulate.simulation import Simulation

HOUR = 3600.0


def simulation(config: str, internet: str, campaign: str, seed: int = 1, capacity: float = 5000.0) -> Simulation:
    """One that has not begun."""
    return Simulation(loads(f"hostname: mta.test\n{config}"), read_settings(internet), read_campaign(campaign),
                      seed=seed, capacity=capacity)


def by_site(sites: list[SiteResult]) -> dict[str, SiteResult]:
    """The same by name."""
    return {site.site: site for site in sites}
