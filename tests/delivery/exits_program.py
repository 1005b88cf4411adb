"""Runs one scenario of how connections leave, as the far end sees it, with a real engine in a process of its own.

    python -m tests.delivery.exits_program NAME

Prints nothing and ends with 0 when the rule held.
"""

from tests.delivery.sited import Sited, quick, three  # noqa: I001 - patches first

import datetime
import socket
import ssl
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import gevent
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gevent.server import StreamServer

from mta.config.schema import Source
from mta.config.shaping import DeliveryTimeouts
from mta.config.hosts import parse_proxy
from mta.config.units import Duration
from mta.delivery import pathkeeping, wire
from mta.delivery.explain import standing


def certificate(directory: str, name: str) -> tuple[str, str]:
    """The files of a self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256()))
    files = Path(directory, f"{name}.crt"), Path(directory, f"{name}.key")
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                           serialization.NoEncryption()))
    return str(files[0]), str(files[1])


class Encrypted(Sited):
    """A host that wants to see a certificate, of the authorities in `believes`."""

    believes: ssl.SSLContext

    def __init__(self, **options: Any) -> None:
        self.seen: list[tuple[str, str, str]] = []  # our address, name after EHLO, name in the certificate
        super().__init__(**options)

    def converse(self, sock: Any) -> None:
        sock.sendall(b"220 mx\r\n")
        file = sock.makefile("rb")
        file.readline()
        sock.sendall(b"250-mx\r\n250 STARTTLS\r\n")
        file.readline()
        sock.sendall(b"220 go\r\n")
        safe = self.believes.wrap_socket(sock, server_side=True)
        file = safe.makefile("rb")
        name = ""
        for line in file:
            verb = line[:4].upper()
            if verb == b"EHLO":
                name = line.split()[1].decode()
            if verb == b"QUIT":
                break
            if verb == b"DATA":
                safe.sendall(b"354 go\r\n")
                while file.readline() != b".\r\n":
                    pass
                shown = dict(pair[0] for pair in (safe.getpeercert() or {}).get("subject", ()))
                self.seen.append((safe.getpeername()[0], name, shown.get("commonName", "")))
            safe.sendall(b"250 ok\r\n")
        safe.close()


def each_source_has_its_name_and_certificate() -> None:
    """EHLO name and client certificate are those of the source that the connection leaves from. A reload takes a
    certificate that was renewed in its place, and stays with the one before while that cannot be read."""
    with tempfile.TemporaryDirectory() as directory:
        server = certificate(directory, "mx.d.test")
        files = {name: certificate(directory, f"{name}.cert.test") for name in "ab"}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*server)
        context.verify_mode = ssl.CERT_OPTIONAL
        for authority, _ in files.values():
            context.load_verify_locations(authority)
        Encrypted.believes = context
        sources = {name: Source(ipv4=address, ehlo=f"{name}.mta.test", tls_certificate=files[name][0],
                                tls_key=files[name][1])
                   for name, address in (("a", "127.0.0.2"), ("b", "127.0.0.3"))}
        sources["plain"] = Source(ipv4="127.0.0.4")
        world = Encrypted(sources=sources, shaping=quick(messages_per_connection=1, tls="required"))
        for _ in range(12):
            world.make()
        world.until(world.drained)
        assert set(world.seen) == {
            ("127.0.0.2", "a.mta.test", "a.cert.test"), ("127.0.0.3", "b.mta.test", "b.cert.test"),
            ("127.0.0.4", "mta.test", "")}, world.seen
        for place, renewed in zip(files["a"], certificate(directory, "new.cert.test"), strict=True):
            Path(renewed).replace(place)
        for place in files["b"]:
            Path(place).write_bytes(b"nothing")
        context.load_verify_locations(files["a"][0])
        world.engine.configure(world.config, world)
        world.seen.clear()
        for _ in range(12):
            world.make()
        world.until(world.drained)
        assert {(address, shown) for address, _, shown in world.seen} == {
            ("127.0.0.2", "new.cert.test"), ("127.0.0.3", "b.cert.test"), ("127.0.0.4", "")}, world.seen


def the_proxy_protocol_tells_where_to_and_from() -> None:
    """A proxy of HAProxy's kind gets source and destination in a header of version 2, and connects on; the event has
    the source's address."""
    headers: list[bytes] = []

    def haproxy(sock: Any, peer: object) -> None:
        header = sock.recv(28, socket.MSG_WAITALL)
        headers.append(header)
        source, to = (socket.inet_ntoa(header[at:at + 4]) for at in (16, 20))
        onward = gevent.socket.create_connection((to, int.from_bytes(header[26:28], "big")), source_address=(source, 0))
        gevent.spawn(pump, onward, sock)
        pump(sock, onward)

    def pump(one: Any, other: Any) -> None:
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(1)

    proxy = StreamServer(("127.0.0.1", 0), haproxy)
    proxy.start()
    address = parse_proxy(f"haproxy://127.0.0.1:{proxy.server_port}")
    world = Sited(sources={"near": Source(ipv4="127.0.0.6", proxy=address)})
    world.make()
    world.until(world.over)
    assert dict(world.clients) == {"127.0.0.6": 1}
    assert headers[0][:16] == b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c", headers
    assert [event["source_address"] for event in world.shelf.events] == ["127.0.0.6"]


