"""A crowd of hostile clients on real sockets, all at once, against one real MTA that goes on with its work.

Each says one thing that it should not, at one stage, on one of the listeners: plain with STARTTLS, implicit TLS, behind
a PROXY header. Meanwhile somebody else sends mail, which arrives. Nothing of what the crowd smuggled is a message, the
workers are the same at the end, and there is no bug in the log.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mta.control.channel import encode
from mta.control.client import ControlClient
from mta.sandbox.client import Sandbox
from tests.faults.books import assert_balanced, assert_no_bug
from tests.inject.access_helpers import make_pki, make_users
from tests.integration.support import Mta, message

PATIENCE_S = 60.0
LEGITIMATE = 60
EVIL = b"MAIL FROM:<evil@client.test>\r\nRCPT TO:<evil@evil.test>\r\n"
EVIL_MESSAGE = EVIL + b"DATA\r\nSubject: evil\r\n\r\nevil\r\n.\r\n"
HELLO = b"EHLO c.test\r\n"
CLIENT_HELLO = bytes.fromhex("16030100a5010000a10303") + bytes(range(160))
SECRET = b"AGFjbWUAZ2VoZWlt"  # acme, geheim
PROXY = b"PROXY TCP4 127.0.0.9 127.0.0.1 4711 25\r\n"


class Client:
    """A raw connection."""

    def __init__(self, address: tuple[str, int], source: str) -> None:
        self.sock: socket.socket = socket.create_connection(address, PATIENCE_S, (source, 0))

    def say(self, *pieces: bytes) -> None:
        """Write, each piece by itself; a host that is gone is no surprise."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            for piece in pieces:
                self.sock.sendall(piece)

    def ask(self, line: bytes) -> bytes:
        """A command, and its whole reply."""
        self.say(line)
        return self.reply()

    def reply(self) -> bytes:
        """A whole reply; what there was when the connection ended."""
        said = b""
        while not re.search(rb"(?m)^[0-9]{3} .*\r\n\Z", said):
            with contextlib.suppress(ConnectionResetError, ssl.SSLError):
                more = self.sock.recv(65_536)
                if more:
                    said += more
                    continue
            break
        return said

    def rest(self) -> bytes:
        """All that still comes, until the other side closes."""
        said = b""
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):
            while more := self.sock.recv(65_536):
                said += more
        return said

    def secure(self) -> None:
        """TLS, whoever it is."""
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.sock = context.wrap_socket(self.sock)

    def reset(self) -> None:
        """Be gone without a word."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@dataclass
class Place:
    """Where the listeners are, and where one attack comes from."""

    listeners: dict[str, tuple[str, int]]
    source: str
    run: Path  # the runtime directory
    clients: list[Client] = field(default_factory=list)

    def connect(self, listener: str) -> Client:
        """A connection, to a listener."""
        self.clients.append(Client(self.listeners[listener], self.source))
        return self.clients[-1]

    def open(self, hello: bool = True) -> Client:
        """A session on the plain listener that has said EHLO."""
        client = self.connect("plain")
        assert client.reply().startswith(b"220 ")
        if hello:
            assert client.ask(HELLO).startswith(b"250-")
        return client

    def content(self) -> Client:
        """One that is in the middle of content."""
        client = self.open()
        for line in EVIL.splitlines(keepends=True):
            assert client.ask(line).startswith(b"250 ")
        assert client.ask(b"DATA\r\n").startswith(b"354 ")
        return client


Attack = Callable[[Place], None]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    """Take part."""
    ATTACKS[function.__name__.replace("_", " ")] = function
    return function


def ends(client: Client, *codes: bytes) -> None:
    """The session ends, with these replies at most (some may be lost when the client was reset)."""
    said = [line[:3] for line in client.rest().split(b"\r\n") if line[3:4] == b" "]
    assert said == list(codes) or not said, (said, codes)


# -- TLS ------------------------------------------------------------------------------------------------------------


@attack
def commands_behind_starttls(place: Place) -> None:
    """CVE-2011-0411: in one packet, and with a handshake that would follow."""
    for behind in (b"RSET\r\n", EVIL_MESSAGE, b"EHLO c.test\r\n" + EVIL_MESSAGE, CLIENT_HELLO, b"\0", b"\n"):
        client = place.open()
        client.say(b"STARTTLS\r\n" + behind)
        ends(client, b"554")


@attack
def clear_text_for_a_handshake(place: Place) -> None:
    """Nothing that comes in clear after the 220 is a command."""
    for text in (EVIL_MESSAGE, b"NOOP\r\n", CLIENT_HELLO, b"\0" * 5000, b"\x15\x03\x01\0\x02\x02\x28"):
        client = place.open()
        assert client.ask(b"STARTTLS\r\n").startswith(b"220 ")
        client.say(text)
        said = client.rest()
        assert not re.search(rb"(?m)^[2345][0-9][0-9][ -]", said), said


@attack
def commands_in_clear_before_tls_do_not_live_on(place: Place) -> None:
    """RFC 3207 4.2: sender and recipients from before are forgotten; and TLS is begun once."""
    client = place.open()
    assert client.ask(b"STARTTLS\r\n").startswith(b"220 ")
    client.secure()
    for line, code in ((b"RCPT TO:<evil@evil.test>\r\n", b"503"), (b"MAIL FROM:<evil@client.test>\r\n", b"503"),
                       (HELLO, b"250"), (b"STARTTLS\r\n", b"503"), (b"QUIT\r\n", b"221")):
        assert client.ask(line).startswith(code), line
    client = place.open()
    for line in EVIL.splitlines(keepends=True):
        client.ask(line)
    assert client.ask(b"STARTTLS\r\n").startswith(b"503 ")


@attack
def smtp_to_implicit_tls(place: Place) -> None:
    """Clear text there is no session."""
    for text in (HELLO + EVIL_MESSAGE, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 65_535,
                 b"\x80" * 20_000):
        client = place.connect("implicit")
        client.say(text)
        assert b"250" not in client.rest()


@attack
def tls_to_a_plain_listener(place: Place) -> None:
    """A handshake where none was asked for is bad lines."""
    client = place.open(hello=False)
    client.say(CLIENT_HELLO * 40)
    client.sock.shutdown(socket.SHUT_WR)
    assert re.fullmatch(rb"(?:[45][0-9][0-9][ -][ -~]*\r\n)*", client.rest())


# -- who it says it is ----------------------------------------------------------------------------------------------


@attack
def bad_proxy_headers(place: Place) -> None:
    """Of a trusted balancer: it is cut off, and nothing of what follows is heard."""
    signature = b"\r\n\r\n\0\r\nQUIT\n"
    for header in (b"PROXY TCP4 127.0.0.9 127.0.0.1 4711 99999\r\n", b"PROXY TCP4 x y 1 2\r\n", b"PROXY " + b"x" * 5000,
                   HELLO, b"\r\n" + EVIL_MESSAGE, b"PROXY TCP4 127.0.0.9 127.0.0.1 4711 25\n",
                   signature + b"\x21\x11\xff\xff", signature + b"\x31\x11\0\x0c" + b"\0" * 12):
        client = place.connect("balanced")
        client.say(header + HELLO + EVIL_MESSAGE)
        assert b"250" not in client.rest()


@attack
def a_proxy_header_twice(place: Place) -> None:
    """The second one is a command that nobody knows; and nobody may say XCLIENT."""
    client = place.connect("balanced")
    client.say(PROXY + b"PROXY TCP4 127.0.0.1 127.0.0.1 4711 25\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    assert [line[:3] for line in client.rest().split(b"\r\n")] == [b"220", b"500", b""]
    client = place.open()
    assert client.ask(b"XCLIENT ADDR=127.0.0.1 LOGIN=acme\r\n").startswith(b"550 ")


@attack
def logins_that_go_wrong(place: Place) -> None:
    """CVE-2018-6789, 2011-1720, 2023-42114: every length, bad alphabets, a megabyte; each attempt begins with nothing
    of the one before."""
    client = place.open()
    client.ask(b"STARTTLS\r\n")
    client.secure()
    client.ask(HELLO)
    for number in range(40):
        assert client.ask(b"AUTH LOGIN\r\n").startswith(b"334 ")
        assert client.ask(b"YWNtZQ==\r\n" if number % 2 else b"*\r\n")[:3] in (b"334", b"501")
        if number % 2:
            assert client.ask(b"*\r\n").startswith(b"501 ")
    assert client.ask(b"AUTH PLAIN " + SECRET + b"\r\n")[:3] in (b"535", b"454", b"421")
    for response in (b"A", b"AA", b"AAA", b"=", b"====", b"AA=A", b"\xff\xff\xff\xff", b"AGFjbWU", b"A" * 12_000):
        said = client.ask(b"AUTH PLAIN\r\n")
        if not said.startswith(b"334 "):
            break
        assert client.ask(response + b"\r\n")[:1] in (b"5", b"4", b"")
    client = place.open()
    client.say(b"AUTH PLAIN " + b"A" * 1_000_000 + b"\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    assert b"235" not in client.rest()


# -- out of turn ----------------------------------------------------------------------------------------------------


@attack
def input_before_the_reply(place: Place) -> None:
    """RFC 2920 3.1: behind EHLO, and content behind DATA, whether that is refused or not."""
    client = place.open(hello=False)
    client.say(HELLO + EVIL_MESSAGE)
    ends(client, b"554")
    client = place.open()
    client.say(EVIL + b"DATA\r\nSubject: x\r\n\r\n" + EVIL_MESSAGE)
    ends(client, b"250", b"250", b"554")
    client = place.open()
    client.say(b"DATA\r\n" + EVIL_MESSAGE)
    ends(client, b"554")
    client = place.open()
    client.say(b"QUIT\r\n" + EVIL_MESSAGE)
    ends(client, b"221")


@attack
def very_long_groups(place: Place) -> None:
    """Ten thousand recipients, and a hundred thousand NOOPs, in one write: some are refused, then it ends."""
    client = place.open()
    client.say(b"MAIL FROM:<evil@client.test>\r\n" + b"RCPT TO:<evil@evil.test>\r\n" * 10_000)
    client.sock.shutdown(socket.SHUT_WR)
    assert b"\r\n452 4.5.3 " in client.rest()
    client = place.open()
    client.say(b"NOOP\r\n" * 100_000)
    assert client.rest().endswith((b"421 4.7.0 Too many commands without a message\r\n", b""))


@attack
def other_protocols(place: Place) -> None:
    """What a browser or a scanner says."""
    for text in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                 b"POST / HTTP/1.1\r\nContent-Length: 300\r\n\r\n" + HELLO + EVIL_MESSAGE):
        client = place.open(hello=False)
        client.say(text)
        ends(client, b"521")
    for text in (b"SSH-2.0-x\r\n", b"\0\0\0\x85\xffSMB", b"* LOGIN x y\r\n", b"${jndi:ldap://x}\r\n",
                 b"USER x\r\nPASS y\r\n"):
        client = place.open(hello=False)
        client.say(text)
        client.sock.shutdown(socket.SHUT_WR)
        assert b"250" not in client.rest()


# -- octets ---------------------------------------------------------------------------------------------------------


@attack
def every_octet_in_commands(place: Place) -> None:
    """CVE-2003-0161: each octet in each command is refused; only with SMTPUTF8 are there letters beyond ASCII."""
    for octets in (bytes(range(128, 256)), bytes({*range(32)} - {10, 13}), b"\r", b"\x7f", b"\xff" * 500):
        client = place.open()
        for command in (b"MAIL FROM:<a%b@b.test>", b"MAIL FROM:<a@b%b.test>", b"EHLO %b", b"NOOP%b", b"%b",
                        b"RCPT TO:<%b@b.test>", b"MAIL FROM:<a@b.test> ENVID=%b", b"AUTH %b", b"VRFY %b"):
            reply = client.ask(command % octets + b"\r\n")
            assert reply[:1] == b"5" or command.startswith(b"VRFY"), (command, octets, reply)
            assert re.fullmatch(rb"[ -~\r\n]*", reply)


@attack
def smuggling(place: Place) -> None:
    """CVE-2023-51764: one message, refused as a whole; what is in it is nothing."""
    for end in (b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r\n\0.\r\n", b"\r\n.\0\r\n",
                b"\r\r\n.\r\r\n"):
        client = place.content()
        client.say(b"Subject: x\r\n\r\nx" + end + EVIL_MESSAGE)
        assert client.reply().startswith(b"550 5.6.0 "), end
        assert client.ask(b"DATA\r\n").startswith(b"503 ")


@attack
def chunks(place: Place) -> None:
    """CVE-2017-16943: no size, a huge one, none left, an end inside, a command inside, the client gone inside."""
    for size in (b"", b"-1", b"x", b"99999999999999999999999", b"1 2", b"1 LAST LAST", b"0x10"):
        client = place.open()
        client.say(EVIL + b"BDAT " + size + b"\r\n" + EVIL_MESSAGE)
        ends(client, b"250", b"250", b"521")
    client = place.open()
    client.say(EVIL + b"BDAT 10\r\n.\r\nQUIT\r\n.")
    client.reset()
    client = place.open()
    client.say(EVIL + b"BDAT 99999999\r\n" + EVIL_MESSAGE * 10)
    client.reset()
    client = place.open()
    client.say(b"BDAT 60 LAST\r\n" + b"x" * 60 + b"BDAT 5\r\nRSET\n" + b"BDAT 0 LAST\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    said = [line[:3] for line in client.rest().split(b"\r\n") if line[3:4] == b" "]
    assert said == [b"503"] * 3, said


@attack
def overlong(place: Place) -> None:
    """CVE-2019-16928 and Postfix 20260529: lines without end, a header without end, a name of 100 KB."""
    for start in (b"EHLO ", b"MAIL FROM:<", b"x", b"AUTH PLAIN "):
        client = place.open(hello=False)
        client.say(start, *[b"x" * 100_000] * 30)
        assert client.rest()[:3] in (b"421", b"")
    client = place.open()
    assert client.ask(b"EHLO " + b"x" * 100_000 + b"\r\n").startswith(b"500 ")
    client = place.content()
    client.say(b"Subject: x\r\n", *[b" x\r\n" * 10_000] * 10, b".\r\n")
    assert client.reply().startswith(b"550 5.6.0 ")
    client = place.content()
    client.say(b"Subject: x\r\n\r\n", *[b"x" * 100_000] * 20, b"\r\n.\r\n")
    assert client.reply().startswith(b"550 5.6.0 ")


# -- time and number ------------------------------------------------------------------------------------------------


@attack
def slowloris(place: Place) -> None:
    """One octet now and then at every stage: each is shown out when its time is up, however busy it looks."""
    auth = place.open()
    auth.ask(b"STARTTLS\r\n")
    auth.secure()
    auth.ask(HELLO)
    auth.ask(b"AUTH LOGIN\r\n")
    chunk = place.open()
    chunk.say(EVIL + b"BDAT 100000\r\n")
    handshake = place.open()
    handshake.ask(b"STARTTLS\r\n")
    stages = [(place.open(hello=False), b"E"), (place.open(), b"N"), (place.content(), b"x\r\n"), (chunk, b"x"),
              (auth, b"A"), (handshake, b"\x16"), (place.connect("implicit"), b"\x16"),
              (place.connect("balanced"), b"P")]
    open_ones = {client.sock: (client, octet) for client, octet in stages}
    for client, _ in stages:
        client.sock.settimeout(0.2)
    for _ in range(300):
        for sock, (client, octet) in list(open_ones.items()):
            client.say(octet)
            try:
                if not sock.recv(65_536):
                    del open_ones[sock]
            except TimeoutError:
                continue
            except OSError:
                del open_ones[sock]
        if not open_ones:
            return
    raise AssertionError(f"{len(open_ones)} of {len(stages)} are still there")


@attack
def flood_from_one_address(place: Place) -> None:
    """More connections than one address may have: the rest is told so."""
    clients = [place.connect("plain") for _ in range(60)]
    codes = [client.reply()[:3] for client in clients]
    assert 20 <= codes.count(b"220") <= 40  # by one of two workers, or both
    assert codes.count(b"421") == 60 - codes.count(b"220")
    for client in clients:
        client.reset()


@attack
def gone_at_any_moment(place: Place) -> None:
    """A reset at every place of a transaction."""
    said = HELLO + EVIL + b"DATA\r\nSubject: x\r\n\r\nx\r\n"
    for cut in range(0, len(said), 9):
        client = place.open(hello=False)
        client.say(said[:cut])
        client.reset()


@attack
def deaf(place: Place) -> None:
    """It asks and does not read: it is cut off, or told that it is too much."""
    client = place.open()
    client.sock.settimeout(PATIENCE_S)
    with contextlib.suppress(OSError):
        for _ in range(200):
            client.sock.sendall(b"HELP\r\n" * 2000)


@attack
def garbage_on_the_control_sockets(place: Place) -> None:
    """CVE-2025-62875: what is no frame, or asks for nonsense, is refused and hurts nobody."""
    frames = [b"\0" * 100, b"\xff" * 100, b"\x7f\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\x10\0" + b"\x91" * 4096,
              b"GET / HTTP/1.1\r\n\r\n"]
    requests: list[object] = [
        [], None, {}, ["status"], ["status", 1], ["status", {}, 1], [1, {}], ["obey", {"serial": "x"}],
        ["queues", {"limit": -1}], ["queues", {"limit": 1 << 62}], ["queues", {"limit": 1, "pattern": "*a" * 1000}],
        ["queue", {"name": "\x1b\n", "limit": 1}], ["message", {"id": "../../x"}],
        ["body", {"id": "01hq3z8k2v4x0", "offset": -1, "length": 1 << 40}], ["touched", {"filter": "(" * 5000}],
        ["page", {"filter": "queue~((a+)+)+", "after": "x", "causes": 1}], ["order", {"kind": "delete"}],
        ["order", {"kind": "x" * 5000, "filter": "\n"}], ["end", {"numbers": ["x", None, -1]}],
        ["explain", {"kind": [], "name": {}}],
    ]
    for name in ("control.sock", "worker-0.sock"):
        for data in [*frames, *map(encode, requests)]:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PATIENCE_S)
                sock.connect(str(place.run / name))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65_536):
                        pass
    with ControlClient(str(place.run)) as client:
        assert client.status().missing == []


# -- all at once ----------------------------------------------------------------------------------------------------


@dataclass
class Story:
    """What came of it."""

    failures: dict[str, str] = field(default_factory=dict)
    accepted: int = 0
    memory: int = 0


@pytest.fixture(scope="module")
def story() -> Story:
    """All attacks at once, and the mail of somebody else."""
    story = Story()
    with tempfile.TemporaryDirectory(prefix="mta-") as name, Sandbox() as sandbox:
        directory = Path(name)
        timeouts = {"command": "2s", "data": "2s", "transaction": "4s", "handshake": "2s"}
        mta = Mta(
            directory, sandbox.dns, sandbox.smtp_port, workers=2,
            listeners=[
                {"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.0/8"], "tls": "offered", "auth": "offered"},
                {"smtp": "127.0.0.2:0", "relay_from": ["127.0.0.0/8"], "tls": "implicit"},
                {"smtp": "127.0.0.3:0", "relay_from": ["127.0.0.0/8"], "proxy_from": ["127.0.1.0/24"]},
            ],
            smtp={"timeouts": timeouts, "sessions_per_client": 20, "recipients": 100},
            access={"users_file": make_users(directory / "users", acme="secret"), "failure_delay": 0},
            certificates=[{"certificate": make_pki(directory).make("mta.test")}])
        mta.start()
        try:
            line = next(line for line in mta.log if "ready:" in line)
            found = re.findall(r"(127\.0\.0\.\d):(\d+)", line)
            listeners = {name: (host, int(port)) for name, (host, port) in
                         zip(("plain", "implicit", "balanced"), found, strict=True)}
            workers = mta.children()["worker"]

            def run(number: int, what: str) -> None:
                place = Place(listeners, f"127.0.1.{number + 1}", directory / "run")
                try:
                    ATTACKS[what](place)
                except Exception:
                    story.failures[what] = traceback.format_exc()
                finally:
                    for client in place.clients:
                        client.sock.close()

            threads = [threading.Thread(target=run, args=one, daemon=True) for one in enumerate(ATTACKS)]
            for thread in threads:
                thread.start()
            for number in range(LEGITIMATE):
                assert mta.send("a@client.test", ["u@good.test"], message(number, "u@good.test")) == {}
                story.accepted += 1
            for what, thread in zip(ATTACKS, threads, strict=True):
                thread.join(2 * PATIENCE_S)
                if thread.is_alive():
                    story.failures[what] = "it has not ended"
            sandbox.wait_for(lambda stats: bool(stats["messages"] >= LEGITIMATE))
            assert mta.children()["worker"] == workers
            story.memory = max(worker["memory"] for worker in mta.status()["workers"])
            mta.stop()
            assert_balanced(mta, range(LEGITIMATE), sandbox.received())
            assert_no_bug(mta)
            told = "\n".join(mta.log)
            assert "geheim" not in told  # CVE-2016-9963
            assert SECRET.decode() not in told
            received = [event for event in mta.events() if event["event"] == "received"]
            assert [event for event in received if "evil" in event["sender"]] == []
            assert len(received) == LEGITIMATE
        finally:
            mta.kill()
    return story


def test_the_others_notice_nothing(story: Story) -> None:
    """All of their mail is taken, each message arrives once, by the same workers, which have no more memory than the
    configuration gives them."""
    assert story.accepted == LEGITIMATE
    assert story.memory < 300_000_000


@pytest.mark.parametrize("what", ATTACKS)
def test_attack(story: Story, what: str) -> None:
    """It is answered as it should be, or cut off."""
    assert story.failures.get(what, "") == ""
