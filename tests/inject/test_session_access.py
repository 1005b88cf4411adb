"""TLS, logins, load balancers and Unix sockets on sessions of a real process, with real clients."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import pwd
import shutil
import smtplib
import socket
import ssl
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.inject.access_helpers import CHEAP, Pki, configuration, make_pki, make_users
from tests.inject.test_listener import CONTENT, Peer, Process, listening

TLS = {"tls": "offered", "auth": "offered"}
RIGHT = "PLAIN AGFjbWUAc2VjcmV0"
WRONG = "PLAIN AGFjbWUAd3Jvbmc="


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority for all tests."""
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of users."""
    return make_users(tmp_path_factory.mktemp("users") / "users", acme="secret", bob="påss", certonly="")


@contextlib.contextmanager
def submission(pki: Pki, users: str, listener: dict[str, Any] | None = None, /, **options: Any) -> Iterator[Process]:
    """A listener with a certificate for mx.example.net; what it says on stderr is about refusals."""
    access = {"users_file": users, **options.pop("access", {})}
    options.setdefault("certificates", [{"certificate": pki.make("mx.example.net")}])
    with listening(config=configuration(TLS if listener is None else listener, access=access, **options)) as process:
        yield process


def client(process: Process, pki: Pki, certificate: str = "") -> smtplib.SMTP:
    """Connected, under TLS after STARTTLS, and greeted."""
    smtp = smtplib.SMTP("127.0.0.1", process.port, "client.example", 20)
    smtp._host = "mx.example.net"  # type: ignore[attr-defined]  # the name that the certificate has to have
    smtp.starttls(context=pki.context(certificate))
    smtp.ehlo()
    return smtp


def refusal(call: Any, *args: Any) -> tuple[int, bytes]:
    """The reply by which something is refused."""
    with pytest.raises((smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused)) as error:
        call(*args)
    if isinstance(error.value, smtplib.SMTPRecipientsRefused):
        return next(iter(error.value.recipients.values()))
    return error.value.smtp_code, error.value.smtp_error  # type: ignore[return-value]


def test_checks_of_user_and_listener(pki: Pki, users: str) -> None:
    """What a listener changes in `checks`, changed by the user; of one who did not log in, by the listener alone."""
    listener = {**TLS, "relay_from": "127.0.0.0/8", "checks": {"repeated": "warn", "missing_from": "warn"}}
    user = {"checks": {"repeated": "accept", "from_domains": "acme.example"}}
    with submission(pki, users, listener, users={"acme": user}) as process, client(process, pki) as smtp:
        smtp.sendmail("a@acme.example", ["b@example.org"], CONTENT)
        process.expect("message")
        process.tell("checks")
        assert process.expect("checks") == [["warn", "warn"]]
        smtp.login("acme", "secret")
        smtp.sendmail("a@acme.example", ["b@example.org"], CONTENT)
        process.expect("message")
        process.tell("checks")
        assert process.expect("checks") == [["accept", "warn", "acme.example"]]


def test_starttls_and_login(pki: Pki, users: str) -> None:
    """STARTTLS, then AUTH by each mechanism: what is sent is the user's, and the message is counted as ESMTPSA."""
    with submission(pki, users, users={"acme": {"labels": {"tenant": "acme"}}}) as process:
        for mechanism in ("PLAIN", "LOGIN"):
            with client(process, pki) as smtp:
                assert smtp.esmtp_features["auth"].split() == ["SCRAM-SHA-256", "PLAIN", "LOGIN"]
                smtp.user, smtp.password = "acme", "secret"
                code, _ = smtp.auth(mechanism, getattr(smtp, f"auth_{mechanism.lower()}"))
                assert code == 235
                smtp.sendmail("a@acme.example", ["b@example.org"], CONTENT * 10_000)
                assert process.expect("message")[3].endswith(" client.example as acme")
                process.tell("source")
                assert process.expect("source") == [True, True, "acme"]
        with client(process, pki) as smtp:
            wrong, nobody = smtp.docmd("AUTH", WRONG), smtp.docmd("AUTH", "PLAIN AG5vYm9keQBzZWNyZXQ=")
            assert wrong == nobody == (535, b"5.7.8 Authentication credentials invalid")
        assert b"login of acme from [127.0.0.1] refused: wrong password" in process.complaint()
        assert b"login of nobody from [127.0.0.1] refused: no such user" in process.complaint()
    assert b"secret" not in process.errors


