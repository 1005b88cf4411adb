"""AUTH, STARTTLS and XCLIENT in the server machine: who the client is (RFC 4954, RFC 3207)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mta.smtp.errors import LocalProtocolError
from mta.smtp.peer import ALL_RIGHTS, NO_RIGHTS, Identity, Peer, Rights, Tls
from mta.smtp.reply import Reply
from mta.smtp.sasl import PasswordAttempt, ScramAttempt, ScramProof, decode, encode, scram_keys
from mta.smtp.server import Authenticate, Closed, PeerChanged, Server, ServerEvent, StartTls
from tests.smtp.helpers import TRUSTED, deliver, say, server_settings, talk
from tests.smtp.scram import ScramClient

TLS = Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384", bindings={"tls-server-end-point": b"\x01" * 32})
ENCRYPTED = Peer("198.51.100.7", 4711, TLS)
TIM = Identity("tim", "password")
KEYS = scram_keys("pencil", b"salt" * 4, 100)
ALL = ("PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS")
PLAIN = "AUTH PLAIN " + encode(b"\0tim\0secret").decode()
OUT_OF_TURN = b"554 5.5.0 Input before the reply to the last command; see RFC 2920 3.1\r\n"
OVER = [Closed(by_client=False)]


class UsersOnly:
    """Permissions of those who are logged in."""

    asked = 0

    def rights_of(self, peer: Peer) -> Rights:
        """All or none."""
        self.asked += 1
        return ALL_RIGHTS if peer.identity is not None else NO_RIGHTS


def server(peer: Peer = ENCRYPTED, hello: bool = True, **options: object) -> Server:
    """A session that has said EHLO, and offers all mechanisms under TLS."""
    settings = {"mechanisms": ALL, "starttls": True, "permissions": UsersOnly(), **options}
    machine = Server(server_settings(**settings), peer)
    if hello:
        say(machine, "EHLO client.example")
    return machine


def login(machine: Server) -> None:
    """Tim logs in."""
    assert machine.receive(PLAIN.encode() + b"\r\n") == [Authenticate(PasswordAttempt("tim", "secret"))]
    assert machine.authenticated(TIM) == []
    assert machine.output() == b"235 2.7.0 Authentication successful\r\n"


def offered(machine: Server) -> list[str]:
    """What EHLO offers."""
    return [line[4:] for line in say(machine, "EHLO client.example")[0].split("\r\n")[1:]]


# -- AUTH: what is offered when -----------------------------------------------------------------------------------


def test_offers() -> None:
    """AUTH under TLS only, unless it is allowed; -PLUS only where there is something to bind to; STARTTLS until TLS."""
    assert "AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN" in offered(server())
    assert "STARTTLS" not in offered(server())
    assert "AUTH SCRAM-SHA-256 PLAIN LOGIN" in offered(server(Peer("192.0.2.1", 1, Tls("TLSv1.2", "x"))))
    plain = offered(server(TRUSTED))
    assert "STARTTLS" in plain
    assert not any(line.startswith("AUTH") for line in plain)
    assert "AUTH SCRAM-SHA-256 PLAIN LOGIN" in offered(server(TRUSTED, auth_without_tls=True))
    assert not any(line.startswith("AUTH") for line in offered(server(mechanisms=())))


@pytest.mark.parametrize(
    ("peer", "options", "before", "line", "reply"),
    [
        (TRUSTED, {}, ["EHLO x.example"], PLAIN, "538 5.7.11"),  # RFC 4954 4: not without TLS
        (TRUSTED, {"starttls": False, "mechanisms": ()}, [], PLAIN, "502 5.5.1"),
        (ENCRYPTED, {}, ["HELO x.example"], PLAIN, "503 5.5.1"),  # only after EHLO
        (ENCRYPTED, {}, ["EHLO x.example", "MAIL FROM:<>"], PLAIN, "503 5.5.1"),  # not in a transaction
        (ENCRYPTED, {}, ["EHLO x.example"], "AUTH", "501 5.5.4"),
        (ENCRYPTED, {}, ["EHLO x.example"], "AUTH CRAM-MD5", "504 5.5.4"),
        (ENCRYPTED, {}, ["EHLO x.example"], "AUTH \xff", "504 5.5.4"),
        (ENCRYPTED, {"mechanisms": ("PLAIN",)}, ["EHLO x.example"], "AUTH LOGIN", "504 5.5.4"),
        (ENCRYPTED, {}, ["EHLO x.example"], "AUTH PLAIN *", "501 5.5.2"),
        (ENCRYPTED, {}, ["EHLO x.example"], "AUTH PLAIN =", "501 5.5.2"),
        (ENCRYPTED, {}, ["EHLO x.example"], "AUTH PLAIN AAA", "501 5.5.2"),
        (ENCRYPTED, {}, ["EHLO x.example"], PLAIN + " x", "501 5.5.2"),
        (ENCRYPTED, {}, ["EHLO x.example"], "AUTH PLAIN " + "A" * 12_276, "501 5.5.2"),  # 12,287 octets
        (ENCRYPTED, {}, ["EHLO x.example"], "AUTH PLAIN " + "A" * 12_278, "500 5.5.2"),
        (ENCRYPTED, {}, [], "AUTH PLAIN", "503 5.5.1"),
    ],
)  # fmt: skip
def test_refused_at_once(peer: Peer, options: dict[str, object], before: list[str], line: str, reply: str) -> None:
    """AUTH that cannot be begun."""
    machine = server(peer, hello=False, **options)
    say(machine, *before)
    output, events = talk(machine, line.encode("latin-1") + b"\r\n")
    assert output.decode().startswith(reply)
    assert events == []
    assert say(machine, "NOOP")[0].startswith("250")


# -- AUTH: the exchange -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1 << 30, 1])
@pytest.mark.parametrize(
    "lines",
    [
        [(PLAIN, "")],
        [("AUTH plain", "334 "), (encode(b"\0tim\0secret").decode(), "")],
        [("AUTH LOGIN", "334 VXNlcm5hbWU6"), ("dGlt", "334 UGFzc3dvcmQ6"), ("c2VjcmV0", "")],
        [("AUTH login dGlt", "334 UGFzc3dvcmQ6"), ("c2VjcmV0", "")],  # RFC 4954 4: the initial response
    ],
)
def test_password(lines: list[tuple[str, str]], cut: int) -> None:
    """The exchange of each mechanism, in one piece and octet by octet; then mail may be sent."""
    machine = server()
    for line, challenge in lines:
        events: list[ServerEvent] = []
        data = line.encode() + b"\r\n"
        for position in range(0, len(data), cut):
            events += machine.receive(data[position : position + cut])
        assert machine.output() == (challenge.encode() + b"\r\n" if challenge else b"")
    assert events == [Authenticate(PasswordAttempt("tim", "secret"))]
    assert machine.peer.identity is None
    assert machine.authenticated(TIM) == []
    assert machine.output().startswith(b"235 2.7.0 ")
    assert machine.peer.identity == TIM
    deliver(machine)
    assert say(machine, PLAIN)[0].startswith("503 5.5.1")  # RFC 4954 4: not twice


@pytest.mark.parametrize("name", ["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"])
def test_scram(name: str) -> None:
    """Both prove that they know the keys; the client is logged in when it has heard our proof (RFC 4954 4)."""
    machine = server()
    flag, binding = ("p=tls-server-end-point", b"\x01" * 32) if name.endswith("PLUS") else ("n", b"")
    client = ScramClient("tim", "pencil", flag, binding)
    assert say(machine, f"AUTH {name}") == ["334 "]
    assert machine.receive(encode(client.first()) + b"\r\n") == [Authenticate(ScramAttempt("tim"))]
    assert machine.keys_found(KEYS) == []
    final = client.final(decode(machine.output()[4:-2]))
    assert machine.receive(encode(final) + b"\r\n") == [Authenticate(ScramProof("tim", "", True))]
    assert machine.authenticated(Identity("tim", "scram")) == []
    assert client.is_satisfied(decode(machine.output()[4:-2]))
    assert machine.peer.identity is None
    assert talk(machine, b"\r\n") == (b"235 2.7.0 Authentication successful\r\n", [])
    assert machine.peer.identity == Identity("tim", "scram")


def scram_until_last_words(machine: Server) -> None:
    """A login by SCRAM that is good but for the client's last response."""
    client = ScramClient("tim", "pencil")
    machine.receive(b"AUTH SCRAM-SHA-256 " + encode(client.first()).replace(b"\n", b"") + b"\r\n")
    machine.keys_found(KEYS)
    machine.receive(encode(client.final(decode(machine.output()[4:-2]))) + b"\r\n")
    machine.authenticated(Identity("tim", "scram"))
    assert machine.output().startswith(b"334 ")


