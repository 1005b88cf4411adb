"""One SMTP session of an MX host: takes commands, does what the personality says, counts.

Written apart from `mta.smtp` on purpose: it is the tests' second opinion on what goes over the wire. It runs in a
greenlet of its own and reads in a straight line. The way of a message that no rule or limit concerns is a hot path
(`bench/throughput.py`).
"""

from __future__ import annotations

import re
import time
from typing import Final, NoReturn

import gevent

from mta.sandbox import content as contents
from mta.sandbox.books import Books
from mta.sandbox.connection import READ, Ended
from mta.sandbox.content import text
from mta.sandbox.replies import Reply
from mta.sandbox.rules import Conduct, ReadyRule

MAX_CONTENT: Final = 256_000_000  # octets of one message where the personality sets no `size`
ACROSS_S: Final = 0.02  # time for an envelope that was sent with a body to arrive, where that matters

# An address in angle brackets; a quoted local part may hold a ">" (RFC 5321 4.1.2).
_PATH: Final = rb'(\s*)<((?:"(?:\\.|[^"\\])*"|[^">])*)> ?([^\r\n]*)'
_MAIL: Final = re.compile(rb"(?i:MAIL FROM:)" + _PATH)
_RCPT: Final = re.compile(rb"(?i:RCPT TO:)" + _PATH)
_BDAT: Final = re.compile(rb"(?i:BDAT) ([0-9]{1,12})(?i:( LAST)?)\r\n")
_TLS_ALERT: Final = bytes((21, 3, 3, 0, 2, 2, 40))  # a record with the fatal alert handshake_failure (RFC 8446 6)

_MAIL_OK: Final = Reply(250, b"250 2.1.0 Sender ok\r\n")
_RCPT_OK: Final = Reply(250, b"250 2.1.5 Recipient ok\r\n")
_GO_AHEAD: Final = Reply(354, b"354 End with <CRLF>.<CRLF>\r\n")
_OK: Final = Reply(250, b"250 2.0.0 Ok\r\n")
_BYE: Final = Reply(221, b"221 2.0.0 Bye\r\n")
_CANNOT_VERIFY: Final = Reply(252, b"252 2.1.5 Send some mail, it will be tried\r\n")
_NO_MAIL: Final = Reply(503, b"503 5.5.1 MAIL first\r\n")
_NO_RCPT: Final = Reply(554, b"554 5.5.1 No valid recipients\r\n")
_NO_HELO: Final = Reply(503, b"503 5.5.1 EHLO first\r\n")
_NESTED: Final = Reply(503, b"503 5.5.1 One transaction at a time\r\n")
_ACROSS: Final = Reply(503, b"503 5.5.0 No pipelining across messages\r\n")
_MIXED: Final = Reply(503, b"503 5.5.1 No DATA among chunks\r\n")
_CHUNK_OK: Final = Reply(250, b"250 2.0.0 Chunk ok\r\n")
_SYNTAX: Final = Reply(501, b"501 5.5.4 Syntax error\r\n")
_UNKNOWN: Final = Reply(502, b"502 5.5.1 Command not implemented\r\n")
_TOO_LARGE: Final = Reply(552, b"552 5.3.4 Message too large\r\n")
_NEEDS_TLS: Final = Reply(530, b"530 5.7.0 Must issue a STARTTLS command first\r\n")
_TLS_GO: Final = Reply(220, b"220 2.0.0 Ready to start TLS\r\n")
_TLS_REFUSED: Final = Reply(454, b"454 4.7.0 TLS not available due to temporary reason\r\n")