def scram(smtp: smtplib.SMTP, user: str, password: str, *, plus: bool) -> tuple[int, bytes]:
    """A login by SCRAM-SHA-256, as RFC 5802 and 7677 tell a client to do it."""
    def text(raw: bytes) -> str:
        return base64.b64encode(raw).decode()

    header, bound = b"n,,", b""
    if plus:
        assert isinstance(smtp.sock, ssl.SSLSocket)
        certificate = smtp.sock.getpeercert(binary_form=True)
        header, bound = b"p=tls-server-end-point,,", hashlib.sha256(certificate or b"").digest()
    first = f"n={user},r=rOprNGfwEbeRWgbNEkqO".encode()
    code, challenge = smtp.docmd("AUTH", f"SCRAM-SHA-256{'-PLUS' if plus else ''} {text(header + first)}")
    assert code == 334, challenge
    server_first = base64.b64decode(challenge)
    nonce, salt, iterations = (part[2:] for part in server_first.split(b","))
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(salt), int(iterations))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    unproved = b"c=" + base64.b64encode(header + bound) + b",r=" + nonce
    signed = b",".join((first, server_first, unproved))
    signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    code, answer = smtp.docmd(text(unproved + b",p=" + base64.b64encode(proof)))
    if code != 334:
        return code, answer
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    assert base64.b64decode(answer) == b"v=" + base64.b64encode(hmac.digest(server_key, signed, "sha256"))
    return smtp.docmd("")


@pytest.mark.parametrize("plus", [False, True])
def test_scram(pki: Pki, users: str, plus: bool) -> None:
    """SCRAM knows the right password, and the server proves that it has the keys; PLUS binds to the certificate. Of
    nobody it shows the same salt each time, also of another process."""
    salts = set()
    offered = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"] if plus else ["SCRAM-SHA-256"]
    for _ in range(2):
        with submission(pki, users, access={"mechanisms": offered}) as process:
            salts.add(_salt(process, pki))
            with client(process, pki) as smtp:
                assert scram(smtp, "acme", "wrong", plus=plus)[0] == 535
                assert scram(smtp, "nobody", "secret", plus=plus)[0] == 535
            with client(process, pki) as smtp:
                assert scram(smtp, "acme", "secret", plus=plus)[0] == 235
                smtp.sendmail("a@x.example", ["b@example.org"], CONTENT)
                assert process.expect("message")[3].endswith(" as acme")
    assert len(salts) == 1


def _salt(process: Process, pki: Pki) -> bytes:
    """What SCRAM shows of a user who does not exist."""
    with client(process, pki) as smtp:
        code, challenge = smtp.docmd("AUTH", "SCRAM-SHA-256 " + base64.b64encode(b"n,,n=nobody,r=abc").decode())
        assert (code, smtp.docmd("*")[0]) == (334, 501)
        return base64.b64decode(challenge).split(b",")[1]


def test_scram_for_nobody_looks_like_scram_for_somebody(tmp_path: Path) -> None:
    """Who asks cannot find out who is a user, also of users that have brought keys with them."""
    keys = base64.b64encode(b"k" * 32).decode()
    path = tmp_path / "users"
    path.write_text(f"acme::SCRAM-SHA-256$4567:{base64.b64encode(b's' * 12).decode()}${keys}:{keys}\n")
    path.chmod(0o600)
    config = configuration({"auth": "offered", "auth_without_tls": True}, access={"users_file": str(path)})
    with listening(config=config) as process:
        for user in (b"acme", b"nobody"):
            with Peer(process) as peer:
                first = base64.b64encode(b"n,,n=" + user + b",r=abc").decode()
                code, _, text = peer.say(f"AUTH SCRAM-SHA-256 {first}").partition(" ")
                nonce, salt, iterations = base64.b64decode(text).split(b",")
                assert (code, nonce[:5], iterations) == ("334", b"r=abc", b"i=4567")
                assert len(base64.b64decode(salt[2:])) == 12
                assert peer.say("*").startswith("501 5.7.0")