@pytest.mark.parametrize(("response", "reply"), [(b"*", b"501 5.7.0"), (b"AAAA", b"501 5.5.2"), (b"=", b"501 5.5.2")])
def test_scram_that_the_client_does_not_end(response: bytes, reply: bytes) -> None:
    """Who does not like our proof is not logged in."""
    machine = server()
    scram_until_last_words(machine)
    output, _ = talk(machine, response + b"\r\n")
    assert output.startswith(reply)
    assert machine.peer.identity is None
    assert say(machine, "MAIL FROM:<>", "RCPT TO:<b@example.org>")[1] == "550 5.7.1 Relaying denied"


def test_scram_for_nobody() -> None:
    """A user that does not exist sees what others see, and cannot be believed, not even by our caller's mistake."""
    machine = server()
    client = ScramClient("nobody", "pencil")
    machine.receive(b"AUTH SCRAM-SHA-256 " + encode(client.first()) + b"\r\n")
    machine.keys_found(None)
    final = client.final(decode(machine.output()[4:-2]))
    assert machine.receive(encode(final) + b"\r\n") == [Authenticate(ScramProof("nobody", "", False))]
    with pytest.raises(LocalProtocolError):
        machine.authenticated(TIM)
    machine.refused()
    assert machine.output() == b"535 5.7.8 Authentication credentials invalid\r\n"


