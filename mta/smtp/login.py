"""One login under way in a session: the exchange of a mechanism, from the command to the client's last response."""

from __future__ import annotations

from mta.smtp import sasl
from mta.smtp.extensions import Offers
from mta.smtp.peer import Identity, Peer
from mta.smtp.settings import ServerSettings


class Login:
    """An exchange. It is forgotten as a whole, so nothing of it gets into another one (CVE-2011-1720)."""

    __slots__ = ("_granted", "_mechanism", "waiting_for")

    def __init__(self, mechanism: sasl.Mechanism) -> None:
        self._mechanism = mechanism
        self._granted: Identity | None = None  # whom it made the client, once that has heard our last words
        self.waiting_for: sasl.Attempt | None = None  # what somebody else is to decide

    @property
    def first_challenge(self) -> bytes:
        """What asks for the first response."""
        return self._mechanism.first_challenge

    @property
    def can_be_good(self) -> bool:
        """Whether the attempt that waits may be believed."""
        attempt = self.waiting_for
        return isinstance(attempt, sasl.PasswordAttempt) or (isinstance(attempt, sasl.ScramProof) and attempt.valid)

    def respond(self, line: bytes) -> bytes | sasl.Attempt | Identity:
        """Take a response as it came: the next challenge, an attempt that somebody has to decide, or, when it is over,
        who the client is. Raises MalformedResponseError."""
        response = sasl.decode(line)
        if self._granted is not None:  # it had to acknowledge our last words, no more
            if response:
                raise sasl.MalformedResponseError("it should be empty")
            return self._granted
        answer = self._mechanism.respond(response)
        if not isinstance(answer, bytes):
            self.waiting_for = answer
        return answer

    def found(self, keys: sasl.ScramKeys | None) -> bytes:
        """The challenge for the user of a `ScramAttempt`; None: there is no such user."""
        assert isinstance(self._mechanism, sasl.Scram)
        self.waiting_for = None
        return self._mechanism.found(keys)

    def grant(self, identity: Identity) -> bytes:
        """The attempt is good. The last challenge; empty when there is none, and all is said."""
        self.waiting_for = None
        self._granted = identity
        return self._mechanism.last_words


def begin(name: str, offers: Offers, peer: Peer, settings: ServerSettings) -> Login | None:
    """A login by the mechanism of this name, in upper case; None when that is not offered."""
    if name not in offers.mechanisms:
        return None
    if name == "PLAIN":
        return Login(sasl.Plain())
    if name == "LOGIN":
        return Login(sasl.Login())
    return Login(sasl.Scram(
        peer.tls.bindings if peer.tls is not None else {},
        plus=name.endswith("-PLUS"), plus_offered="SCRAM-SHA-256-PLUS" in offers.mechanisms,
        fake_salt_key=settings.fake_salt_key, iterations=settings.scram_iterations,
    ))  # fmt: skip
