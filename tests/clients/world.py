"""A small world for clients: an MTA with a listener of every kind, an authority for its certificate, and receivers that
keep what arrives."""

from __future__ import annotations

import re
import shlex
import signal
import smtplib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mta.config.access import MECHANISMS
from mta.sandbox.client import Sandbox
from tests.clients.client import Call, Feature, Mechanism, Services, Way
from tests.inject.access_helpers import make_pki, make_users
from tests.integration.support import Mta

ROOT: Final = Path(__file__).parents[2]
HOST: Final = "localhost"
ALL: Final = list(MECHANISMS)
_PORT = re.compile(r"smtp 127\.0\.0\.1:(\d+)")


@dataclass(frozen=True, slots=True)
class Arrived:
    """What a receiver got."""

    content: bytes
    sender: str
    parameters: dict[str, str]  # of MAIL
    wishes: str  # parameters of RCPT


class World:
    """Use it as a context; everything in it ends with that."""

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="mta-")
        self.directory = Path(self._temporary.name)
        self.directory.chmod(0o755)  # Postfix and Exim give up root
        self.sandbox = Sandbox({"log": 500, "log_content": "1MB"})
        pki = make_pki(self.directory)
        self.ca_file = pki.ca_file
        users = make_users(self.directory / "users", acme="secret")
        self.socket = str(self.directory / "smtp.sock")
        self.mta = Mta(self.directory / "mta", self.sandbox.dns, self.sandbox.smtp_port, workers=1, listeners=[
            {"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.0/8"]},
            {"smtp": "127.0.0.1:0", "tls": "required", "auth": "required"},
            {"smtp": "127.0.0.1:0", "tls": "implicit", "auth": "required"},
            {"smtp": f"unix:{self.socket}", "mode": "0666"},
        ], certificates=[{"certificate": pki.make(HOST)}],
            access={"users_file": users, "mechanisms": ALL, "failure_delay": 0}, log="debug",
            pickup=[{"directory": str(self.directory / "pickup")}])
        self.mta.start()
        clear, starttls, implicit = map(int, _PORT.findall(next(line for line in self.mta.log if "ready:" in line)))
        self._ports: dict[Way, int] = {
            "in clear": clear, "STARTTLS": starttls, "implicit TLS": implicit, "Unix socket": 0, "sendmail": 0}
        self.sendmail = self.directory / "sendmail"
        self.sendmail.write_text(
            f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} MTA_CONFIG={self.mta.directory}/mta.yaml "
            f'exec {shlex.quote(sys.executable)} -m mta.sendmail "$@"\n')
        self.sendmail.chmod(0o755)
        self._calls = 0
        self.services = Services(self.directory)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.services.close()
        self.mta.__exit__()
        self.sandbox.stop()
        self._temporary.cleanup()

    def call(self, way: Way, mechanism: Mechanism | None = None, feature: Feature | None = None) -> Call:
        """What a client is to do, to a recipient of its own."""
        self._calls += 1
        self._offer([mechanism] if mechanism else ALL)
        utf8 = feature == "SMTPUTF8"
        return Call(way, HOST, self._ports[way], self.socket, str(self.sendmail), self.ca_file,
                    f"{'grün' if utf8 else 'u'}{self._calls}@d.test", "müller@x.test" if utf8 else "news@x.test",
                    feature=feature, mechanism=mechanism)

    def _offer(self, mechanisms: list[str]) -> None:
        """Have no other mechanisms offered to who comes from now on: what logs in then has used one of them."""
        if self.mta.config["access"]["mechanisms"] == mechanisms:
            return
        self.mta.config["access"]["mechanisms"] = mechanisms
        self.mta.write_config()
        assert self.mta.process is not None
        self.mta.process.send_signal(signal.SIGHUP)
        self.mta.wait_until(lambda: self._offered() == {*mechanisms}, f"an offer of {mechanisms}")

    def _offered(self) -> set[str]:
        with smtplib.SMTP_SSL("127.0.0.1", self._ports["implicit TLS"]) as client:
            client.ehlo()
            return set(client.esmtp_features["auth"].split())

    def arrived(self, recipient: str) -> Arrived:
        """What came for a recipient. Raises TimeoutError when nothing does."""
        found: list[dict[str, Any]] = []

        def is_there(stats: dict[str, Any]) -> bool:
            found[:] = [entry for entry in self.sandbox.log() if entry["recipients"] == [recipient]]
            return bool(found)

        try:
            self.sandbox.wait_for(is_there, 60)
        except TimeoutError:
            raise TimeoutError(f"nothing arrived for {recipient}; the log of the MTA ends with\n"
                               + "\n".join(self.mta.log[-5:])) from None
        entry = found[-1]
        return Arrived(entry["content"].encode("latin-1"), entry["sender"], entry["parameters"],
                       next(wishes for address, wishes, _ in entry["answers"] if address == recipient))