def test_cancelled() -> None:
    """`*` ends the exchange (RFC 4954 4), and nothing of it is left."""
    machine = server()
    assert say(machine, "AUTH LOGIN", "dGlt", "*")[2] == "501 5.7.0 Authentication cancelled"
    assert say(machine, "AUTH LOGIN") == ["334 VXNlcm5hbWU6"]


def test_refused() -> None:
    """The caller decides what is said; 4xx is our own trouble and no failure of the client's."""
    machine = server(auth_failures=1)
    for _ in range(5):
        machine.receive(PLAIN.encode() + b"\r\n")
        machine.refused(Reply(454, "4.7.0", ("Temporary authentication failure",)))
        assert machine.output() == b"454 4.7.0 Temporary authentication failure\r\n"
    machine.receive(PLAIN.encode() + b"\r\n")
    assert machine.refused() == []
    assert machine.output() == b"535 5.7.8 Authentication credentials invalid\r\n"
    machine.receive(PLAIN.encode() + b"\r\n")
    assert machine.refused() == OVER
    assert machine.output() == b"421 4.7.0 Too many failed logins\r\n"


def test_refused_with_the_end() -> None:
    """421 ends the session."""
    machine = server()
    machine.receive(PLAIN.encode() + b"\r\n")
    assert machine.refused(Reply(421, "4.7.0", ("Go away",))) == OVER
    assert machine.output() == b"421 4.7.0 Go away\r\n"
    assert talk(machine, b"MAIL FROM:<>\r\n") == (b"", [])


