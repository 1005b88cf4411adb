"""`mta check`: every problem of a configuration, or what would run with it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator

from mta.access.users import UsersError
from mta.access.users import read as read_users
from mta.cli.options import add_config, add_json, add_parser
from mta.config.hosts import format_network
from mta.config.loader import read
from mta.config.problems import Problem, printable
from mta.config.schema import Config, Listener, Retry, Source
from mta.config.units import format_duration, format_size
from mta.control import exits
from mta.delivery.ourselves import AF_INET, AF_INET6
from mta.delivery.sources import is_ours
from mta.inject.certificates import CertificateError, make_contexts

_DESCRIPTION = """\
Check a configuration without starting anything. Every problem is printed, one per line:

  FILE:LINE:COLUMN: what is wrong, what is expected, did you mean ...

and the exit code is 78. The file of users and certificates are looked at, too: what is wrong in them is a problem, that
they cannot be read by whoever checks is a warning. Without problems it prints `FILE: ok` and what would run; the exit
code is 0."""

_EXAMPLES = """\
  mta check -c /etc/mta/mta.yaml
  mta check -c new.yaml && cp new.yaml /etc/mta/mta.yaml && systemctl reload mta
  mta check -c new.yaml --json | jq -r '.problems[].message'
  mta check -q && echo fine                 only the problems"""

_SHOWN_WAITS = 8
_MANY = 10_000


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(commands, "check", "report every error of a configuration", _DESCRIPTION, _EXAMPLES)
    add_config(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but problems")
    add_json(parser, "one JSON object: file, ok, problems (file, line, column, message), summary (texts by subject)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check the file."""
    reading = read(options.config)
    problems = list(reading.problems)
    if reading.config is not None:
        problems += _files(reading.config)
    summary = list(_summary(reading.config)) if reading.config is not None else []
    if options.json:
        by_subject: dict[str, list[str]] = {}
        for subject, text in summary:
            by_subject.setdefault(subject, []).append(text)
        print(json.dumps({"file": options.config, "ok": not problems,
                          "problems": [problem._asdict() for problem in problems], "summary": by_subject}))
    else:
        for problem in problems:
            print(problem)
        if not problems and not options.quiet:
            print(f"{printable(options.config)}: ok")
            before = ""
            for subject, text in summary:
                print(f"  {subject if subject != before else '':10}{text}")
                before = subject
    return exits.CONFIG if problems else exits.OK


def _files(config: Config) -> Iterator[Problem]:
    """What is wrong in files that the configuration names. Of those that we may not read, or that are not here, nothing
    is known: the MTA may be another user, on another machine."""
    users = config.access.users_file
    if users is not None and os.access(users, os.R_OK):
        try:
            read_users(users)
        except UsersError as error:
            yield from error.problems
    for one, authorities in dict.fromkeys(
        (one, listener.client_ca) for listener in config.listeners if listener.tls != "off"
        for one in config.certificates
    ):
        files = [one.certificate, one.key or one.certificate, authorities or one.certificate]
        if all(os.access(path, os.R_OK) for path in files):
            try:
                make_contexts([one], authorities, config.hostname)
            except CertificateError as error:
                path, _, what = str(error).partition(": ")
                yield Problem(path, 0, 0, what)


def _summary(config: Config) -> Iterator[tuple[str, str]]:
    """What would run, as (subject, text)."""
    cores = len(os.sched_getaffinity(0))
    yield "name", config.hostname
    for listener in config.listeners:
        yield "accepts", _listener_text(listener)
    for pickup in config.pickup:
        yield "accepts", f"files in {printable(pickup.directory)}"
    if not config.listeners and not config.pickup:
        yield "accepts", "nothing: no listeners, no pickup; only what is in the queue would be delivered"
    yield from (("logins", text) for text in _access(config))
    yield "workers", f"{cores}, one per core" if config.workers == "auto" else str(config.workers)
    if config.user:
        yield "user", config.user
    free = format_size(config.store.kept_free)
    yield "queue", f"in {printable(config.spool)}; no new mail with less than {free} free"
    yield "run", f"sockets in {printable(config.run)}"
    servers = ", ".join(map(str, config.dns.servers))
    yield "dns", f"asks {servers}" if servers else "asks the resolvers of /etc/resolv.conf"
    yield from (("routes", text) for text in _routes(config))
    yield from (("sources", text) for text in _sources(config))
    yield from (("limits", text) for text in _limits(config))
    yield "rules", _rules(config)
    yield "retries", _retries(config.retry, config.expires)
    yield "bounces", _bounces(config)


def _listener_text(listener: Listener) -> str:
    where = f"smtp on {listener.smtp}"
    if listener.smtp.is_unix:
        return f"{where}, to any domain from who may open it (mode {listener.mode})"
    tls = {"off": "", "offered": ", STARTTLS", "required": ", STARTTLS required", "implicit": ", TLS"}[listener.tls]
    login = "who logs in" if listener.auth != "off" else ""
    networks = "" if listener.auth == "required" else ", ".join(map(format_network, listener.relay_from))
    if not (login or networks):
        return f"{where}{tls}, from nobody: relay_from is empty, every recipient is refused"
    return f"{where}{tls}, to any domain from {' and '.join(filter(None, (login, networks)))}"


