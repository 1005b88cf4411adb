"""What a refusal means: the classes of replies, and what each says about whom to blame.

Three decisions matter more than the names: is the recipient at fault (then no message may go there again), only this
delivery, or do we send in a way that the receiver does not want (then slow down, stop, or tell somebody)?
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Decision: TypeAlias = Literal["suppress", "retry", "slow"]

DECISIONS: dict[Decision, str] = {
    "suppress": "the recipient is at fault: once the mail has failed for good, send nothing there again",
    "retry": "only this delivery: it waits or fails by its reply code, nobody is blamed",
    "slow": "we are at fault, by volume, reputation, listing or lack of authentication: slow down, stop or mend; never "
            "the recipient",
}


class ReplyClass(NamedTuple):
    """One class of replies."""

    name: str
    decision: Decision
    doc: str


_CLASSES = (
    # The recipient
    ReplyClass("unknown-user", "suppress", "There is no such mailbox."),
    ReplyClass("inactive", "suppress", "The mailbox is disabled, closed, or belongs to somebody else now."),
    ReplyClass("moved", "suppress", "The mailbox has moved, and nothing is forwarded."),
    ReplyClass("bad-address", "suppress", "No valid address for that host."),
    ReplyClass("bad-domain", "suppress", "The domain does not exist or takes no mail."),
    # The delivery
    ReplyClass("mailbox-full", "retry", "The mailbox has no room."),
    ReplyClass("recipient-rate", "retry", "The recipient gets too much mail just now, from whomever."),
    ReplyClass("recipient-refused", "retry", "The recipient or list does not take mail from this sender."),
    ReplyClass("greylist", "retry", "First contact: come back later, from the same address."),
    ReplyClass("session-limit", "retry", "Enough of this session or transaction; go on in the next one."),
    ReplyClass("too-big", "retry", "The message or a part of it is too large."),
    ReplyClass("malformed", "retry", "The message is not what the standards say."),
    ReplyClass("tls", "retry", "Encryption is required, or it failed."),
    ReplyClass("relaying", "retry", "The host is not responsible for that domain: a wrong MX or route."),
    ReplyClass("system", "retry", "The receiver has a trouble of its own."),
    ReplyClass("network", "retry", "Connection, name service or routing failed."),
    ReplyClass("protocol", "retry", "A command was not understood or came out of step."),
    ReplyClass("policy", "retry", "A rule of the receiver's, and no more is said."),
    ReplyClass("temporary", "retry", "A 4xx that says nothing more."),
    ReplyClass("refused", "retry", "A 5xx that says nothing more."),
    # We
    ReplyClass("rate", "slow", "Too much mail in too little time."),
    ReplyClass("connections", "slow", "Too many connections at once or too quickly."),
    ReplyClass("reputation", "slow", "The address, network or domain that sends has a bad name with the receiver."),
    ReplyClass("blocklist", "slow", "The address, network or domain that sends is on a list."),
    ReplyClass("reverse-dns", "slow", "The sending address has no name, or not one that leads back."),
    ReplyClass("authentication", "slow", "SPF, DKIM, DMARC or alignment failed: the sender's domain has to be mended."),
    ReplyClass("sender", "slow", "The envelope sender or its domain is not accepted."),
    ReplyClass("content", "slow", "The content is taken for spam or something dangerous."),
    ReplyClass("host-refused", "slow", "The host takes no mail from us at all."),
)

CLASSES: dict[str, ReplyClass] = {one.name: one for one in _CLASSES}