def test_abuse() -> None:
    """A hundred exchanges, begun, broken and cancelled in every way, leave nothing behind (CVE-2011-1720)."""
    machine = server(auth_failures=10**6, errors=10**6, commands=10**6)
    for round_number in range(100):
        for name in ("PLAIN", "LOGIN", "SCRAM-SHA-256"):
            assert say(machine, f"AUTH {name}")[0].startswith("334")
            ending = ["*", "!!!", "", "A" * 12_300, "dGlt"][round_number % 5]
            replies = say(machine, ending)
            if machine.state == "paused":
                machine.refused()
                replies = [machine.output().decode()]
            if machine.state == "auth":
                replies = say(machine, "*")
            assert replies[0][:3] in ("500", "501", "535")
            assert machine.state == "ready"
    assert machine.peer.identity is None
    login(machine)
    deliver(machine)


def test_response_too_long() -> None:
    """A response above 12,288 octets is read to its end, in bounded memory, and refused (RFC 4954 4)."""
    machine = server()
    assert say(machine, "AUTH PLAIN") == ["334 "]
    for _ in range(50):
        assert talk(machine, b"A" * 1000) == (b"", [])
    assert len(machine._rest) < 20_000
    assert talk(machine, b"\r\n")[0] == b"500 5.5.6 Authentication exchange line is too long\r\n"
    assert say(machine, "AUTH PLAIN") == ["334 "]
    output, events = b"", []
    for _ in range(1100):
        output, events = talk(machine, b"A" * 1000)
        if events:
            break
    assert (output, events) == (b"421 4.7.0 Line too long\r\n", OVER)


@pytest.mark.parametrize(
    "data", [PLAIN.encode() + b"\r\nMAIL FROM:<>\r\n", b"AUTH LOGIN\r\ndGlt\r\n", b"AUTH PLAIN\r\n*\r\n"],
)
def test_input_behind_auth(data: bytes) -> None:
    """AUTH is the last of its group: what comes behind it was not written for what it leads to (RFC 4954 4)."""
    assert talk(server(), data) == (OUT_OF_TURN, OVER)


def test_bare_lf_in_a_response() -> None:
    """Lines end with CRLF here, too."""
    machine = server()
    say(machine, "AUTH PLAIN")
    output, events = talk(machine, b"AAAA\nMAIL FROM:<>")
    assert (output[:9], events) == (b"521 5.5.2", OVER)


def test_answers_out_of_place() -> None:
    """Answers to what was not asked are our bugs."""
    machine = server()
    for answer in (machine.refused, lambda: machine.keys_found(KEYS), lambda: machine.authenticated(TIM),
                   lambda: machine.tls_started(TLS), lambda: machine.answer(Reply(250, ""))):
        with pytest.raises(LocalProtocolError):
            answer()
    machine.receive(PLAIN.encode() + b"\r\n")
    for answer in (lambda: machine.keys_found(KEYS), lambda: machine.tls_started(TLS),
                   lambda: machine.answer(Reply(250, ""))):
        with pytest.raises(LocalProtocolError):
            answer()
    machine.authenticated(TIM)


def test_stop_while_somebody_logs_in() -> None:
    """A stop waits for the end of an exchange, and no mail follows it."""
    machine = server()
    machine.receive(PLAIN.encode() + b"\r\n")
    assert machine.stop(Reply(421, "4.3.2", ("Bye",))) == []
    assert machine.authenticated(TIM) == OVER
    assert machine.output() == b"235 2.7.0 Authentication successful\r\n421 4.3.2 Bye\r\n"


def test_auth_parameter() -> None:
    """MAIL AUTH= is checked and forgotten, where AUTH is offered (RFC 4954 5)."""
    machine = server()
    for parameter, reply in (
        ("AUTH=<>", "250"), ("AUTH=e+3Dmc2@example.com", "250"), ("AUTH=", "501 5.5.4"), ("AUTH=x", "501 5.5.4"),
        ("AUTH=a+0D+0Ab@example.com", "501 5.5.4"), ("AUTH=a=b", "501 5.5.4"), ("AUTH", "501 5.5.4"),
    ):  # fmt: skip
        assert say(machine, f"MAIL FROM:<a@example.com> {parameter}", "RSET")[0].startswith(reply), parameter
    assert say(server(TRUSTED), "MAIL FROM:<a@example.com> AUTH=<>")[0].startswith("555 5.5.4")