def a_proxy_that_fails_leaves_its_mail_to_others() -> None:
    """The proxy of one source is down: told once, and its mail takes the other source of the pool; none waits or
    bounces."""
    pathkeeping.LOOK_S = 0.1
    free = StreamServer(("127.0.0.1", 0), lambda *_: None)
    free.init_socket()
    port = free.server_port
    free.close()
    world = Sited(sources=three(far=Source(proxy=parse_proxy(f"socks5://127.0.0.1:{port}"))),
                  pools={"default": {"far": 9, "a": 1}})
    for _ in range(10):
        world.make()
    world.until(world.over)
    gevent.sleep(0.3)
    assert dict(world.messages) == {"127.0.0.2": 10}
    kinds = {event["event"] for event in world.shelf.events}
    assert kinds == {"alarm", "delivered"}, kinds
    assert world.shelf.told("alarm") == 1


def a_source_of_one_family() -> None:
    """A source with an IPv6 address only leaves by IPv6, though the host has IPv4 first; one with IPv4 only by that."""
    world = Sited(sources={"six": Source(ipv6="::1"), "four": Source(ipv4="127.0.0.2")},
                  pools={"p6": {"six": 1}, "p4": {"four": 1}})
    second = StreamServer(("::1", world.port), world.serve)
    second.start()
    world.addresses_found = [(2, "127.0.0.1"), (10, "::1")]
    world.make_for("p6")
    world.make_for("p4")
    world.until(world.over)
    assert dict(world.clients) == {"::1": 1, "127.0.0.2": 1}, world.clients


def a_dead_address_is_given_up_in_seconds() -> None:
    """An address that answers nothing costs the time for a connect, and the next address of the site is tried in the
    same attempt. What was learnt spares the next connection the wait."""
    full = socket.socket()
    full.bind(("127.0.0.7", 0))
    full.listen(0)
    fillers = []
    for _ in range(3):  # a queue of connections that nobody accepts: further ones get no answer
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
        fillers.append(filler)
    world = Sited(shaping=quick(timeouts=DeliveryTimeouts(connect=Duration(1)), messages_per_connection=1,
                                connections=1))
    tried: list[str] = []
    connect = wire.Wire.connect

    def counted(self: Any, family: int, address: str, *rest: Any) -> None:
        tried.append(address)
        connect(self, family, address, *rest)

    wire.Wire.connect = counted
    dead = full.getsockname()[1]
    world.server.stop()
    world.server = StreamServer(("127.0.0.1", dead), world.serve)
    world.server.start()
    world.port = dead
    world.addresses_found = [(2, "127.0.0.7"), (2, "127.0.0.1")]
    begun = time.monotonic()
    world.make()
    world.until(world.over)
    first_s = time.monotonic() - begun
    world.make()
    world.make()
    world.until(world.over)
    assert first_s >= 0.9, first_s
    assert Counter(tried) == {"127.0.0.7": 1, "127.0.0.1": 3}
    assert world.shelf.told("delivered") == 3
    assert world.shelf.told("deferred") == world.shelf.told("suspended") == 0


def a_host_that_went_down_is_not_stormed() -> None:
    """A hundred messages wait for a host that refuses connections: it is asked by one connection at a time, at growing
    intervals; and when it is up again one goes first."""
    world = Sited(pause=0.2, shaping=quick(connections=20, messages_per_connection=1))
    tries: dict[int, list[float]] = {}  # after so many failures: when
    connect = wire.Wire.connect

    def noted(self: Any, *to: Any) -> None:
        tries.setdefault(world.engine.paths["mx.d.test"].failures, []).append(time.monotonic())
        connect(self, *to)

    def refuse(sock: Any, peer: object) -> None:
        sock.close()

    wire.Wire.connect = noted
    world.server.stop()
    world.server = StreamServer(("127.0.0.1", world.port), refuse)
    world.server.start()
    for _ in range(100):
        world.make()
    world.until(lambda: len(tries) == 4 and not world.engine.scheduler.deliveries
                and standing(world.engine, 0, "d.test", 1)[0] == "suspended")
    assert len(tries[0]) <= 20, tries
    assert [len(tries[failures]) for failures in (1, 2, 3)] == [1, 1, 1], tries
    for failures, pause_s in enumerate((0.2, 0.4, 0.8)):
        assert tries[failures + 1][0] - tries[failures][0] > 0.9 * pause_s, tries
    world.server.stop()
    world.server = StreamServer(("127.0.0.1", world.port), world.serve)
    world.server.start()
    world.until(world.over)
    assert world.shelf.told("delivered") == 100


if __name__ == "__main__":
    globals()[sys.argv[1]]()
