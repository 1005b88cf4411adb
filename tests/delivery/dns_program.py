"""Run by the tests of the resolver in a process of its own: reads requests as JSON lines, writes results."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mta.config.hosts import Endpoint  # noqa: E402
from mta.config.schema import Dns  # noqa: E402
from mta.config.units import Duration  # noqa: E402
from mta.delivery import dns  # noqa: E402
from mta.delivery.dns_answer import Answer  # noqa: E402


def describe(answer: Answer[Any], started: float) -> dict[str, Any]:
    """An answer as JSON."""
    now = time.monotonic()
    return {
        "kind": answer.kind, "records": answer.records, "detail": answer.detail, "ttl": answer.expires - now,
        "took_s": now - started,
    }


def step(resolver: dns.Resolver, what: str, *args: Any) -> Any:
    """Do one step."""
    started = time.monotonic()
    if what == "query":
        return describe(resolver.query(*args), started)
    if what == "together":  # many at once, each in a greenlet
        jobs = [gevent.spawn(step, resolver, "query", name, kind) for name, kind in args[0]]
        gevent.joinall(jobs, raise_error=True)
        return [job.value for job in jobs]
    if what == "abandon":  # a greenlet that waits is killed
        job = gevent.spawn(resolver.query, *args)
        gevent.sleep(0.01)
        job.kill()
        return None
    if what == "sleep":
        return gevent.sleep(args[0])
    if what == "statistics":
        return {name: getattr(resolver.statistics, name) for name in dns.Statistics.__slots__}
    if what == "close":
        return resolver.close()
    if what == "lag":  # the longest time the hub stood still while `args` were asked together
        worst = 0.0
        jobs = [gevent.spawn(resolver.query, name, kind) for name, kind in args[0]]
        while not all(job.ready() for job in jobs):
            before = time.monotonic()
            gevent.sleep(0.001)
            worst = max(worst, time.monotonic() - before)
        return worst
    if what == "system servers":
        return [str(endpoint) for endpoint in dns.system_servers(args[0])]
    if what == "open files":
        return sum(1 for _ in Path("/proc/self/fd").iterdir())
    raise ValueError(what)


def main() -> None:
    """One resolver per request."""
    for line in sys.stdin:
        request = json.loads(line)
        given = dict(request["settings"])
        given["servers"] = tuple(Endpoint.parse(text, 53) for text in given.get("servers", ()))
        for name, value in given.items():
            if isinstance(value, float):
                given[name] = Duration(value)
        resolver = dns.Resolver(Dns(**given))
        print(json.dumps([step(resolver, *what) for what in request["steps"]]), flush=True)
        resolver.close()


main()