# -- STARTTLS -----------------------------------------------------------------------------------------------------


def test_starttls() -> None:
    """220, the handshake, and a new beginning; then it is not offered again (RFC 3207 4)."""
    machine = server(TRUSTED)
    assert talk(machine, b"starttls\r\n") == (b"220 2.0.0 Ready to start TLS\r\n", [StartTls()])
    assert machine.tls_started(TLS) == []
    assert machine.output() == b""
    assert machine.peer == Peer(TRUSTED.address, TRUSTED.port, TLS)
    assert machine.helo == ""
    assert say(machine, "MAIL FROM:<>", PLAIN) == ["503 5.5.1 Send EHLO or HELO first"] * 2
    assert "STARTTLS" not in offered(machine)
    assert say(machine, "STARTTLS")[0].startswith("503 5.5.1")
    login(machine)


@pytest.mark.parametrize("behind", [b"RSET\r\n", b"M", b"\r\n", b"EHLO x.example\r\nMAIL FROM:<>\r\n"])
def test_injection_behind_starttls(behind: bytes) -> None:
    """What comes with STARTTLS in the clear must not be taken as if it came under TLS (CVE-2011-0411)."""
    output, events = talk(server(TRUSTED), b"STARTTLS\r\n" + behind)
    assert (output, events) == (OUT_OF_TURN, OVER)


def test_input_while_tls_starts() -> None:
    """Nor what the caller gives us by mistake before TLS has started."""
    machine = server(TRUSTED)
    machine.receive(b"STARTTLS\r\n")
    machine.output()
    assert talk(machine, b"EHLO x.example\r\nMAIL FROM:<>\r\n") == (b"", [])
    assert machine.tls_started(TLS) == []
    assert (machine.output(), machine.state) == (b"", "start")


def test_tls_forgets_a_login() -> None:
    """All that the client said before is forgotten, a login in the clear as well (RFC 3207 4.2)."""
    machine = server(TRUSTED, auth_without_tls=True)
    login(machine)
    machine.receive(b"STARTTLS\r\n")
    machine.tls_started(TLS)
    assert machine.peer.identity is None


def test_certificate_as_login() -> None:
    """A certificate may be a login: with STARTTLS, or from the beginning."""
    identity = Identity("news", "certificate")
    machine = server(TRUSTED)
    machine.receive(b"STARTTLS\r\n")
    machine.output()
    machine.tls_started(TLS, identity)
    say(machine, "EHLO client.example")
    deliver(machine)
    assert say(machine, PLAIN)[0].startswith("503 5.5.1")
    deliver(server(Peer("192.0.2.1", 1, TLS, identity)))


@pytest.mark.parametrize(
    ("peer", "before", "line", "reply"),
    [
        (TRUSTED, [], "STARTTLS now", "501 5.5.4"),  # RFC 3207 4
        (TRUSTED, ["MAIL FROM:<>"], "STARTTLS", "503 5.5.1"),
        (ENCRYPTED, ["MAIL FROM:<>"], "STARTTLS", "502 5.5.1"),
    ],
)
def test_starttls_refused(peer: Peer, before: list[str], line: str, reply: str) -> None:
    """STARTTLS out of place."""
    machine = server(peer)
    say(machine, *before)
    assert say(machine, line)[0].startswith(reply)


def test_stop_while_tls_starts() -> None:
    """A session that was to end does so when the handshake is done."""
    machine = server(TRUSTED)
    machine.receive(b"STARTTLS\r\n")
    machine.output()
    assert machine.stop(Reply(421, "4.3.2", ("Bye",))) == []
    assert machine.tls_started(TLS) == OVER
    assert machine.output() == b"421 4.3.2 Bye\r\n"


# -- rights, XCLIENT ----------------------------------------------------------------------------------------------


def test_rights_are_looked_up_once_for_a_client() -> None:
    """Not with every message, and again when the client has become another."""
    permissions = UsersOnly()
    machine = server(permissions=permissions)
    for _ in range(3):
        say(machine, "MAIL FROM:<>", "RCPT TO:<b@example.org>", "RSET")
    assert permissions.asked == 1
    login(machine)
    assert permissions.asked == 1
    deliver(machine)
    deliver(machine)
    assert permissions.asked == 2


