"""`mta simulate`: how long mail would take with a configuration, and what would hold it, by a virtual clock."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Final

from mta.cli.options import add_config, add_json, add_parser
from mta.cli.text import Column, duration, print_table
from mta.config.problems import ConfigError
from mta.control import exits
from mta.delivery.reason import MEANING

if TYPE_CHECKING:
    from mta.simulate.result import Result, SiteResult

_DESCRIPTION = """\
Deliver mail that does not exist to receivers that do not exist, by the real scheduler, limits, retries and turns of
the configuration, on a virtual clock: a day passes in seconds to minutes. The receivers are those of a file for
`mta sandbox`. It shows when the mail would be delivered, what became of it at each site, and what held it how long.

Nothing is sent, stored or listened to. The same files and the same seed give the same result. One engine stands for
all workers; disk and processor of the MTA are the one number of --capacity. Mail is given by --messages (to all domains
that the file of receivers names, at once) or by a campaign file: docs/simulate.md."""

_EXAMPLES = """\
  mta simulate -c mta.yaml --internet conf/sandbox.yaml --messages 100000
  mta simulate -c mta.yaml --internet receivers.yaml --campaign campaign.yaml --hours 48
  mta simulate --internet receivers.yaml --messages 3_000_000 --plot day.png
  mta simulate --internet receivers.yaml --messages 50000 --json | jq .reached_s"""

_STEPS: Final = 12

_SITES: Final = (
    Column("SITE", shrinks=True), Column("RECIPIENTS", right=True), Column("DELIVERED", right=True),
    Column("BOUNCED", right=True), Column("EXPIRED", right=True), Column("LEFT", right=True),
    Column("DEFERRALS", right=True), Column("REFUSED", right=True), Column("OPEN", right=True),
    Column("LAST", right=True), Column("OF ITS RATE", right=True), Column("HELD MOST BY", shrinks=True),
)  # fmt: skip
_HELD: Final = (Column("HELD BY"), Column("WHICH IS"), Column("MESSAGE-HOURS", right=True), Column("SHARE", right=True))
_TIME: Final = (Column("TIME", right=True), Column("DELIVERED", right=True), Column("PER SECOND", right=True),
                Column("DUE", right=True), Column("FOR RETRY", right=True))
_LABELS: Final = (Column("", shrinks=True), Column("RECIPIENTS", right=True), Column("DELIVERED", right=True),
                  Column("LEFT", right=True), Column("LAST", right=True))


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "simulate", "see how long mail would take, and what would hold it", _DESCRIPTION,
                        _EXAMPLES)
    add_config(parser)
    parser.add_argument("--internet", metavar="FILE", required=True, help="the receivers, as for `mta sandbox`")
    parser.add_argument("--messages", metavar="N", type=_count, help="messages in all; 3_000_000 may be written so")
    parser.add_argument("--campaign", metavar="FILE", help="what mail there is: docs/simulate.md")
    parser.add_argument("--hours", metavar="N", type=_positive, default=24.0,
                        help="the longest time to simulate (default: 24)")
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="another one draws other numbers (default: 1)")
    parser.add_argument("--capacity", metavar="N", type=_positive, default=5000.0,
                        help="messages per second that the MTA itself manages (default: 5000)")
    parser.add_argument("--sites", metavar="N", type=_count, default=20, help="sites shown (default: 20)")
    parser.add_argument("--plot", metavar="FILE", help="draw what was delivered and what waited (needs matplotlib)")
    add_json(parser, "one JSON object with all numbers, all sites and the course over time")
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return number


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def run(options: argparse.Namespace) -> int:
    """Simulate and print."""
    # Not before the command is known: the engine is slow to load.
    from mta.config.loader import load
    from mta.sandbox.reading import read_settings
    from mta.simulate.campaign import Campaign, read_campaign
    from mta.simulate.simulation import Simulation

    if options.messages is None and options.campaign is None:
        print("mta simulate: how much mail? --messages N, or --campaign FILE", file=sys.stderr)
        return exits.USAGE
    try:
        config = load(options.config)
        settings = read_settings(options.internet)
        campaign = read_campaign(options.campaign) if options.campaign is not None else Campaign()
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return exits.CONFIG
    simulation = Simulation(config, settings, campaign, messages=options.messages, seed=options.seed,
                            capacity=options.capacity)
    result = simulation.run(options.hours)
    if options.plot is not None:
        from mta.simulate.plot import PlotError, draw

        try:
            draw(result, options.plot)
        except PlotError as error:
            print(f"mta simulate: {error}", file=sys.stderr)
            return exits.UNAVAILABLE
    if options.json:
        print(json.dumps(result.as_json()))
    else:
        _print(result, options.sites)
    return exits.OK


def _print(result: Result, sites: int) -> None:
    parts = [f"{result.delivered:,} of {result.recipients:,} recipients delivered"]
    parts += [f"{number:,} {what}" for number, what in (
        (result.bounced, "bounced"), (result.expired, "expired"), (result.left, "left"),
        (result.deferred, "deferrals")) if number]
    print(f"{', '.join(parts)}, in {duration(result.elapsed_s)}")
    reached = [f"{share} % {'not reached' if seconds is None else 'after ' + duration(seconds)}"
               for share, seconds in result.reached_s.items()]
    print(f"delivered: {', '.join(reached)}\n")
    total_h = sum(result.held_h.values())
    if total_h:
        print_table(_HELD, [(kind, MEANING.get(kind, ""), f"{hours:,.1f}", f"{hours / total_h:.1%}")
                            for kind, hours in result.held_h.items()])
        print()
    print_table(_TIME, _course(result))
    print()
    print_table(_SITES, [_site(site) for site in result.sites[:sites]])
    if len(result.sites) > sites:
        print(f"... and {len(result.sites) - sites:,} more sites")
    for name, rows in (("TENANT", result.tenants), ("PRIORITY", result.priorities)):
        if len(rows) > 1:
            print()
            columns = (Column(name, shrinks=True), *_LABELS[1:])
            print_table(columns, [(label or "(none)", f"{row['recipients']:,}", f"{row['delivered']:,}",
                                   f"{row['left']:,}", duration(row["last_s"])) for label, row in rows.items()])


def _course(result: Result) -> list[tuple[str, ...]]:
    """Some of the looks, evenly over the time in which nearly all of the mail was delivered."""
    almost_all = 0.99 * result.delivered
    last = next((seconds for seconds, delivered, _, _ in result.series if delivered >= almost_all), 0.0)
    rows: list[tuple[str, ...]] = []
    before_s, before = 0.0, 0
    for step in range(1, _STEPS + 1):
        at = next((row for row in result.series if row[0] >= last * step / _STEPS), None)
        if at is None or at[0] <= before_s:
            continue
        seconds, delivered, due, waiting = at
        rate = (delivered - before) / (seconds - before_s)
        rows.append((duration(seconds), f"{delivered:,}", f"{rate:,.1f}", f"{due:,}", f"{waiting:,}"))
        before_s, before = seconds, delivered
    return rows


def _site(site: SiteResult) -> tuple[str, ...]:
    reason = next(iter(site.held_h), "")
    held = f"{reason} ({site.held_h[reason]:,.1f} h)" if reason else "-"
    refused = site.refused_connections + site.throttled + site.greylisted
    return (site.site, f"{site.recipients:,}", f"{site.delivered:,}", f"{site.bounced:,}", f"{site.expired:,}",
            f"{site.left:,}", f"{site.deferred:,}", f"{refused:,}", f"{site.most_open:,}",
            duration(site.last_s) if site.delivered else "-", "-" if site.share is None else f"{site.share:.1%}", held)