def test_not_before_tls(pki: Pki, users: str) -> None:
    """Without TLS no login is offered, and who is not in `relay_from` is told at MAIL that it has to log in."""
    with submission(pki, users) as process, Peer(process, greet=False) as peer:
        peer.reply()
        assert "AUTH" not in (offers := peer.say("EHLO client.example"))
        assert "250-STARTTLS" in offers
        assert peer.say("MAIL FROM:<a@example.com>").startswith("530 5.7.0 Authentication required")
        assert peer.say("AUTH PLAIN AGFjbWUAc2VjcmV0")[:4] in ("502 ", "538 ", "503 ", "500 ")
        assert peer.say("STARTTLS now").startswith("501 5.5.4")


def test_required_tls(pki: Pki, users: str) -> None:
    """`tls: required` takes nothing in clear, not even from `relay_from`."""
    listener = {"tls": "required", "relay_from": ["127.0.0.0/8"]}
    with submission(pki, users, listener) as process:
        with Peer(process) as peer:
            assert peer.say("MAIL FROM:<a@example.com>").startswith("530 5.7.0 Must issue a STARTTLS")
        with client(process, pki) as smtp:
            smtp.sendmail("a@example.com", ["b@example.org"], CONTENT)
            process.expect("message")


def test_required_login(pki: Pki, users: str) -> None:
    """`auth: required` is for `relay_from`, too; `tls` and `auth` are two things."""
    listener = {"tls": "required", "auth": "required", "relay_from": ["127.0.0.0/8"]}
    with submission(pki, users, listener) as process, client(process, pki) as smtp:
        assert smtp.mail("a@x.example") == (530, b"5.7.0 Authentication required")
        assert smtp.docmd("AUTH", "PLAIN AGJvYgBww6Vzcw==")[0] == 235
        smtp.sendmail("a@x.example", ["b@example.org"], CONTENT)
        process.expect("message")


def test_implicit_tls(pki: Pki, users: str) -> None:
    """TLS from the first byte, with logins and without STARTTLS. Who speaks in clear gets no words of ours."""
    with submission(pki, users, {"tls": "implicit", "auth": "required"}) as process:
        with smtplib.SMTP_SSL("127.0.0.1", process.port, "c.example", timeout=20, context=unnamed(pki)) as smtp:
            smtp.ehlo()
            assert "starttls" not in smtp.esmtp_features
            smtp.login("acme", "secret")
            smtp.sendmail("a@x.example", ["b@example.org"], CONTENT * 30_000)
            process.expect("message")
        with socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock:
            sock.sendall(b"EHLO client.example\r\n")
            data = b"".join(iter(lambda: sock.recv(1000), b""))
            assert b"220" not in data


def unnamed(pki: Pki) -> ssl.SSLContext:
    """A context for a server that is known by its address."""
    context = pki.context()
    context.check_hostname = False
    return context


def test_what_stands_behind_starttls_is_not_obeyed(pki: Pki, users: str) -> None:
    """Commands in the same packet as STARTTLS would be run as if they had come under TLS (CVE-2011-0411)."""
    with submission(pki, users) as process, Peer(process) as peer:
        reply = peer.say("STARTTLS", "RSET", "NOOP")
        assert reply.startswith("554")
        assert peer.ended()


def test_a_handshake_has_its_time(pki: Pki, users: str) -> None:
    """Who says nothing, or drips, in the place of a handshake is cut off."""
    smtp = {"timeouts": {"handshake": "200ms"}}
    for tls in ("implicit", "offered"):
        with submission(pki, users, {"tls": tls, "auth": "required"}, smtp=smtp) as process:
            sock = socket.create_connection(("127.0.0.1", process.port), timeout=20)
            with sock:
                if tls == "offered":
                    sock.recv(1000)
                    sock.sendall(b"EHLO x.example\r\n")
                    sock.recv(1000)
                    sock.sendall(b"STARTTLS\r\n")
                    assert sock.recv(1000).startswith(b"220 2.0.0")
                sock.sendall(b"\x16\x03\x01")
                assert sock.recv(1000) == b""