PROXY = Peer("192.0.2.1", 1, may_xclient=True)


@pytest.mark.parametrize(
    ("attributes", "peer"),
    [
        ("ADDR=198.51.100.1 PORT=25 NAME=x.example", Peer("198.51.100.1", 25, name="x.example", may_xclient=True)),
        ("addr=IPV6:2001:DB8::1", Peer("2001:db8::1", 1, may_xclient=True)),
        ("ADDR=::ffff:198.51.100.1", Peer("198.51.100.1", 1, may_xclient=True)),
        ("LOGIN=a+40b", Peer("192.0.2.1", 1, identity=Identity("a@b", "xclient"), may_xclient=True)),
        ("ADDR=[UNAVAILABLE] NAME=[TEMPUNAVAIL] PORT=[UNAVAILABLE]", Peer("0.0.0.0", 0, may_xclient=True)),
        ("PROTO=ESMTP DESTADDR=192.0.2.2 DESTPORT=25 HELO=x.example", PROXY),
    ],
)  # fmt: skip
def test_xclient(attributes: str, peer: Peer) -> None:
    """A trusted host says for whom it speaks, and the session begins anew (Postfix, XCLIENT_README)."""
    machine = server(PROXY)
    assert "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT" in offered(machine)
    output, events = talk(machine, f"XCLIENT {attributes}\r\n".encode())
    assert output == b"220 mx.example.net ESMTP\r\n"
    assert events == [PeerChanged(PROXY)]
    assert machine.peer == peer
    assert machine.state == "start"


@pytest.mark.parametrize(
    "attributes", ["", "ADDR", "ADDR=x", "ADDR=fe80::1%eth0", "PORT=0", "PORT=65536", "PORT=x", "NAME=a+0D+0Ab",
                   "NAME=<x>", "HELO=a b", "HELO=<x>", "FOO=x", "LOGIN=a+0Ab", "LOGIN=\xff", "=x"],
)  # fmt: skip
def test_bad_xclient(attributes: str) -> None:
    """An attribute that is wrong changes nothing."""
    machine = server(PROXY)
    assert say(machine, f"XCLIENT {attributes}")[0].startswith("501 5.5.4 XCLIENT: ")
    assert machine.peer == PROXY
    assert machine.state == "ready"


def test_clients_of_a_proxy_are_not_who_it_is_itself() -> None:
    """A host that has logged in to be trusted lends its login to nobody; one that it named stays until another is."""
    for via in ("certificate", "password", "scram"):
        machine = server(replace(PROXY, identity=Identity("proxy", via)))
        talk(machine, b"XCLIENT ADDR=198.51.100.1\r\n")
        assert machine.peer.identity is None
    machine = server(PROXY)
    talk(machine, b"XCLIENT LOGIN=acme\r\n")
    talk(machine, b"XCLIENT ADDR=198.51.100.1\r\n")
    assert machine.peer == replace(PROXY, address="198.51.100.1", identity=Identity("acme", "xclient"))
    talk(machine, b"XCLIENT LOGIN=[UNAVAILABLE]\r\n")
    assert machine.peer.identity is None


def test_xclient_refused() -> None:
    """Nobody else may, and not in a transaction."""
    assert say(server(TRUSTED), "XCLIENT ADDR=127.0.0.1") == ["550 5.7.0 Not authorized to use XCLIENT"]
    assert say(server(TRUSTED, hello=False), "XCLIENT ADDR=127.0.0.1")[0].startswith("550 5.7.0")
    assert say(server(PROXY), "MAIL FROM:<>", "XCLIENT ADDR=127.0.0.1")[1].startswith("503 5.5.1")
    assert talk(server(PROXY), b"XCLIENT ADDR=127.0.0.1\r\nEHLO x.example\r\n") == (OUT_OF_TURN, OVER)
