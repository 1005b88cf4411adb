"""Who the client of a session is: by PROXY header, Unix socket or XCLIENT, with real clients and a real process."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import smtplib
import socket
import ssl
import struct
from pathlib import Path

import pytest

from tests.inject.access_helpers import Pki, configuration
from tests.inject.submitting import RIGHT, TLS, client, submission, unnamed
from tests.inject.test_listener import CONTENT, Peer, listening

PROXY_V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes((192, 0, 2, 7, 127, 0, 0, 1)) + struct.pack("!HH", 4711, 25)


@pytest.mark.parametrize("header", [b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 25\r\n", PROXY_V2])
def test_proxy_header(header: bytes) -> None:
    """From `proxy_from` the header says who the client is, whatever its pieces; what follows is the client's."""
    config = configuration({"proxy_from": ["127.0.0.1"], "relay_from": ["192.0.2.0/24"]})
    with listening(config=config) as process:
        for cut in (0, 5, len(header) - 1):
            with Peer(process, greet=False) as peer:
                peer.sock.sendall(header[:cut])
                peer.sock.sendall(header[cut:] + (b"EHLO c.example\r\n" if not cut else b""))
                assert peer.reply() == "220 mx.example.net ESMTP"
                assert (peer.reply() if not cut else peer.say("EHLO c.example")).startswith("250-")
                peer.begin()
                assert peer.say(CONTENT.rstrip() + b"\r\n.").startswith("250")
                assert process.expect("message")[3] == "smtp 192.0.2.7:4711 c.example"


def test_proxy_header_of_a_stranger() -> None:
    """A header from who is not trusted is a command that nobody knows; a trusted balancer without one is cut off."""
    header = "PROXY TCP4 192.0.2.7 127.0.0.1 4711 25"
    config = configuration({"relay_from": ["192.0.2.0/24"]})
    with listening(config=config, log="INFO") as process, Peer(process, greet=False) as peer:
        assert peer.say(header).startswith("220")
        assert peer.reply().startswith("500 5.5.1")
        peer.say("EHLO c.example")
        peer.say("MAIL FROM:<a@b.example>")
        assert peer.say("RCPT TO:<c@d.example>") == "550 5.7.1 Relaying denied"
        assert b"mail to <c@d.example> of [127.0.0.1]: not in relay_from" in process.complaint()
    with listening(config=configuration({"proxy_from": ["127.0.0.1"]})) as process:
        with Peer(process, greet=False) as peer:
            peer.send("EHLO c.example")
            assert peer.reply() == ""
        assert b"[127.0.0.1] is in proxy_from: no PROXY header" in process.complaint()


def test_proxy_header_before_tls(pki: Pki, users: str) -> None:
    """The header comes before the handshake, in one packet with its beginning or not."""
    listener = {"tls": "implicit", "auth": "required", "proxy_from": ["127.0.0.1"]}
    with submission(pki, users, listener) as process, \
            socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = unnamed(pki).wrap_bio(incoming, outgoing)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        sock.sendall(PROXY_V2 + outgoing.read())
        while True:
            incoming.write(sock.recv(65_536))
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                continue
        sock.sendall(outgoing.read())
        while True:
            try:
                assert tls.read() == b"220 mx.example.net ESMTP\r\n"
                break
            except ssl.SSLWantReadError:
                incoming.write(sock.recv(65_536))


def test_clients_of_a_balancer_are_counted_one_by_one() -> None:
    """`sessions_per_client` is about who is behind the balancer."""
    config = configuration({"proxy_from": ["127.0.0.1"]}, smtp={"sessions_per_client": 1})
    with listening(config=config) as process, contextlib.ExitStack() as stack:
        for number, expected in ((7, "220"), (8, "220"), (7, "421 4.7.0")):
            peer = stack.enter_context(Peer(process, greet=False))
            assert peer.say(f"PROXY TCP4 192.0.2.{number} 127.0.0.1 4711 25").startswith(expected)
        process.tell("sessions")
        assert process.expect("sessions") == [2]


