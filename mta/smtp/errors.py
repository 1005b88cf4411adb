"""What can go wrong with the protocol, split by who broke it: we or the peer."""

from __future__ import annotations


class ProtocolError(Exception):
    """Somebody broke the rules of SMTP. Raised only as one of the two below."""


class LocalProtocolError(ProtocolError):
    """We asked a machine for something that its state does not allow: a bug of ours."""


class RemoteProtocolError(ProtocolError):
    """The peer said what is not SMTP, or what cannot be said now. Drop the connection, never resynchronise.

    A reply that is read one place off its command turns a refusal into a success, and mail is lost; so there is no
    attempt to find the place where sense begins again (Postfix, smtp_chat.c, learnt that the hard way).
    """
