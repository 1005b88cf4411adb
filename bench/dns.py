"""What a domain costs in DNS: routes for distinct domains that nobody asked for before, by a worker's resolver.

    python -m bench.dns                     5,000 domains, 100 of them at a time
    python -m bench.dns -n 20000 --parallel 500

Each domain takes three questions (MX, A and AAAA of its host) over UDP to `bench.nameserver` on loopback. Counted is
the CPU time of this process alone, user and system; the name server's is its own.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from timeit import repeat  # noqa: E402

import dns.message  # noqa: E402
import dns.rrset  # noqa: E402
from gevent.pool import Pool  # noqa: E402

from bench.loopback import cpu_s  # noqa: E402
from mta.config.hosts import Endpoint  # noqa: E402
from mta.config.schema import Config, Delivery, Dns  # noqa: E402
from mta.delivery.dns import Resolver  # noqa: E402
from mta.delivery.dns_wire import read, read_by_dnspython  # noqa: E402
from mta.delivery.routing import Route, Router  # noqa: E402


def measure(server: str, domains: int, parallel: int) -> dict[str, float]:
    """Microseconds per domain: cold, and again from the cache."""
    delivery = Delivery(allow_loopback=True)
    config = Config(hostname="bench.example.net", dns=Dns(servers=(Endpoint.parse(server),)), delivery=delivery)
    resolver = Resolver(config.dns)
    router = Router(config, resolver)
    usual = config.shaping.effective()
    names = [f"d{number}.test" for number in range(domains)]

    def find(name: str) -> None:
        route = router.route(name)
        assert isinstance(route, Route), route
        assert router.addresses(route.hosts[0], usual).addresses

    result: dict[str, float] = {"domains": domains}
    for what in ("cold", "cached"):
        began, used = time.monotonic(), cpu_s()
        if what == "cold":
            pool = Pool(parallel)
            for name in names:
                pool.spawn(find, name)
            pool.join()
        else:
            for name in names:
                find(name)
        result[f"{what}_cpu_us"] = round((cpu_s() - used) / domains * 1e6, 1)
        result[f"{what}_per_s"] = round(domains / (time.monotonic() - began))
    result["questions"] = resolver.statistics.questions
    resolver.close()
    return result


def reading() -> dict[str, float]:
    """Microseconds to read an answer of five MX hosts, by our reader and by dnspython."""
    message = dns.message.make_response(dns.message.make_query("example.org", "MX"))
    hosts = [f"{number} mx{number}.mail.example.net." for number in range(5)]
    message.answer.append(dns.rrset.from_text("example.org.", 300, "IN", "MX", *hosts))
    wire = message.to_wire()
    return {
        "read_us": round(min(repeat(lambda: read(wire), number=1000)) * 1e3, 1),
        "read_by_dnspython_us": round(min(repeat(lambda: read_by_dnspython(wire), number=1000)) * 1e3, 1),
    }


def main() -> int:
    """Run it against a name server of its own."""
    parser = argparse.ArgumentParser(prog="bench.dns", description="CPU time per cold domain.")
    parser.add_argument("-n", dest="domains", type=int, default=5000, help="domains (%(default)s)")
    parser.add_argument("--parallel", type=int, default=100, help="routes looked for at once (%(default)s)")
    options = parser.parse_args()
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.nameserver"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert server.stderr is not None
        endpoint = server.stderr.readline().split()[1]
        print(json.dumps({**measure(endpoint, options.domains, options.parallel), **reading()}))
    finally:
        server.terminate()
        server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
