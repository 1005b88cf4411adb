"""The receivers of a simulation: how the hosts of the sandbox's file answer, without a wire.

Names, personalities, phases, rules and their dice are those of `mta.sandbox`; what `mta.sandbox.session` does with
bytes is done here with whole transactions, in the same order of decisions. A session says at once how it will answer
and how long that takes; whoever asked waits so long. Of MAIL to the final dot it takes as many turns of `latency` as
there are bursts of replies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple

from mta.sandbox import replies as sandbox_replies
from mta.sandbox.internet import Host, Internet
from mta.sandbox.ledger import Ledger
from mta.sandbox.nameserver import NameServer
from mta.sandbox.quota import Quotas
from mta.sandbox.rules import Conduct, ReadyRule
from mta.sandbox.settings import Settings
from mta.simulate.kernel import VirtualHub
from mta.smtp.client import Transaction
from mta.smtp.reply import Reply, ReplyParser
from mta.smtp.transaction import Capabilities

Patience = Mapping[str, tuple[float, str]]  # by phase: seconds, and what is waited for

_MAIL_OK: Final = Reply(250, "2.1.0", ("Sender ok",))
_RCPT_OK: Final = Reply(250, "2.1.5", ("Recipient ok",))
_GO_AHEAD: Final = Reply(354, "", ("End with <CRLF>.<CRLF>",))
_OK: Final = Reply(250, "2.0.0", ("Ok: queued",))
_NO_RCPT: Final = Reply(554, "5.5.1", ("No valid recipients",))
_TOO_LARGE: Final = Reply(552, "5.3.4", ("Message too large",))
_NEEDS_TLS: Final = Reply(530, "5.7.0", ("Must issue a STARTTLS command first",))
_NO_EHLO: Final = Reply(502, "5.5.1", ("Command not implemented",))


@dataclass(slots=True)
class SiteBook:
    """What the hosts of one site did. Replies to MAIL and before count once, to RCPT once per recipient."""

    open: Counter[str] = field(default_factory=Counter)  # connections by client
    most_open: int = 0
    connections: int = 0
    refused_connections: int = 0  # above the limit
    throttled: int = 0  # messages above the rate
    greylisted: int = 0  # recipients
    taken: int = 0  # messages
    refusals: Counter[str] = field(default_factory=Counter)  # all replies that refuse, by their text


class Opening(NamedTuple):
    """How a session begins: after so many seconds it is open, or refused in a phase."""

    seconds: float
    refused: Reply | None = None
    phase: str = ""


class Answer(NamedTuple):
    """How long a transaction takes, and whether the session is over with it."""

    seconds: float
    ended: bool


class Lost(Exception):  # noqa: N818 -- a way out of a stage, and no error
    """The session ends here without a reply; `after` its patience when the host just says nothing."""

    def __init__(self, text: str, after: float = 0.0) -> None:
        super().__init__(text)
        self.after = after


class Receivers:
    """All hosts."""

    def __init__(self, hub: VirtualHub, settings: Settings) -> None:
        self.hub = hub
        ledger = Ledger(1000, 0)
        self.internet = Internet(replace(settings, hosts=4_000_000), ledger, self._host_changed, hub.monotonic)
        self.names = NameServer(self.internet, ledger)
        self.sites: dict[str, SiteBook] = {}
        self._sessions: dict[str, dict[Session, None]] = {}  # by name of the host
        self._greylist: dict[tuple[str, str], float] = {}
        self._message_quotas = Quotas()
        self._connection_quotas = Quotas()
        self._parsed: dict[sandbox_replies.Reply, Reply] = {}
        self._call_at_change()

    def _call_at_change(self) -> None:
        at = self.internet.next_change()
        if at is not None:
            self.hub.call_later(at - self.hub.now, self._change)

    def _change(self) -> None:
        self.internet.refresh()
        self._call_at_change()

    def _host_changed(self, host: Host) -> None:
        if not host.open:
            for session in list(self._sessions.get(host.name, ())):
                session.cut()

    def site(self, name: str) -> SiteBook:
        """The book of a site."""
        book = self.sites.get(name)
        if book is None:
            book = self.sites[name] = SiteBook()
        return book

    def reply(self, reply: sandbox_replies.Reply) -> Reply:
        """As the client reads it."""
        parsed = self._parsed.get(reply)
        if parsed is None:
            parsed = self._parsed[reply] = next(ReplyParser().feed(reply.wire))
        return parsed

    def within_rate(self, host: Host, client: str) -> bool:
        """As `mta.sandbox.receiver.Receiver.within_rate`."""
        behaviour = host.conduct.behaviour
        return behaviour.rate is None or self._message_quotas.takes(
            host.site, client, behaviour.rate, behaviour.rate_window, self.hub.now)

    def within_connection_rate(self, host: Host, client: str) -> bool:
        """As `mta.sandbox.receiver.Receiver.within_connection_rate`."""
        behaviour = host.conduct.behaviour
        return behaviour.connection_rate is None or self._connection_quotas.takes(
            host.site, client, behaviour.connection_rate, behaviour.rate_window, self.hub.now)

    def greylists(self, client: str, recipient: str, wait_s: float) -> bool:
        """Whether this one is to come again later. One that may pass is forgotten: it does not come again."""
        now = self.hub.now
        since = self._greylist.setdefault((client, recipient), now)
        if now < since + wait_s:
            return True
        del self._greylist[client, recipient]
        return False

    def enter(self, session: Session) -> None:
        """Count it as open."""
        self._sessions.setdefault(session.host.name, {})[session] = None

    def leave(self, session: Session) -> None:
        """Do not."""
        self._sessions[session.host.name].pop(session, None)


def _nothing() -> None:
    """Nobody is to be told."""


class Session:
    """One session with one host."""

    def __init__(self, receivers: Receivers, host: Host, client: str, patience: Patience) -> None:
        self.receivers = receivers
        self.host = host
        self.client = client
        self.patience = patience
        self.book = receivers.site(host.site)
        self.capabilities = Capabilities()
        self.was_cut = False
        self.on_cut: Callable[[], None] = _nothing
        self._tls = False
        self._counted = False
        self._messages = 0
        self._place = ""
        self._seconds = 0.0  # of what is being answered now
        self._phase = ""

    # -- presence ------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """The host resets the connection."""
        self.was_cut = True
        self.leave()
        self.on_cut()

    def leave(self) -> None:
        """The connection is over."""
        if self._counted:
            self._counted = False
            self.book.open[self.client] -= 1
            self.receivers.leave(self)

    # -- opening -------------------------------------------------------------------------------------------------

    def open(self, tls: Literal["opportunistic", "required", "off"], esmtp: bool) -> Opening:
        """From the connect to where mail can be sent."""
        self._seconds = 0.0
        try:
            refused = self._open(tls, esmtp)
        except Lost as lost:
            self._seconds += lost.after
            return Opening(self._seconds, Reply(451, "4.4.1", (str(lost),), local=True), self._phase)
        if refused is None:
            return Opening(self._seconds)
        if not refused.local:
            self.book.refusals[str(refused)] += 1
        return Opening(self._seconds, refused, self._phase)

    def _open(self, tls: str, esmtp: bool) -> Reply | None:
        book, conduct = self.book, self.host.conduct
        behaviour = conduct.behaviour
        self._phase = "greeting"
        if behaviour.connections is not None and book.open[self.client] >= behaviour.connections:
            book.refused_connections += 1
            if conduct.connections_reply is None:
                raise Lost("connection closed by the host while waiting for the greeting")
            return self.receivers.reply(conduct.connections_reply)
        if not self.receivers.within_connection_rate(self.host, self.client):
            book.refused_connections += 1
            return self.receivers.reply(conduct.connection_rate_reply)
        self._counted = True
        self.receivers.enter(self)
        book.open[self.client] += 1
        book.connections += 1
        book.most_open = max(book.most_open, sum(book.open.values()))
        self._place = str(book.connections)
        reply = self._early("connect", self._place)
        self._seconds += behaviour.latency
        if reply is not None and not reply.positive:
            return reply
        if esmtp:
            self._phase = "ehlo"
            reply = self._hello()
            if reply is None and behaviour.starttls != "off" and tls != "off":
                reply = self._starttls(tls)
                if reply is not None and (not reply.local or tls == "required"):
                    return reply
            elif reply is None:
                pass
            elif tls == "required" or reply.code == 421:
                return reply
            else:
                esmtp = False
        if not esmtp:
            self._phase = "helo"
            self._seconds += behaviour.latency
            reply = self._early("ehlo", self._place)
            if reply is not None and not reply.positive:
                return reply
        if tls == "required" and not self._tls:
            self._phase = "starttls"
            return Reply(454, "4.7.0", ("TLS is required, but the host does not offer STARTTLS",), local=True)
        return None

    def _hello(self) -> Reply | None:
        """EHLO. None when the host takes it."""
        behaviour = self.host.conduct.behaviour
        self._seconds += behaviour.latency
        reply = self._early("ehlo", self._place)
        if reply is not None and not reply.positive:
            return reply
        if not behaviour.esmtp:
            return _NO_EHLO
        lines = ("", *behaviour.extensions)
        self.capabilities = Capabilities.from_reply(Reply(250, "", lines))
        can = self.capabilities
        can.pipelining, can.eight_bit = behaviour.pipelining, behaviour.eight_bit
        can.smtputf8, can.dsn = behaviour.smtputf8, behaviour.dsn
        can.size = behaviour.size
        return None

    def _starttls(self, tls: str) -> Reply | None:
        """STARTTLS, and EHLO again."""
        behaviour = self.host.conduct.behaviour
        self._phase = "starttls"
        self._seconds += behaviour.latency
        reply = self._early("starttls", self._place)
        if reply is None and behaviour.starttls == "refused":
            reply = Reply(454, "4.7.0", ("TLS not available due to temporary reason",))
        if reply is not None and not reply.positive:
            return reply if tls == "required" else None  # goes on in clear
        if behaviour.starttls == "broken":
            self._phase = "handshake"
            raise Lost("TLS handshake failed")
        self._tls = True
        self._phase = "ehlo"
        return self._hello()

    # -- rules ---------------------------------------------------------------------------------------------------

    def _early(self, stage: str, place: str) -> Reply | None:
        """What the rules of a stage before MAIL say; None when nothing. Raises Lost."""
        rules = self.host.conduct.rules
        if not rules:
            return None
        rule = self._rule(rules.get(stage, ()), place, self.host.site)
        return None if rule is None else self._carried_out(rule)

    def _rule(self, rules: tuple[ReadyRule, ...], subject: str, counted: str) -> ReadyRule | None:
        """The rule that decides how a stage ends; waits as the rules say."""
        for rule in rules:
            if rule.holds(subject, counted):
                if rule.rule.delay:
                    self._delay(rule.rule.delay)
                if rule.ends:
                    return rule
        return None

    def _delay(self, seconds: float) -> None:
        patience, what = self.patience[self._phase]
        if seconds > patience:
            raise Lost(f"timed out after {patience:.0f} s waiting for {what}", patience)
        self._seconds += seconds

    def _carried_out(self, rule: ReadyRule) -> Reply | None:
        """The reply that a rule gives. Raises Lost where there is none."""
        if rule.rule.hang:
            patience, what = self.patience[self._phase]
            raise Lost(f"timed out after {patience:.0f} s waiting for {what}", patience)
        if rule.raw is not None:
            raise Lost(f"protocol error: no reply: {rule.rule.raw!r}")
        if rule.reply is None:
            raise Lost("connection reset by the host" if rule.rule.drop == "rst" else "connection closed by the host")
        return self.receivers.reply(rule.reply)

    # -- a transaction -------------------------------------------------------------------------------------------

    def transact(self, transaction: Transaction, domain: bytes, size: int, warm: bool, pipelining: bool) -> Answer:
        """Answer one transaction: its replies are put into it. `warm`: its envelope left with the content of another.
        Hot path."""
        behaviour = self.host.conduct.behaviour
        if not (pipelining and self.capabilities.pipelining):
            bursts = 3 + len(transaction.recipients)
        elif warm and behaviour.pipelining_across == "accepted":
            bursts = 1
        else:
            bursts = 2
        self._seconds = behaviour.latency * bursts
        ended = False
        try:
            ended = self._transact(transaction, domain, size)
        except Lost as lost:
            self._seconds += lost.after
            transaction.lost, transaction.lost_phase = str(lost), self._phase
            transaction.dot_sent = self._phase == "dot"
            return Answer(self._seconds, True)
        return Answer(self._seconds, ended)

    def _transact(self, transaction: Transaction, domain: bytes, size: int) -> bool:
        conduct = self.host.conduct
        behaviour = conduct.behaviour
        reply, ends = self._mail(transaction, size)
        transaction.mail = reply
        if reply.code >= 300:
            return ends or reply.code == 421
        recipient = self.receivers.internet.domain(domain)
        taken = self._rcpt(transaction, recipient.conduct, behaviour.recipients)
        if taken is None:
            return True
        if not taken and not behaviour.data_always:
            transaction.data = _NO_RCPT
            return False
        first = taken[0] if taken else ""
        rules = recipient.conduct.rules
        if rules:
            self._phase = "data"
            rule = self._rule(rules.get("data", ()), first, first)
            if rule is not None:
                transaction.data = self._refused(self._carried_out(rule))
                return rule.rule.drop is not None or transaction.data.code == 421
        transaction.data = _GO_AHEAD
        return self._content(transaction, recipient.conduct, first, size)

    def _mail(self, transaction: Transaction, size: int) -> tuple[Reply, bool]:
        """The reply to MAIL, and whether the session ends with it."""
        conduct = self.host.conduct
        behaviour = conduct.behaviour
        self._phase = "mail"
        rules = conduct.rules.get("mail", ()) if conduct.rules else ()
        rule = self._rule(rules, transaction.sender, transaction.sender) if rules else None
        reply: Reply | None = None
        if behaviour.starttls == "required" and not self._tls:
            reply = _NEEDS_TLS
        elif behaviour.messages is not None and self._messages >= behaviour.messages and conduct.messages_reply:
            reply = self.receivers.reply(conduct.messages_reply)
        elif behaviour.size is not None and size > behaviour.size:
            reply = _TOO_LARGE
        elif rule is not None:
            reply = self._carried_out(rule)
            assert reply is not None
            if reply.code < 300:
                return reply, rule.rule.drop is not None
            return self._refused(reply), rule.rule.drop is not None
        elif behaviour.rate is not None and not self.receivers.within_rate(self.host, self.client):
            self.book.throttled += 1
            reply = self.receivers.reply(conduct.rate_reply)
        return (_MAIL_OK, False) if reply is None else (self._refused(reply), False)

    def _rcpt(self, transaction: Transaction, conduct: Conduct, at_most: int | None) -> list[str] | None:
        """The recipients that are taken; None when the session ended."""
        self._phase = "rcpt"
        rules = conduct.rules.get("rcpt", ()) if conduct.rules else ()
        greylist = conduct.behaviour.greylist
        taken: list[str] = []
        for position, recipient in enumerate(transaction.recipients):
            address = recipient.address
            reply: Reply | None = None
            rule = None
            if at_most is not None and len(taken) >= at_most:
                reply = self.receivers.reply(self.host.conduct.recipients_reply)
            elif rules and (rule := self._rule(rules, address, address)) is not None:
                reply = self._carried_out(rule)
            elif greylist is not None and self.receivers.greylists(self.client, address, greylist):
                self.book.greylisted += 1
                reply = self.receivers.reply(conduct.greylist_reply)
            if reply is None or reply.code < 300:
                taken.append(address)
                transaction.rcpts[position] = reply or _RCPT_OK
            else:
                transaction.rcpts[position] = self._refused(reply)
                if reply.code == 421:
                    return None
            if rule is not None and rule.rule.drop is not None:
                transaction.lost, transaction.lost_phase = "connection closed by the host", "rcpt"
                return None
        return taken

    def _content(self, transaction: Transaction, conduct: Conduct, first: str, size: int) -> bool:
        """From the content to the reply to its end."""
        behaviour, rules = self.host.conduct.behaviour, conduct.rules
        if behaviour.read_rate is not None:
            self._seconds += size / behaviour.read_rate
        if rules and "body" in rules:
            self._phase = "body"
            for early in sorted(rules["body"], key=lambda one: one.rule.after):
                if size >= early.rule.after and self._rule((early,), first, first) is not None:
                    transaction.final = self._refused(self._carried_out(early))
                    return True
        self._phase = "dot"
        transaction.dot_sent = True
        rule = self._rule(rules.get("dot", ()), first, first) if rules and first else None
        reply: Reply | None = _OK
        if not first:
            rule, reply = None, _NO_RCPT
        elif rule is not None:
            if rule.rule.keep:
                self.book.taken += 1
            reply = self._carried_out(rule)
        assert reply is not None
        self._messages += 1
        if reply.code < 300:
            self.book.taken += 1
            transaction.final = reply
        else:
            transaction.final = self._refused(reply)
        if behaviour.messages is not None and self._messages >= behaviour.messages and not behaviour.messages_reply:
            return True
        return reply.code == 421 or (rule is not None and rule.rule.drop is not None)

    def _refused(self, reply: Reply | None) -> Reply:
        assert reply is not None
        self.book.refusals[str(reply)] += 1
        return reply