def test_unix_socket(tmp_path: Path) -> None:
    """Who can open a Unix socket may send, as the system user it is."""
    path = str(tmp_path / "smtp")
    with listening(unix=path, config=configuration({"smtp": f"unix:{path}"})) as process, socket.socket(
            socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        assert sock.recv(1000).startswith(b"220 ")
        for line, code in ((b"EHLO c.example", b"250"), (b"MAIL FROM:<a@b.example>", b"250"),
                           (b"RCPT TO:<c@d.example>", b"250"), (b"DATA", b"354"), (CONTENT + b".", b"250")):
            sock.sendall(line + b"\r\n")
            assert sock.recv(1000).startswith(code), line
        assert process.expect("message")[3].startswith("smtp local c.example as ")
        process.tell("config " + json.dumps(configuration(
            {"smtp": f"unix:{path}"}, users={pwd.getpwuid(os.getuid()).pw_name: {"enabled": False}})))
        process.expect("ok")
        sock.sendall(b"MAIL FROM:<a@b.example>\r\n")
        assert sock.recv(1000).startswith(b"530 5.7.0 ")


def test_sessions_of_a_user_of_a_unix_socket(tmp_path: Path) -> None:
    """Who has opened a Unix socket has a user's limits from the start, sessions included."""
    path = str(tmp_path / "smtp")
    name = pwd.getpwuid(os.getuid()).pw_name
    config = configuration({"smtp": f"unix:{path}"}, users={name: {"limits": {"sessions": 1}}})

    def greeting(sock: socket.socket) -> bytes:
        sock.settimeout(20)
        sock.connect(path)
        return sock.recv(1000)

    with listening(unix=path, config=config):
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            assert greeting(first).startswith(b"220 ")
            assert greeting(second) == b"421 4.7.0 Too many sessions of this user\r\n"
            assert second.recv(1000) == b""
            first.sendall(b"QUIT\r\n")
            assert first.recv(1000).startswith(b"221 ")
            assert first.recv(1000) == b""
        with socket.socket(socket.AF_UNIX) as third:
            assert greeting(third).startswith(b"220 ")


def test_sessions_of_a_login_that_tls_makes_void(pki: Pki, users: str) -> None:
    """A login in clear counts until TLS starts, which forgets it."""
    limits = {"acme": {"limits": {"sessions": 1}}}
    with submission(pki, users, {**TLS, "auth_without_tls": True}, users=limits) as process, smtplib.SMTP(
            "127.0.0.1", process.port, "client.example", 20) as smtp, client(process, pki) as other:
        smtp._host = "mx.example.net"
        smtp.ehlo()
        assert smtp.docmd("AUTH", RIGHT)[0] == 235
        smtp.starttls(context=pki.context())
        smtp.ehlo()  # by then the handshake is done on both sides
        assert other.docmd("AUTH", RIGHT)[0] == 235


def test_xclient() -> None:
    """XCLIENT is believed from `xclient_from` alone, and the rules for whom it names hold."""
    for trusted in (True, False):
        listener = {"relay_from": ["192.0.2.0/24"], "xclient_from": ["127.0.0.1"] if trusted else []}
        with listening(config=configuration(listener)) as process, Peer(process) as peer:
            reply = peer.say("XCLIENT ADDR=192.0.2.7 PORT=4711")
            assert reply.startswith("220" if trusted else "5"), reply
            peer.say("EHLO c.example")
            peer.say("MAIL FROM:<a@b.example>")
            assert peer.say("RCPT TO:<c@d.example>").startswith("250" if trusted else "550")


def test_networks_of_a_user_hold_for_xclient() -> None:
    """Whoever has checked the password: where a user may log in from is ours to say."""
    config = configuration({"xclient_from": ["127.0.0.1"]}, users={"acme": {"networks": ["192.0.2.0/24"]}})
    with listening(config=config) as process, Peer(process) as peer:
        for address, code in (("198.51.100.1", "550 5.7.1 This user may not"), ("192.0.2.7", "250")):
            assert peer.say(f"XCLIENT ADDR={address} LOGIN=acme").startswith("220")
            peer.say("EHLO c.example")
            assert peer.say("MAIL FROM:<a@b.example>").startswith(code)
