"""`python -m mta.sandbox`: the process of the sandbox. Prints one JSON line when ready, and explains on stderr."""

from __future__ import annotations

# ruff: noqa: E402 -- patching comes before any other import
from gevent import monkey

monkey.patch_all()

import argparse
import dataclasses
import json
import os
import resource
import signal
import sys

import gevent
import gevent.socket

from mta.config.hosts import parse_endpoint
from mta.config.problems import ConfigError
from mta.control import exits
from mta.sandbox.reading import read_settings
from mta.sandbox.service import Places, Service
from mta.sandbox.settings import Settings


def main() -> int:
    """Run a sandbox until a signal, a request, or the end of its standard input if that is its lifeline."""
    parser = argparse.ArgumentParser(prog="mta sandbox")
    parser.add_argument("-c", "--config")
    parser.add_argument("--dns")
    parser.add_argument("--port", type=int)
    parser.add_argument("--stats")
    parser.add_argument("--capture")
    parser.add_argument("--lifeline", action="store_true")
    options = parser.parse_args()
    try:
        settings = read_settings(options.config) if options.config else Settings()
        if options.dns is not None:
            settings = dataclasses.replace(settings, dns=parse_endpoint(options.dns))
        if options.port is not None:
            settings = dataclasses.replace(settings, smtp_port=options.port)
        if options.stats is not None:
            settings = dataclasses.replace(settings, control=options.stats)
        if options.capture is not None:
            settings = dataclasses.replace(settings, capture=options.capture)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return exits.CONFIG
    except ValueError as error:
        print(f"mta sandbox: --dns: {error}", file=sys.stderr)
        return exits.USAGE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        service = Service(settings)
        places = service.start()
    except (OSError, ValueError) as error:
        print(f"mta sandbox: cannot start: {error}", file=sys.stderr)
        return exits.UNAVAILABLE
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, service.stop)
    if options.lifeline:
        gevent.spawn(_hold_lifeline, service)
    _announce(places)
    service.wait()
    stats = service.control.stats()
    print(f"sandbox: {stats['messages']} messages to {stats['recipients']} recipients accepted, "
          f"{stats['duplicates']} duplicates; {stats['deferred']} deferred, {stats['rejected']} rejected",
          file=sys.stderr)
    return exits.SOFTWARE if service.bugs else exits.OK


def _announce(places: Places) -> None:
    ready = {"ready": True, "pid": os.getpid(), "dns": str(places.dns), "smtp_port": places.smtp_port,
             "control": places.control}
    print(f"""sandbox: ready. To send mail into it instead of the Internet, set in the configuration of the MTA:
  dns: {{servers: ["{places.dns}"]}}
  delivery: {{allow_loopback: true}}
  shaping: {{default: {{port: {places.smtp_port}}}}}""", file=sys.stderr)
    print(json.dumps(ready), flush=True)


def _hold_lifeline(service: Service) -> None:
    """Stop when whoever started us is gone, however it went."""
    while True:
        gevent.socket.wait_read(0)
        if not os.read(0, 4096):
            service.stop()
            return


if __name__ == "__main__":
    raise SystemExit(main())