def test_who_has_shut_its_side_of_tls_is_answered(pki: Pki, users: str) -> None:
    """A client that says that no more will come (close_notify) right behind its message hears what became of it."""
    with submission(pki, users, {"tls": "implicit", "relay_from": "127.0.0.0/8"}) as process, \
            socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = pki.context().wrap_bio(incoming, outgoing, server_hostname="mx.example.net")

        def until(call: Any) -> Any:
            while True:
                try:
                    return call()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(65_536) or pytest.fail("the connection is closed"))

        def say(*lines: bytes) -> bytes:
            tls.write(b"".join(line + b"\r\n" for line in lines))
            return until(lambda: tls.read(1000))  # type: ignore[no-any-return]

        until(tls.do_handshake)
        assert until(lambda: tls.read(1000)).startswith(b"220")
        assert say(b"EHLO client.example").startswith(b"250")
        assert say(b"MAIL FROM:<hold@example.com>", b"RCPT TO:<b@example.org>", b"DATA").endswith(b"<CR><LF>\r\n")
        tls.write(b"Subject: x\r\n\r\n.\r\n")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.unwrap()
        sock.sendall(outgoing.read())
        process.expect("message")
        process.tell("release")
        assert until(lambda: tls.read(1000)).startswith(b"250 2.0.0")


def test_what_ends_the_handshake_may_wait(pki: Pki, users: str) -> None:
    """The last of a handshake may be more than the client takes at once: it is sent before anything is read."""
    names = [f"host{number}.department-of-long-names.example" for number in range(600)]
    certificate = pki.make(*names, file="long")  # which comes back in the session ticket
    listener = {"tls": "implicit", "auth": "offered", "client_ca": pki.ca_file}
    with listening(config=configuration(listener, certificates=[{"certificate": pki.make("mx.example.net")}]),
                   sndbuf=4096) as process:
        smtp = smtplib.SMTP_SSL(context=pki.context(certificate), timeout=20)
        smtp._host = "mx.example.net"  # type: ignore[attr-defined]
        assert smtp.connect("127.0.0.1", process.port)[0] == 220
        assert smtp.ehlo()[0] == 250
        smtp.quit()


def test_a_reload_reads_only_what_has_changed(pki: Pki, users: str) -> None:
    """With the same files the contexts stay, and so do their session tickets; with others they are new."""
    path = pki.make("mx.example.net", file="reloaded")
    options: dict[str, Any] = {"certificates": [{"certificate": path}], "access": {"users_file": users}}
    with submission(pki, users, certificates=options["certificates"]) as process:
        context = pki.context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # which has the ticket in the handshake

        def connect(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
            with Peer(process) as peer:
                assert peer.say("STARTTLS").startswith("220")
                with context.wrap_socket(peer.sock, server_hostname="mx.example.net", session=session) as sock:
                    return sock.session, bool(sock.session_reused)

        session, _ = connect(None)
        process.tell("config " + json.dumps(configuration(TLS, **options)))
        process.expect("ok")
        assert connect(session)[1]
        pki.make("mx.example.net", file="reloaded")
        process.tell("config " + json.dumps(configuration(TLS, **options)))
        process.expect("ok")
        process.tell("refresh")
        process.expect("ok")
        assert not connect(session)[1]


@pytest.mark.parametrize("broken", ["users", "certificate"])
def test_a_worker_that_is_started_again_waits_for_what_is_broken(pki: Pki, tmp_path: Path, broken: str) -> None:
    """Files that were spoilt since the start keep no worker from coming back, as mail waits for it; its listeners leave
    connections to others until the files can be used."""
    users = Path(make_users(tmp_path / "users", acme="secret"))
    certificate = Path(pki.make("mx.example.net", file="again"))
    spoilt = {"users": users, "certificate": certificate}[broken]
    good = spoilt.read_bytes()
    spoilt.write_bytes(b"a:nonsense\n")
    config = configuration(TLS, access={"users_file": str(users)}, certificates=[{"certificate": str(certificate)}])
    with listening(config=config, lenient=True) as process:
        assert b"cannot be used" in process.complaint()
        with Peer(process, greet=False) as peer:
            process.tell("sessions")
            assert process.expect("sessions") == [0]
            spoilt.write_bytes(good)
            process.tell("refresh")
            process.expect("ok")
            assert peer.reply().startswith("220")
        with client(process, pki) as smtp:
            assert smtp.docmd("AUTH", RIGHT)[0] == 235


def test_a_session_keeps_its_certificates(pki: Pki, users: str) -> None:
    """TLS goes on being there for who was offered it, when a reload has taken it away."""
    with submission(pki, users) as process:
        smtp = smtplib.SMTP("127.0.0.1", process.port, "client.example", 20)
        smtp.ehlo()
        process.tell("config " + json.dumps(configuration({"tls": "off"})))
        process.expect("ok")
        smtp._host = "mx.example.net"  # type: ignore[attr-defined]
        assert smtp.starttls(context=pki.context())[0] == 220
        assert smtp.ehlo()[0] == 250
        smtp.quit()


def test_old_versions_are_refused(pki: Pki, users: str) -> None:
    """TLS 1.1 is no more (RFC 8996); 1.2 and 1.3 are, with forward secrecy."""
    with submission(pki, users, {"tls": "implicit", "auth": "required"}) as process:
        for version, expected in (("tls1_1", False), ("tls1_2", True), ("tls1_3", True)):
            done = subprocess.run(
                ["openssl", "s_client", "-connect", f"127.0.0.1:{process.port}", f"-{version}", "-cipher",
                 "ALL:@SECLEVEL=0", "-quiet"],
                input=b"QUIT\r\n", capture_output=True, timeout=30, check=False)
            assert (b"220 mx.example.net" in done.stdout) is expected, (version, done.stderr)
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{process.port}", "-tls1_2", "-cipher", "AES128-SHA"],
            input=b"", capture_output=True, timeout=30, check=False)
        assert b"handshake failure" in done.stderr


