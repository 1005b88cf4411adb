"""`mta send` against a small SMTP server."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mta.control import exits

MTA = Callable[..., Any]


class SmallServer:
    """Serves one session. `refuse` maps the beginning of a command to a reply; `commands` is what came.

    In lower case: Python's versions differ in how they write commands.
    """

    def __init__(self) -> None:
        self.refuse: dict[bytes, bytes] = {}
        self.commands: list[bytes] = []
        self.content = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # nobody came, or the client did not wait for the answer to QUIT
            client, _ = self._listener.accept()
            self._session(client)

    def _session(self, client: socket.socket) -> None:
        with client, client.makefile("rwb") as stream:
            self._reply(stream, b"220 small", b"greeting")
            while line := stream.readline():
                line = line.rstrip().lower()
                self.commands.append(line)
                verb = line[:4]
                if verb == b"data":
                    if self._reply(stream, b"354 go on", line):
                        self._read_content(stream)
                        self._reply(stream, b"250 2.0.0 queued as\tX\x07", b"dot")
                elif verb == b"ehlo":
                    self._reply(stream, b"250-small\r\n250-8BITMIME\r\n250 SMTPUTF8", line)
                else:
                    self._reply(stream, b"250 fine", line)

    def _read_content(self, stream: Any) -> None:
        while (line := stream.readline()) != b".\r\n":
            self.content += line

    def _reply(self, stream: Any, text: bytes, command: bytes) -> bool:
        refusal = next((reply for start, reply in self.refuse.items() if command.startswith(start)), None)
        stream.write((refusal or text) + b"\r\n")
        stream.flush()
        return refusal is None

    def close(self) -> None:
        """End."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # ends a thread that nobody connected to
        finally:
            self._listener.close()
            self._thread.join(60)


@pytest.fixture
def server() -> Iterator[SmallServer]:
    """A server for one session."""
    one = SmallServer()
    yield one
    one.close()


def test_a_file_is_sent(mta: MTA, server: SmallServer, tmp_path: Path) -> None:
    """LF becomes CRLF, dots are stuffed, 8-bit content is announced; the reply is printed, made harmless."""
    mail = tmp_path / "mail.eml"
    mail.write_bytes("Subject: grün\n\n.dot\n".encode())
    result = mta("send", "--server", server.address, "--from", "a@x", "--to", "b@y", "--to", "c@y", mail)
    assert (result.code, result.out) == (0, "250 2.0.0 queued as X\\x07\n")
    assert server.content == "Subject: grün\r\n\r\n..dot\r\n".encode()
    assert server.commands[1:4] == [b"mail from:<a@x> body=8bitmime", b"rcpt to:<b@y>", b"rcpt to:<c@y>"]


def test_standard_input_is_sent(mta: MTA, server: SmallServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without FILE; the null sender is ''."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Subject: x\r\n\r\nhello\r\n")))
    assert mta("send", "--server", server.address, "--from", "", "--to", "b@y").code == 0
    assert server.content == b"Subject: x\r\n\r\nhello\r\n"
    assert server.commands[1] == b"mail from:<>"


def test_a_message_is_made(mta: MTA, server: SmallServer) -> None:
    """From subject and text; addresses beyond ASCII are announced."""
    result = mta("send", "--server", server.address, "--from", "ü@x", "--to", "b@y", "--subject", "Hi", "--text", "you")
    assert result.code == 0
    assert b"Subject: Hi\r\n" in server.content
    assert server.content.endswith(b"\r\n\r\nyou\r\n")
    assert server.commands[1] == "mail from:<ü@x> body=8bitmime smtputf8".encode()


@pytest.mark.parametrize(
    ("refuse", "code", "text"),
    [
        ({b"mail": b"550 5.7.1 no"}, exits.DATA, "sender a@x refused: 550 5.7.1 no"),
        ({b"rcpt": b"450 4.2.0 later"}, exits.TEMPORARY, "recipient b@y refused: 450 4.2.0 later"),
        ({b"rcpt to:<b": b"550 5.1.1 no"}, exits.DATA, "recipient b@y refused: 550 5.1.1 no"),
        ({b"data": b"451 4.3.0 no"}, exits.TEMPORARY, "message refused: 451 4.3.0 no"),
        ({b"dot": b"554 5.6.0 bad"}, exits.DATA, "message refused: 554 5.6.0 bad"),
        ({b"greeting": b"421 4.3.2 busy"}, exits.TEMPORARY, "session refused: 421 4.3.2 busy"),
    ],
)
def test_refusals(mta: MTA, server: SmallServer, refuse: dict[bytes, bytes], code: int, text: str) -> None:
    """4xx is exit code 75, 5xx is 65; what was refused is said with the reply."""
    server.refuse = refuse
    arguments = ("send", "--server", server.address, "--from", "a@x", "--to", "b@y", "--to", "c@y", "--text", "t")
    result = mta(*arguments)
    assert (result.code, f"mta: {text}\n" in result.err) == (code, True), result.err
    assert ("250" in result.out) == (refuse.keys() == {b"rcpt to:<b"})  # the other recipient was accepted


def test_no_connection(mta: MTA, tmp_path: Path) -> None:
    """Exit code 69; the server of the configuration is the default."""
    config = tmp_path / "mta.yaml"
    with socket.socket() as deaf:  # it is bound, so that the port is nobody else's, and does not listen
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        config.write_text(f'hostname: mta.example.net\nlisteners: [{{smtp: "0.0.0.0:{port}"}}]\n')
        result = mta("send", "-c", config, "--from", "a@x", "--to", "b@y", "--text", "t")
    assert result.code == exits.UNAVAILABLE
    assert f"no session with 127.0.0.1:{port}" in result.err


def test_wrong_use(mta: MTA, tmp_path: Path) -> None:
    """Nothing to send, two things to send, a header that would be two, a server that is none."""
    (tmp_path / "empty").write_text("\n")
    envelope = ("send", "--server", "127.0.0.1:1", "--from", "a@x", "--to", "b@y")
    assert mta(*envelope, tmp_path / "empty").code == exits.NO_INPUT
    assert mta(*envelope, tmp_path / "nope").code == exits.NO_INPUT
    assert mta(*envelope, "--text", "t", tmp_path / "empty").code == exits.USAGE
    assert mta(*envelope, "--subject", "a\nBcc: evil@x").code == exits.USAGE
    assert mta("send", "--server", "here", "--from", "a@x", "--to", "b@y", "--text", "t").code == exits.USAGE
    assert mta("send", "--from", "a@x").code == exits.USAGE
