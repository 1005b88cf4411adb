"""Options that contradict each other, and rules that can never take effect."""

from __future__ import annotations

import pytest

from mta.config.hosts import parse_network
from mta.config.loader import loads
from mta.config.rules import contradictions, wide_networks
from mta.config.schema import Config
from tests.config.helpers import HOSTNAME, problems_after_hostname

OPEN = ("is much of the Internet and makes an open relay, which is soon used by everybody who sends spam; expected the "
        "networks of your own clients")


@pytest.mark.parametrize(("text", "message"), [
    # an open relay
    ("listeners: [{smtp: 0.0.0.0:25, relay_from: [0.0.0.0/0]}]", f"2:32: listeners[0].relay_from: 0.0.0.0/0 {OPEN}"),
    ("listeners: [{smtp: 0.0.0.0:25, relay_from: '::/0'}]", f"2:44: listeners[0].relay_from: ::/0 {OPEN}"),
    ("listeners: [{smtp: 0.0.0.0:25, relay_from: [128.0.0.0/1, 10.0.0.0/8, 0.0.0.0/1]}]", f"0.0.0.0/0 {OPEN}"),
    # listeners
    ("listeners: [{smtp: 127.0.0.1:25}, {smtp: 127.0.0.1:25}]",
     "2:42: listeners[1].smtp: 127.0.0.1:25 is taken already by listeners[0], 127.0.0.1:25"),
    ("listeners: [{smtp: 127.0.0.1:25}, {smtp: 0.0.0.0:25}]",
     "2:42: listeners[1].smtp: 0.0.0.0:25 is taken already by listeners[0], 127.0.0.1:25"),
    # directories
    ("spool: /x\nrun: /x", "3:6: run: /x is spool already, expected a directory of its own"),
    ("spool: /x\npickup: [{directory: /x/}]", "3:22: pickup[0].directory: /x is spool already, expected a directory"),
    ("spool: /x\npickup: [{directory: /x/shards/0}]", "pickup[0].directory: /x/shards/0 is where the queue is kept"),
    ("pickup: [{directory: /p}, {directory: /p/tmp}]",
     "2:39: pickup[1].directory: /p/tmp and pickup[0].directory, /p, are one inside the other"),
    (f"run: /{'r' * 100}", "2:6: run: too long for the names of the sockets in it, expected at most 90 bytes"),
    # numbers
    ("smtp: {sessions: 100, sessions_per_client: 200}",
     "2:44: smtp.sessions_per_client: 200 can never be reached, smtp.sessions is 100"),
    ("memory: {deliveries: 500}",
     "2:22: memory.deliveries: memory.window (1000), one queue's part, is above memory.deliveries (500)"),
    ("smtp: {message_size: 300MB}",
     "2:22: smtp.message_size: memory.receiving (256MB), for all sessions, is below smtp.message_size (300MB), which"),
    ("delivery: {connections: 10}\nshaping: {default: {connections: 11}}",
     "3:34: shaping.default.connections: 11 can never be reached, delivery.connections is 10"),
    ("shaping: {domains: {a.example: {connections: 5001}}}",
     "2:46: shaping.domains[a.example].connections: 5001 can never be reached, delivery.connections is 5000"),
    # delivery
    ("shaping: {default: {families: ipv6}}\nsources: {a: {ipv4: 192.0.2.1}}",
     "3:21: sources.a.ipv4: 192.0.2.1 can never be used, shaping uses only ipv6 from it"),
    ("sources: {a: {ipv6: '::'}}",
     "2:21: sources.a.ipv6: nothing can be sent from ::, expected an address of this host"),
    ("sources: {a: {ehlo: a.example, tls_key: key.pem}}",
     "2:41: sources.a.tls_key: has no effect without tls_certificate"),
    ("sources: {a: {proxy: 'haproxy://192.0.2.1:5000'}}",
     "2:22: sources.a.proxy: a haproxy is told the address to send from, expected ipv4 or ipv6 beside it"),
    ("sources: {a: {}}\npools: {p: {b: 1}}", "3:16: pools.p.b: there is no source b in sources"),
    ("sources: {a: {}}\npools: {p: {a: 0}}",
     "3:9: pools.p: no source of this pool has a weight, nothing could be sent from it"),
    ("tenants: {acme: {pool: p}}", "2:24: tenants.acme.pool: there is no pool p in pools"),
    ("labels: {tenant: [X-Job]}", "2:1: labels.campaign[1]: X-Job is labels.tenant[0] already"),
    # routes
    ("listeners: {smtp: 127.0.0.1:26}\nroutes: {'*': {relay: 127.0.0.1:26}}",
     "3:23: routes[*].relay[0]: 127.0.0.1:26 is our own listeners[0], mail would go round in a circle"),
    ("listeners: {smtp: 0.0.0.0:26}\nroutes: {a.example: {relay: [h.test, localhost:26]}}",
     "3:38: routes[a.example].relay[1]: localhost:26 is our own listeners[0]"),
    ("shaping: {default: {families: ipv4}}\nroutes: {a.example: {relay: '[::1]:26'}}",
     "3:29: routes[a.example].relay[0]: [::1]:26 can never be reached, shaping uses only ipv4 for it"),
    # times
    ("smtp: {timeouts: {data: 2h}}", "smtp.timeouts.data (2h) is above smtp.timeouts.transaction (1h)"),
    ("dns: {max_ttl: 1s}", "2:16: dns.max_ttl: dns.min_ttl (5s) is above dns.max_ttl (1s)"),
    ("retry: {cap: 1m}", "2:14: retry.cap: retry.first (5m) is above retry.cap (1m)"),
    ("retry: {site_first: 1h}", "2:21: retry.site_first: retry.site_first (1h) is above retry.site_cap (30m)"),
    ("retry: {schedule: [1m, 2m], factor: 3}",
     "2:37: retry.factor: has no effect, retry.schedule is given and replaces it"),
    ("expires: 5m", "2:10: expires: mail expires after 5m, before the first retry (retry.first, 5m): nothing would be"),
    ("retry: {schedule: [6d]}", "mail expires after 5d, before the first retry (retry.schedule[0], 6d): nothing would"),
    ("bounces: {delay_warning: 5d}", "2:26: bounces.delay_warning: no mail waits 5d, it expires after 5d"),
    ("bounces: {delay_warning: 4h, send: off}", "2:26: bounces.delay_warning: has no effect, bounces.send is off"),
])
def test_contradictions(text: str, message: str) -> None:
    """Each contradiction is one problem at the option that the operator should look at."""
    found = problems_after_hostname(text)
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize("text", [
    "listeners: [{smtp: 127.0.0.1:0}, {smtp: 127.0.0.1:0}]",  # any two free ports
    "listeners: [{smtp: 127.0.0.1:25}, {smtp: 127.0.0.2:25}, {smtp: '[::]:25'}]",
    "spool: /x\nrun: /x/run\npickup: [{directory: /x/pickup}, {directory: /x/pickup2}]",
    "delivery: {connections: 10}",  # the default of shaping is above it, but nobody wrote that
    "smtp: {sessions: 100}",
    "store: {segment_size: 1MB}",  # a larger message gets a larger segment of its own
    "listeners: {smtp: 127.0.0.1:26}\nroutes: {'*': {relay: ['127.0.0.2:26', '127.0.0.1:27', 'h.test:26']}}",
    "retry: {schedule: []}\nexpires: 6m",
    "listeners: {smtp: 0.0.0.0:25, relay_from: [127.0.0.0/8, 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 'fc00::/7']}",
])
def test_no_contradiction(text: str) -> None:
    """What looks alike and is right is let through."""
    loads(HOSTNAME + text)