def test_several_certificates(pki: Pki, users: str) -> None:
    """A client is shown the certificate with the name it asks for, else that of the listener's name."""
    certificates = [{"certificate": pki.make(*names)} for names in (
        ("first.example",), ("mx.example.net",), ("*.wild.example", "wild.example"))]
    with submission(pki, users, {"tls": "implicit", "auth": "required"}, certificates=certificates) as process:
        for asked, shown in (("first.example", "first.example"), ("FIRST.example", "first.example"),
                             ("a.wild.example", "*.wild.example"), ("a.b.wild.example", "mx.example.net"),
                             ("other.example", "mx.example.net"), (None, "mx.example.net")):
            with socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock:
                tls = unnamed(pki).wrap_socket(sock, server_hostname=asked)
                assert shown in [name for _, name in tls.getpeercert()["subjectAltName"]], asked  # type: ignore[index]
                tls.close()


def test_new_certificates(pki: Pki, users: str) -> None:
    """A certificate that was renewed is shown without a restart; one that is broken is told, and the old one stays."""
    path = pki.make("mx.example.net", file="renewed")

    def serial(process: Process) -> str:
        with socket.create_connection(("127.0.0.1", process.port), timeout=20) as sock, \
                unnamed(pki).wrap_socket(sock) as tls:
            return str(tls.getpeercert()["serialNumber"])  # type: ignore[index]

    shown = [{"certificate": path}]
    with submission(pki, users, {"tls": "implicit", "auth": "required"}, certificates=shown) as process:
        first = serial(process)
        Path(path).write_text("nonsense")
        process.tell("refresh")
        process.expect("ok")
        assert b"a changed certificate cannot be used" in process.complaint()
        assert serial(process) == first
        pki.make("mx.example.net", file="renewed")
        process.tell("refresh")
        process.expect("ok")
        assert serial(process) != first


def test_client_certificates(pki: Pki, users: str) -> None:
    """A verified certificate whose name is a user is a login; another one is none, and no certificate is no error."""
    listener = {"tls": "required", "auth": "required", "client_ca": pki.ca_file}
    with submission(pki, users, listener) as process:
        with client(process, pki, pki.make("certonly")) as smtp:
            smtp.sendmail("a@x.example", ["b@example.org"], CONTENT)
            assert process.expect("message")[3].endswith(" as certonly")
        other = make_pki(pki.directory / "..")
        for certificate in ("", pki.make("stranger.example")):
            with client(process, pki, certificate) as smtp:
                assert smtp.mail("a@x.example")[0] == 530
        forged = other.make("certonly", file="forged")
        with pytest.raises((smtplib.SMTPException, OSError)), client(process, pki, forged) as smtp:
            smtp.mail("a@x.example")