class Session(Books):
    """One session, from accept to its end. `run` is what its greenlet does, and raises nothing."""

    # --- the whole session -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Speak SMTP until one side ends it."""
        try:
            self._greet()
            self._converse()
        except Ended:
            self._end("dropped")
        except (OSError, EOFError):  # the client is gone
            self._end("abandoned")
        finally:
            if self._visit is not None:
                self._visit.closed_at = time.time()
            self.wire.close()
            self.receiver.sessions.discard(self)

    def _greet(self) -> None:
        host, wire = self.host, self.wire
        behaviour = host.conduct.behaviour
        self.ledger.totals.connections += 1
        wire.enter(self.ledger.presence)
        limit = behaviour.connections
        if limit is not None and host.counts.client(self.client).sweep() >= limit:
            host.counts.refused += 1
            if host.conduct.connections_reply is not None:
                wire.say(host.conduct.connections_reply)
            wire.finish()
        if not self.receiver.within_connection_rate(host, self.client):
            host.counts.refused += 1
            wire.say(host.conduct.connection_rate_reply)
            wire.finish()
        wire.enter(host.counts.presence)
        wire.enter(host.counts.client(self.client))
        if host.domain is not None:
            wire.enter(host.domain.presence)
        self._place = str(host.counts.presence.total)
        if behaviour.read_rate is not None:
            wire.read_slowly()
        rule = self._rule("connect", self._place)
        if rule is not None:
            self._carry_out(rule)
            return
        gevent.sleep(behaviour.latency)
        if wire.look():
            self._blame("talks_before_greeting", wire.buffer)
        wire.say(Reply(220, f"220 {host.name} {behaviour.banner}\r\n".encode()))
        wire.send()

    def _converse(self) -> NoReturn:
        wire, verbs = self.wire, _VERBS
        while True:
            line = wire.line()
            self.ledger.totals.commands += 1
            if wire.out and not (self._esmtp and self.host.conduct.behaviour.pipelining):
                self._blame("pipelining_not_offered", line)
            if line[-2:] != b"\r\n":
                self._blame("command_without_crlf", line)
            if self._refused_across == wire.writes:
                wire.say(_ACROSS)
                continue
            verb = verbs.get(line[:4].upper())
            if verb is not None and line[4:5] in b" \r\n":
                verb(self, line)
            elif line[:8].upper() == b"STARTTLS":
                self._starttls()
            else:
                wire.say(_UNKNOWN)

    # --- rules -----------------------------------------------------------------------------------------------------

    def _rule(self, stage: str, subject: str, conduct: Conduct | None = None) -> ReadyRule | None:
        """Wait as the rules say; the rule that decides how the stage ends, if there is one."""
        for rule in (conduct or self.host.conduct).rules.get(stage, ()):
            if rule.holds(subject, self.host.site if subject is self._place else subject):
                if rule.rule.delay:
                    self.wire.flush()
                    gevent.sleep(rule.rule.delay)
                if rule.ends:
                    return rule
        return None

    def _answer(self, rule: ReadyRule | None, reply: Reply | None) -> None:
        """End a stage as a rule says, or by a reply."""
        if rule is not None:
            self._carry_out(rule)
        elif reply is not None:
            self.wire.say(reply)

    def _carry_out(self, rule: ReadyRule) -> None:
        """Do what a rule says. Raises Ended or EOFError when that ends the session."""
        if rule.rule.hang:
            self.wire.hang()
        if rule.raw is not None:
            self.wire.out.append(rule.raw)
        elif rule.reply is not None:
            self.wire.say(rule.reply)
        if rule.rule.drop == "rst":
            self.wire.abort()
        elif rule.rule.drop == "fin":
            self.wire.finish()

    # --- commands before a transaction -----------------------------------------------------------------------------

    def _hello(self, line: bytes) -> None:
        if self.wire.has_input:
            self._blame("pipelined_after_ehlo", line)
        rule = self._rule("ehlo", self._place)
        behaviour = self.host.conduct.behaviour
        esmtp = line[:4].upper() == b"EHLO"
        if rule is not None:
            self._carry_out(rule)
            return
        if esmtp and not behaviour.esmtp:
            self.wire.say(_UNKNOWN)
            return
        self._end("abandoned")
        self._greeted, self._esmtp = True, esmtp
        self._helo = text(line[5:].strip())
        lines = [f"{self.host.name} greets {self._helo}"]
        if esmtp:
            offered = {
                "PIPELINING": behaviour.pipelining,
                f"SIZE {behaviour.size}": behaviour.size is not None,
                "8BITMIME": behaviour.eight_bit,
                "SMTPUTF8": behaviour.smtputf8,
                "DSN": behaviour.dsn,
                "CHUNKING": behaviour.chunking != "off",
                "STARTTLS": behaviour.starttls != "off" and not self.wire.tls,
                "ENHANCEDSTATUSCODES": True,
            }
            lines += [extension for extension, offer in offered.items() if offer]
            lines += behaviour.extensions
        self.wire.say(Reply.parse("250 " + "\n".join(lines)))

    def _starttls(self) -> None:
        wire, kind = self.wire, self.host.conduct.behaviour.starttls
        if kind == "off" or wire.tls or not self._esmtp:
            wire.say(_UNKNOWN)
            return
        if wire.has_input:
            self._blame("pipelined_after_starttls", wire.buffer[wire.position :])
        rule = self._rule("starttls", self._place)
        if rule is not None:
            self._carry_out(rule)
            return
        if kind == "refused":
            wire.say(_TLS_REFUSED)
            return
        wire.say(_TLS_GO)
        wire.flush()
        self._end("abandoned")
        if kind == "broken":
            wire.receive(READ)
            wire.out.append(_TLS_ALERT)
            wire.finish()
        wire.start_tls(self.receiver.tls_of(self.host))
        self._greeted = self._esmtp = False
        self.ledger.totals.tls_connections += 1

    def _noop(self, line: bytes) -> None:
        self.wire.say(_OK)

    def _verify(self, line: bytes) -> None:
        self.wire.say(_CANNOT_VERIFY)

    def _reset(self, line: bytes) -> None:
        self._leave_transaction("rset", _OK)

    def _quit(self, line: bytes) -> None:
        self._leave_transaction("quit", _BYE)
        self.wire.finish()

    def _leave_transaction(self, stage: str, reply: Reply) -> None:
        rule = self._rule(stage, text(self._sender or b""))
        self._end("abandoned")
        self._answer(rule, reply)

    # --- the envelope ----------------------------------------------------------------------------------------------

    def _mail(self, line: bytes) -> None:
        wire, conduct = self.wire, self.host.conduct
        behaviour = conduct.behaviour
        match = _MAIL.match(line)
        if not self._greeted or self._sender is not None or match is None:
            wire.say(_NO_HELO if not self._greeted else _SYNTAX if match is None else _NESTED)
            return
        across = self._answered_body == wire.writes
        if across and behaviour.pipelining_across == "refused":
            self._refused_across = wire.writes
            wire.say(_ACROSS)
            return
        space, sender, parameters = match.groups()
        if space:
            self._blame("space_after_colon", line)
        self._sender, self._across = sender, across
        self._mail_at = wire.read_at
        if parameters:
            self._parameters = contents.parameters(parameters)
            if contents.not_offered(self._parameters, behaviour if self._esmtp else None):
                self._blame("parameter_not_offered", line)
        rule = self._rule("mail", text(sender)) if conduct.rules else None
        reply: Reply | None = _MAIL_OK if rule is None else rule.reply
        if behaviour.starttls == "required" and not wire.tls:
            rule, reply = None, _NEEDS_TLS
        elif behaviour.messages is not None and self._messages >= behaviour.messages and conduct.messages_reply:
            rule, reply = None, conduct.messages_reply
        elif behaviour.size is not None and _declared_size(self._parameters) > behaviour.size:
            rule, reply = None, _TOO_LARGE
        elif rule is None and behaviour.rate is not None and not self.receiver.within_rate(self.host, self.client):
            reply = conduct.rate_reply
        if reply is None or reply.code >= 300:
            self._end("refused" if reply is not None else "dropped", reply)
        self._answer(rule, reply)

    def _rcpt(self, line: bytes) -> None:
        """Hot path."""
        wire = self.wire
        match = _RCPT.match(line)
        if self._sender is None or match is None:
            wire.say(_NO_MAIL if self._sender is None else _SYNTAX)
            return
        if wire.out:
            self._pipelined = True
        space, address, parameters = match.groups()
        if space:
            self._blame("space_after_colon", line)
        if parameters and not (self._esmtp and self.host.conduct.behaviour.dsn):
            self._blame("parameter_not_offered", line)
        domain = self.receiver.internet.domain(address.rpartition(b"@")[2])
        counts, conduct = domain.counts, domain.conduct
        wire.enter(counts.presence)
        if domain.name != self._name:
            if self._name:
                self._blame("several_domains", line)
            self._name = domain.name
        limit = self.host.conduct.behaviour.recipients
        rule: ReadyRule | None = None
        reply: Reply | None = _RCPT_OK
        if limit is not None and len(self._accepted) >= limit:
            reply = self.host.conduct.recipients_reply
        elif conduct.rules and (rule := self._rule("rcpt", text(address), conduct)) is not None:
            reply = rule.reply
        elif conduct.behaviour.greylist is not None and self.receiver.greylists(
            self.client, self._sender, address, conduct.behaviour.greylist
        ):
            reply = conduct.greylist_reply
        if reply is not None and reply.code < 300:
            self._accepted.append((address, counts))
            if self._domain is None:
                self._domain, self._first = domain, text(address)
        else:
            self._count_lost(reply, counts)
        if self.receiver.logs:
            said = "250" if reply is _RCPT_OK else reply.text if reply is not None else ""
            self._asked.append((text(address), text(parameters), said))
        if reply is not None:
            counts.replies[reply.code] += 1
        self._answer(rule, reply)

    # --- the content -----------------------------------------------------------------------------------------------

    def _data(self, line: bytes) -> None:
        wire, domain = self.wire, self._domain
        if self._sender is None or self._chunks is not None:
            wire.say(_NO_MAIL if self._chunks is None else _MIXED)
            return
        if domain is None and not self.host.conduct.behaviour.data_always:
            wire.say(_NO_RCPT)
            return
        conduct = self.host.conduct if domain is None else domain.conduct
        rule = self._rule("data", self._first, conduct) if conduct.rules else None
        if rule is not None:
            self._data_reply = rule.reply.text if rule.reply is not None else ""
            self._lose(rule.reply)
            self._carry_out(rule)
            return
        if wire.has_input:
            self._blame("body_before_354", wire.buffer[wire.position :])
        self._data_reply = "354"
        wire.say(_GO_AHEAD)
        content = self._content(conduct)
        if content is not None:
            self._dot(conduct, content)

    def _content(self, conduct: Conduct) -> bytes | None:
        """The content of a message, dot-stuffed as it came. None when it was answered before its end. Hot path."""
        wire = self.wire
        if "body" in conduct.rules or self.host.conduct.behaviour.read_rate is not None:
            return self._long_content(conduct)
        if not wire.has_input:
            wire.read_more()
        buffer, position = wire.buffer, wire.position
        if buffer.startswith(b".\r\n", position):
            wire.position = position + 3
            return b""
        end = buffer.find(b"\r\n.\r\n", position)
        if end < 0:
            return self._long_content(conduct)
        wire.position = end + 5
        return buffer[position : end + 2]

    def _chunk(self, line: bytes) -> None:
        """BDAT (RFC 3030 2). A chunk is read to its end, whatever becomes of it."""
        wire, behaviour, domain = self.wire, self.host.conduct.behaviour, self._domain
        match = _BDAT.fullmatch(line)
        if behaviour.chunking == "dropped":
            wire.abort()
        if behaviour.chunking != "offered" or not self._esmtp or match is None:
            wire.say(_UNKNOWN if behaviour.chunking != "offered" or not self._esmtp else _SYNTAX)
            return
        limit = MAX_CONTENT if behaviour.size is None else behaviour.size
        data = self._octets(int(match[1]), limit)
        if self._sender is None or domain is None:
            wire.say(_NO_MAIL if self._sender is None else _NO_RCPT)
            return
        conduct = domain.conduct
        for stage in ("data", "body"):
            rule = self._rule(stage, self._first, conduct) if conduct.rules else None
            if rule is not None:
                self._lose(rule.reply)
                self._carry_out(rule)
                return
        if self._chunks is None:
            self._chunks = []
        self._chunks.append(data)
        self._data_reply = "BDAT"
        if match[2]:
            self._dot(conduct, b"".join(self._chunks), stuffed=False)
        else:
            wire.say(_CHUNK_OK)

    def _octets(self, count: int, limit: int) -> bytes:
        """The next `count` octets; one more than `limit` is kept of more."""
        wire, rate = self.wire, self.host.conduct.behaviour.read_rate
        kept = bytearray(wire.buffer[wire.position : wire.position + count])
        wire.position += len(kept)
        missing = count - len(kept)
        if missing:
            wire.flush()
        while missing:
            chunk = wire.receive(min(missing, READ if rate is None else max(1, min(READ, rate // 10))))
            missing -= len(chunk)
            kept += chunk
            del kept[limit + 1 :]
            if rate is not None:
                gevent.sleep(len(chunk) / rate)
        return bytes(kept)

    def _long_content(self, conduct: Conduct) -> bytes | None:
        """As `_content`, for content that comes in pieces, slowly, or with rules for its way."""
        wire, behaviour = self.wire, self.host.conduct.behaviour
        wire.flush()
        rate = behaviour.read_rate
        limit = MAX_CONTENT if behaviour.size is None else behaviour.size
        rules = sorted(conduct.rules.get("body", ()), key=lambda rule: rule.rule.after)
        # With the CRLF of the DATA line before it, the end of empty content looks like any other.
        data = bytearray(b"\r\n" + wire.buffer[wire.position :])
        wire.buffer, wire.position = b"", 0
        received = len(data) - 2
        searched = 0
        answered = False
        while True:
            while rules and received >= rules[0].rule.after and not answered:
                answered = self._rule_at_body(rules.pop(0))
            end = data.find(b"\r\n.\r\n", searched)
            if end >= 0:
                wire.buffer = bytes(data[end + 5 :])
                if answered:
                    return None
                if received - len(wire.buffer) > limit + 5:
                    self._lose(_TOO_LARGE)
                    wire.say(_TOO_LARGE)
                    return None
                return bytes(data[2 : end + 2])
            searched = max(0, len(data) - 4)
            if answered or received > limit + 5:  # nothing but its end is of interest any more
                del data[:searched]
                searched = 0
            chunk = wire.receive(READ if rate is None else max(1, min(READ, rate // 10)))
            data += chunk
            received += len(chunk)
            if rate is not None:
                gevent.sleep(len(chunk) / rate)

    def _rule_at_body(self, rule: ReadyRule) -> bool:
        """Do what a rule says while content arrives; whether the message has its answer."""
        if not rule.holds(self._first, self._first):
            return False
        gevent.sleep(rule.rule.delay)
        if not rule.ends:
            return False
        self._lose(rule.reply)
        self._carry_out(rule)
        self.wire.flush()
        return True

    def _dot(self, conduct: Conduct, content: bytes, stuffed: bool = True) -> None:
        """Decide about a message whose end has come. Hot path."""
        wire, behaviour = self.wire, self.host.conduct.behaviour
        if stuffed:
            content = contents.unstuffed(content)
        rule = self._rule("dot", self._first, conduct) if conduct.rules else None
        if behaviour.pipelining_across != "accepted":
            gevent.sleep(ACROSS_S)
            wire.look()
        reply: Reply | None
        if not self._accepted:
            rule, reply = None, _NO_RCPT
        elif behaviour.size is not None and len(content) > behaviour.size:
            rule, reply = None, _TOO_LARGE
        elif rule is not None:
            reply = rule.reply
        else:
            reply = Reply(250, b"250 2.0.0 Ok: queued as %d\r\n" % (self.ledger.totals.transactions + 1))
        if reply is not None and reply.code < 300:
            self._keep(content, reply)
        elif rule is not None and rule.rule.keep:
            self._keep(content, None)
        else:
            self._lose(reply)
        self._messages += 1
        self._answered_body = wire.writes
        self._answer(rule, reply)
        if behaviour.messages is not None and self._messages >= behaviour.messages and not behaviour.messages_reply:
            wire.finish()
        if behaviour.pipelining_across == "dropped" and wire.has_input:
            wire.finish()


def _declared_size(parameters: dict[str, str]) -> int:
    size = parameters.get("SIZE", "")
    return int(size) if size.isdecimal() else 0


_VERBS: Final = {
    b"EHLO": Session._hello, b"HELO": Session._hello, b"MAIL": Session._mail, b"RCPT": Session._rcpt,
    b"DATA": Session._data, b"BDAT": Session._chunk, b"RSET": Session._reset, b"NOOP": Session._noop,
    b"VRFY": Session._verify, b"QUIT": Session._quit,
}