def test_defaults_agree() -> None:
    """The defaults do not contradict each other, even if every one of them were written out."""
    config = Config(hostname="mta.example.net")
    assert list(contradictions(config, {}, ())) == []


@pytest.mark.parametrize(("networks", "wide"), [
    (["10.0.0.0/8", "2001:db8::/32", "192.0.2.1"], []),
    (["10.0.0.0/7"], ["10.0.0.0/7"]),
    (["10.0.0.0/8", "11.0.0.0/8"], ["10.0.0.0/7"]),
    (["2000::/3"], ["2000::/3"]),
    (["2001::/16"], ["2001::/16"]),
    (["2a00::/20"], []),
    (["fc00::/7"], []),
    (["::ffff:0:0/96"], ["0.0.0.0/0"]),  # all of IPv4, in the form in which a socket for both sees it
    (["::ffff:10.0.0.0/104"], []),
    (["64:ff9b::/96"], ["0.0.0.0/0"]),
    (["::/80"], ["::/80"]),
    ([f"{n}.0.0.0/8" for n in range(256)], ["0.0.0.0/0"]),
])
def test_wide_networks(networks: list[str], wide: list[str]) -> None:
    """The whole Internet is recognised in pieces and in disguise; one's own networks are let through."""
    assert wide_networks([parse_network(network) for network in networks]) == wide


def test_faulty_options_are_not_compared() -> None:
    """An option that is reported is not reported again for what its default would contradict."""
    assert problems_after_hostname("retry: {first: x, cap: 1s}\nexpires: 2s\n") == [
        '2:16: retry.first: "x": not a duration such as 30s, 10m, 4h or 5d']
    assert problems_after_hostname("listeners: [{smtp: x}, {smtp: 127.0.0.1:25}]\n") == [
        '2:20: listeners[0].smtp: "x": a port is missing, as in x:25']