def test_users_change(pki: Pki, users: str, tmp_path: Path) -> None:
    """Who is removed from the file can send nothing more, also in a session that has begun; who is new can log in."""
    path = make_users(tmp_path / "users", old="secret")
    with submission(pki, path) as process, client(process, pki) as smtp:
        smtp.login("old", "secret")
        smtp.sendmail("a@x.example", ["b@example.org"], CONTENT)
        process.expect("message")
        Path(path).write_text(f"new:{CHEAP.hash('secret')}\n")
        process.tell("refresh")
        process.expect("ok")
        with client(process, pki) as other:
            while True:  # the file is read in a thread
                with contextlib.suppress(smtplib.SMTPAuthenticationError):
                    other.login("new", "secret")
                    break
        code, text = smtp.mail("a@x.example")
        assert (code, text[:5]) == (530, b"5.7.0")


def test_senders_of_a_user(pki: Pki, users: str) -> None:
    """A user sends in its own names alone; the null sender is everybody's."""
    rights = {"acme": {"senders": ["acme.example", "*.sub.example", "News@other.example"]}}
    with submission(pki, users, users=rights) as process, client(process, pki) as smtp:
        smtp.login("acme", "secret")
        for sender, allowed in (
            ("x@acme.example", True), ("x@ACME.example", True), ("", True), ("x@a.b.sub.example", True),
            ("news@other.example", True), ('"news"@other.example', True),
            ("x@sub.example", False), ("x@evil.acme.example", False), ("x@acme.example.evil.example", False),
            ("x@other.example", False),
            ('"x@acme.example"@evil.example', False), ("x%acme.example@evil.example", False),
        ):
            code, text = smtp.mail(sender)
            assert (code, text[:5]) == ((250, b"2.1.0") if allowed else (550, b"5.7.1")), sender
            smtp.rset()


def test_limits_of_a_user(pki: Pki, users: str) -> None:
    """Messages, recipients, size and sessions have their limits; what is refused does not count."""
    limits = {"messages": "3/h", "recipients": "4/d", "message_size": "1KB", "sessions": 1}
    with submission(pki, users, users={"acme": {"limits": limits}}) as process, client(process, pki) as smtp:
        smtp.login("acme", "secret")
        with client(process, pki) as other:
            assert other.docmd("AUTH", RIGHT) == (421, b"4.7.0 Too many sessions of this user")
        assert refusal(smtp.sendmail, "a@x.example", ["b@example.org"], CONTENT * 100)[0] == 552
        to = [f"{name}@example.org" for name in "abcde"]
        assert refusal(smtp.sendmail, "a@x.example", to, CONTENT) == (
            452, b"4.7.1 Limit of 4 recipients in 1d of user acme is reached")
        assert refusal(smtp.sendmail, "refuse@x.example", to[:1], CONTENT)[0] == 554
        process.expect("message")
        assert refusal(smtp.sendmail, "fail@x.example", to[:1], CONTENT)[0] == 451
        process.expect("message")
        while b"RuntimeError" not in process.complaint():
            pass
        for _ in range(3):
            smtp.sendmail("a@x.example", to[:1], CONTENT)
            process.expect("message")
        assert refusal(smtp.sendmail, "a@x.example", to[:1], CONTENT) == (
            452, b"4.7.1 Limit of 3 messages in 1h of user acme is reached")