def _access(config: Config) -> Iterator[str]:
    """How logins are checked, and what can be said of the files now, by whoever checks."""
    access = config.access
    if access.users_file is not None:
        try:
            yield f"{len(read_users(access.users_file).entries)} users in {printable(access.users_file)}"
        except UsersError as error:
            yield f"warning: {error.problems[0]}"  # it is a problem of its own, or cannot be read
    if access.check_url is not None:
        yield f"other users are asked for at {printable(access.check_url)}"
    if any(listener.tls != "off" for listener in config.listeners):
        for path in dict.fromkeys(path for one in config.certificates for path in (one.certificate, one.key) if path):
            if not os.access(path, os.R_OK):
                yield f"warning: {printable(path)} is not here, or you may not read it"


def _routes(config: Config) -> Iterator[str]:
    rest = config.routes.get("*")
    relays = [(domain, route) for domain, route in config.routes.items() if domain != "*" and not route.mx]
    for domain, route in relays[:5]:
        yield f"{domain} to {', '.join(map(str, route.relay))}"
    if len(relays) > 5:
        yield f"{len(relays) - 5} more domains to relays"
    which = "all other" if relays else "all"
    if rest is None or rest.mx:
        shaping = config.shaping.effective()
        families = {"ipv4": "IPv4", "ipv6": "IPv6", "ipv4-first": "IPv4 before IPv6", "ipv6-first": "IPv6 before IPv4"}
        loopback = ", loopback allowed" if config.delivery.allow_loopback else ""
        used = families.get(shaping.families, "IPv4 and IPv6")
        yield f"{which} domains to their MX hosts, port {shaping.port}, {used}{loopback}"
    else:
        yield f"{which} domains to {', '.join(map(str, rest.relay))}"


def _sources(config: Config) -> Iterator[str]:
    """Where mail leaves from. An address that is not here is a warning: it may be plumbed later."""
    for name, source in config.sources.items():
        both = ((AF_INET, source.ipv4), (AF_INET6, source.ipv6))
        addresses = [(family, address) for family, address in both if address]
        yield " ".join(filter(None, (
            name, "from", " and ".join(address for _, address in addresses) or "an address of the system's choice",
            f"as {source.ehlo}" if source.ehlo else "", f"by {_without_password(source)}" if source.proxy else "")))
        if source.proxy is None:
            for family, address in addresses:
                if not is_ours(family, address):
                    yield f"warning: {name} is suspended as long as this machine does not have the address {address}"
    for name, pool in config.pools.items():
        yield f"pool {name}: {', '.join(f'{source} {weight}' for source, weight in pool.items())}"


def _without_password(source: Source) -> str:
    assert source.proxy is not None
    return str(source.proxy._replace(password="...") if source.proxy.password else source.proxy)


def _rules(config: Config) -> str:
    rules = config.rules
    samples = sum(len(rule.samples) for rule in rules.all())
    where = "as shipped" if config.rules_file == "shipped" else f"of {printable(config.rules_file)}"
    own = f"{len(rules.own)} of your own, " if rules.own else ""
    return f"{own}{len(rules.shipped)} {where}; {samples} samples fit"


def _limits(config: Config) -> Iterator[str]:
    shaping = config.shaping.effective()
    yield (f"{shaping.connections} connections to a site, {shaping.messages_per_connection} messages on each, "
           f"{config.delivery.connections} connections in all; tls {shaping.tls}")
    rules = config.shaping
    shipped = len(rules.shipped.providers)
    where = "as shipped" if config.providers == "shipped" else f"of {printable(config.providers)}"
    if shipped:
        yield f"{shipped} providers {where}, mta shaping list shows them"
    for what, count in (("provider", len(rules.providers)), ("domain", len(rules.domains)),
                        ("source", len(rules.sources))):
        if count:
            yield f"{count} {what}{'s' if count > 1 else ''} with limits of {'their' if count > 1 else 'its'} own"


def _retries(retry: Retry, expires: float) -> str:
    """The waits without jitter, and how many attempts they leave time for."""
    waits = _waits(retry)
    attempts, age = 1, waits[0]
    while age < expires and attempts < _MANY:
        age += waits[min(attempts, len(waits) - 1)]
        attempts += 1
    texts = [format_duration(wait if wait < 10 else round(wait)) for wait in waits[: attempts - 1]]
    if attempts > len(waits):
        texts[-1] = f"{'then ' if len(texts) > 1 else ''}every {texts[-1]}"
    if len(texts) > _SHOWN_WAITS:
        texts[_SHOWN_WAITS - 2 : -1] = ["..."]
    number = f"about {attempts}" if attempts < _MANY else f"more than {_MANY}"
    when = ("" if texts[0].startswith("every") else "after ") + ", ".join(texts)
    return f"{when}; gives up after {format_duration(expires)} and {number} attempts"


def _waits(retry: Retry) -> list[float]:
    """The waits up to the one that repeats for ever, which is the last."""
    if retry.schedule:
        return list(retry.schedule)
    result = [float(retry.first)]
    while retry.factor > 1.0 and result[-1] < retry.cap and len(result) < _MANY:
        result.append(min(result[-1] * retry.factor, retry.cap))
    return result


def _bounces(config: Config) -> str:
    bounces = config.bounces
    if not bounces.send:
        return "none: bounces.send is off, only events tell of failures"
    warning = f", a warning after {format_duration(bounces.delay_warning)}" if bounces.delay_warning else ""
    what = "headers" if bounces.returned == "headers" else f"whole message up to {format_size(bounces.full_size)}"
    return f"to the sender, with the {what} of the original{warning}"
