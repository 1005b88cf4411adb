"""Logins on sessions of a real process: mechanisms, guesses, another server that is asked, swaks."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import shutil
import smtplib
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.inject.access_helpers import CHEAP, Pki, configuration, make_pki, make_users
from tests.inject.submitting import RIGHT, TLS, WRONG, client, submission
from tests.inject.test_listener import CONTENT, Peer, Process, listening


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


def test_required_login(pki: Pki, users: str) -> None:
    """`auth: required` is for `relay_from`, too; `tls` and `auth` are two things."""
    listener = {"tls": "required", "auth": "required", "relay_from": ["127.0.0.0/8"]}
    with submission(pki, users, listener) as process, client(process, pki) as smtp:
        assert smtp.mail("a@x.example") == (530, b"5.7.0 Authentication required")
        assert smtp.docmd("AUTH", "PLAIN AGJvYgBww6Vzcw==")[0] == 235
        smtp.sendmail("a@x.example", ["b@example.org"], CONTENT)
        process.expect("message")


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