def test_the_size_of_a_listener_is_announced() -> None:
    """EHLO says what holds, so a client is told at MAIL, before it has sent all of it; a reload says another one."""
    with listening(config=configuration({"relay_from": ["127.0.0.0/8"], "limits": {"message_size": "2KB"}})) as process:
        with Peer(process, greet=False) as peer:
            peer.reply()
            assert "\n250-SIZE 2000\n" in peer.say("EHLO c.example")
            assert peer.say("MAIL FROM:<a@b.example> SIZE=2001").startswith("552 5.3.4")
            peer.begin()
            assert peer.say("x" * 900, "x" * 900, "x" * 900, ".").startswith("552 5.3.4")
            peer.begin()
            assert peer.say("x" * 900, ".").startswith("250")
            process.expect("message")
        process.tell("config " + json.dumps(configuration({"relay_from": ["127.0.0.0/8"]})))
        process.expect("ok")
        with Peer(process, greet=False) as peer:
            peer.reply()
            assert "\n250-SIZE 50000000\n" in peer.say("EHLO c.example")


def test_sessions_of_a_listener_are_counted_out_as_they_were_counted_in() -> None:
    """A limit that a reload takes away and brings back counts the sessions that there are."""
    limited = {"relay_from": ["127.0.0.0/8"], "limits": {"sessions": 1}}
    unlimited = {"relay_from": ["127.0.0.0/8"]}
    with listening(config=configuration(limited)) as process:
        def reload(listener: dict[str, Any]) -> None:
            process.tell("config " + json.dumps(configuration(listener)))
            process.expect("ok")

        def wait_for(sessions: int) -> None:
            process.tell("sessions")
            while process.expect("sessions") != [sessions]:
                process.tell("sessions")

        def is_full() -> bool:
            with Peer(process, greet=False) as peer:
                return peer.reply() == "421 4.7.0 Too many sessions of this listener"

        with Peer(process):
            assert is_full()
            reload(unlimited)
            with Peer(process):
                reload(limited)
                assert is_full()
            wait_for(1)
            assert is_full()
            reload(unlimited)
        wait_for(0)
        reload(limited)
        with Peer(process):
            assert is_full()


def test_guessing_is_slow_and_ends(pki: Pki, users: str) -> None:
    """Failed logins end the session, and then nothing more is asked from that address, however right it is."""
    with submission(pki, users, access={"failures": 4}) as process:
        for _ in range(2):
            with contextlib.suppress(smtplib.SMTPServerDisconnected), client(process, pki) as smtp:
                for _ in range(3):
                    smtp.docmd("AUTH", WRONG)
        with client(process, pki) as smtp:
            assert smtp.docmd("AUTH", RIGHT) == (421, b"4.7.0 Too many failed logins, try again later")


def test_a_disabled_user_and_one_from_elsewhere(pki: Pki, users: str) -> None:
    """The right password is not enough."""
    rights = {"acme": {"enabled": False}, "bob": {"networks": ["192.0.2.0/24"]}}
    with submission(pki, users, users=rights) as process, client(process, pki) as smtp:
        assert smtp.docmd("AUTH", RIGHT)[0] == 535
        assert smtp.docmd("AUTH", "PLAIN AGJvYgBww6Vzcw==")[0] == 535
        assert b"login of acme from [127.0.0.1] refused: the user is not enabled" in process.complaint()
        assert b"login of bob from [127.0.0.1] refused: not from this address" in process.complaint()


# --- who the client is ----------------------------------------------------------------------------------------------


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
        smtp._host = "mx.example.net"  # type: ignore[attr-defined]
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


