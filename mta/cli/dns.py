"""`mta dns`: where the mail of a domain would go, and what is left out on the way and why."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from mta.cli.options import add_config, add_json, add_parser
from mta.config.hosts import parse_domain
from mta.config.loader import load
from mta.config.problems import ConfigError, printable
from mta.config.units import format_duration
from mta.control import exits

if TYPE_CHECKING:
    from mta.config.shaping import Shaping, ShapingRules
    from mta.delivery.routing import Host, Route, RouteFailure, Router

_DESCRIPTION = """\
Show how the mail of a domain would be routed now: its MX hosts or relays by preference, their addresses, the site
(domains with the same site share connections and limits), its provider, and what is skipped and why. The MTA need not
run: the question goes to the DNS servers of the configuration, not to the cache of a worker.

exit codes, the worst of all domains:
  0   there is a way
  75  not now, mail would wait
  69  never, mail would be returned to its sender"""

_EXAMPLES = """\
  mta dns example.org
  mta dns example.org example.net -c /etc/mta/mta.yaml
  mta dns '[192.0.2.1]'
  mta dns gmail.com --json | jq -r '.hosts[].addresses[]'"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "dns", "show where the mail of a domain would go", _DESCRIPTION, _EXAMPLES)
    parser.add_argument("domain", nargs="+", metavar="DOMAIN", help="recipient domain, the part after the @")
    add_config(parser)
    add_json(parser, "one JSON object per domain and line: domain, site, provider, fixed, hosts, notes, failure, "
                     "believed_s")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask and print."""
    try:
        config = load(options.config)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return exits.CONFIG
    # Not before the command is known: gevent is slow to load.
    from mta.delivery.dns import Resolver
    from mta.delivery.routing import Router

    resolver = Resolver(config.dns)
    router = Router(config, resolver)
    shaping = config.shaping
    codes = set()
    for number, domain in enumerate(options.domain):
        name = domain.rpartition("@")[2]
        report, code = _report(router, shaping, name)
        codes.add(code)
        if options.json:
            print(json.dumps(report))
        else:
            print(("\n" if number else "") + _text(report))
    resolver.close()
    return next((code for code in (exits.UNAVAILABLE, exits.TEMPORARY) if code in codes), exits.OK)


def _report(router: Router, shaping: ShapingRules, domain: str) -> tuple[dict[str, Any], int]:
    """What `--json` prints, and the exit code."""
    from mta.delivery.routing import RouteFailure

    route = router.route(domain)
    if isinstance(route, RouteFailure):
        report = {"domain": domain, "site": None, "provider": None, "fixed": False, "hosts": [], "notes": [],
                  **_failure(route)}
        return report, exits.UNAVAILABLE if route.permanent else exits.TEMPORARY
    options = shaping.effective("", route.provider, parse_domain(domain))
    hosts = [_host(router, options, host) for host in route.hosts]
    report = {
        "domain": domain, "site": route.site, "provider": route.provider or None, "fixed": route.fixed, "hosts": hosts,
        "notes": list(route.notes),
        "failure": None, "believed_s": _seconds_left(route),
    }
    return report, exits.OK if any(host["addresses"] for host in hosts) else exits.TEMPORARY


def _host(router: Router, options: Shaping, host: Host) -> dict[str, Any]:
    found = router.addresses(host, options)
    return {
        "name": host.name, "port": host.port, "preference": host.preference,
        "addresses": [address for _, address in sorted(found.addresses)],
        "skipped": list(found.skipped), "failure": found.failure or None,
    }


def _failure(failure: RouteFailure) -> dict[str, Any]:
    said = {
        "permanent": failure.permanent, "code": failure.code, "enhanced": failure.enhanced, "text": failure.text,
    }
    return {"failure": said, "believed_s": _seconds_left(failure)}


def _seconds_left(found: Route | RouteFailure) -> float | None:
    """For how long a worker would not ask again; None is until the configuration changes."""
    left = found.expires - time.monotonic()
    return None if left == float("inf") else round(max(left, 0.0), 1)


def _text(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [printable(report["domain"])]
    failure = report["failure"]
    if failure is not None:
        fate = "mail is returned to its sender" if failure["permanent"] else "mail waits"
        lines.append(f"  {failure['code']} {failure['enhanced']} {printable(failure['text'])}")
        lines.append(f"  {fate}")
    label = "relay" if report["fixed"] else "MX"
    width = max((len(host["name"]) for host in report["hosts"]), default=0)
    for host in report["hosts"]:
        preference = "" if report["fixed"] else str(host["preference"])
        where = ", ".join(host["addresses"]) or printable(host["failure"])
        lines.append(f"  {label:6}{preference:>5}  {printable(host['name']):{width}}  port {host['port']}  {where}")
        lines.extend(f"{'':15}skipped {printable(skipped)}" for skipped in host["skipped"] if host["addresses"])
        label = ""
    if report["site"] is not None:
        lines.append(f"  {'site':13}{printable(report['site'])}")
    if report["provider"] is not None:
        lines.append(f"  {'provider':13}{report['provider']}")
    lines.extend(f"  {'note':13}{printable(note)}" for note in report["notes"])
    if report["hosts"] and not any(host["addresses"] for host in report["hosts"]):
        lines.append("  no host can be reached: mail waits")
    if report["believed_s"] is not None:
        lines.append(f"  {'believed':13}for {format_duration(round(report['believed_s']))}")
    return "\n".join(lines)