# --- programs that people use ---------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("swaks") is None, reason="swaks is not installed")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_swaks(pki: Pki, users: str, mechanism: str) -> None:
    """swaks logs in over STARTTLS and over implicit TLS."""
    for tls, option in (("required", "--tls"), ("implicit", "--tls-on-connect")):
        with submission(pki, users, {"tls": tls, "auth": "required"}) as process:
            done = subprocess.run(
                ["swaks", "--server", f"127.0.0.1:{process.port}", option, "--auth", mechanism, "--auth-user", "acme",
                 "--auth-password", "secret", "--from", "a@x.example", "--to", "b@example.org"],
                capture_output=True, timeout=60, check=False, env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"})
            assert done.returncode == 0, done.stdout
            process.expect("message")


def test_login_by_http(pki: Pki, users: str) -> None:
    """Users who are not in the file are asked about elsewhere; no answer is no refusal, but come again."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/smtp"
        with submission(pki, users, access={"check_url": url}) as process, client(process, pki) as smtp:
            assert smtp.esmtp_features["auth"].split() == ["PLAIN", "LOGIN"]
            for status, expected in ((b"401 No", 535), (b"500 Oops", 454), (b"302 Found", 454), (b"200 OK", 235)):
                smtp.putcmd("AUTH", "PLAIN AHdlYgBzZWNyZXQ=")
                connection, _ = server.accept()
                with connection:
                    request = connection.recv(65_536)
                    while not request.endswith(b"}"):
                        request += connection.recv(65_536)
                    head = b"\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n"
                    connection.sendall(b"HTTP/1.1 " + status + head)
                assert smtp.getreply()[0] == expected
                asked = json.loads(request.partition(b"\r\n\r\n")[2])
                assert asked == {"user": "web", "password": "secret", "client": "127.0.0.1",
                                 "listener": f"127.0.0.1:{process.port}"}
            with client(process, pki) as guesser:
                guesser.putcmd("AUTH", "PLAIN AHdlYgBndWVzcw==")
                say_status(server, b"401 No")
                assert guesser.getreply()[0] == 535
            smtp.sendmail("a@x.example", ["b@example.org"], CONTENT)  # whoever else tries
            process.expect("message")


def test_a_certificate_is_no_login_of_a_user_elsewhere(pki: Pki, users: str) -> None:
    """Only of those in the file: whether it is one must not depend on who has logged in before, and at which worker."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/smtp"
        listener = {**TLS, "client_ca": pki.ca_file}
        with submission(pki, users, listener, access={"check_url": url}) as process:
            with client(process, pki) as smtp:
                smtp.putcmd("AUTH", "PLAIN AHdlYgBzZWNyZXQ=")
                say_status(server, b"200 OK")
                assert smtp.getreply()[0] == 235
            with client(process, pki, pki.make("web")) as smtp:
                assert smtp.mail("a@x.example")[0] == 530


def say_status(server: socket.socket, status: bytes) -> None:
    """Answer the next request."""
    connection, _ = server.accept()
    with connection:
        request = b""
        while not request.endswith(b"}"):
            request += connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")


def test_login_by_https(pki: Pki, users: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other server has to show a certificate that this system believes."""
    monkeypatch.setenv("SSL_CERT_FILE", pki.ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.make("127.0.0.1"))
    forged = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    forged.load_cert_chain(make_pki(pki.directory / "..").make("127.0.0.1", file="forged-server"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}/smtp"
        with submission(pki, users, access={"check_url": url}) as process, client(process, pki) as smtp:
            smtp.putcmd("AUTH", "PLAIN AHdlYgBzZWNyZXQ=")
            with pytest.raises(ssl.SSLError), forged.wrap_socket(server.accept()[0], server_side=True) as connection:
                connection.recv(65_536)
            assert smtp.getreply()[0] == 454
            smtp.putcmd("AUTH", "PLAIN AHdlYgBzZWNyZXQ=")
            with context.wrap_socket(server.accept()[0], server_side=True) as connection:
                while not connection.recv(65_536).endswith(b"}"):
                    pass
                connection.sendall(b"HTTP/1.1 204 Yes\r\n\r\n")
                assert smtp.getreply()[0] == 235


def test_guesses_at_the_same_time_are_no_way_around(pki: Pki, users: str) -> None:
    """Logins that were begun before the address was closed are refused like those after it, however right they are."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
        access = {"check_url": f"http://127.0.0.1:{server.getsockname()[1]}/smtp", "failures": 2}
        process = stack.enter_context(submission(pki, users, access=access))
        guessers = [stack.enter_context(client(process, pki)) for _ in range(4)]
        asked = []
        for guesser in guessers:
            guesser.putcmd("AUTH", "PLAIN AHdlYgBzZWNyZXQ=")
            asked.append(stack.enter_context(server.accept()[0]))
        codes = []
        for guesser, connection, status in zip(guessers, asked, (b"401", b"401", b"200", b"401"), strict=True):
            connection.sendall(b"HTTP/1.1 " + status + b" x\r\nContent-Length: 0\r\n\r\n")
            codes.append(guesser.getreply()[0])
        assert codes == [535, 535, 421, 421]
