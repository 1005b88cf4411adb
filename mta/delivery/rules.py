"""What a refusal means: the first rule that fits it, or else what its codes say.

`RuleBook.judge` gives a `Ruling` for every refusal: a class (`mta.config.reply_classes`), what happens to the message,
and the rule, if there is one. What the actions of a rule do and when is counted in `mta.delivery.rule_counts`.

Without a rule the enhanced code decides, then the code. Both are careful: only x.1.1, x.1.2, x.1.3, x.1.6, x.1.10,
x.2.1 and the "owner has changed" of RFC 7293 put the blame on a recipient; nothing in x.7 but that does. A bare 550
says nothing about the recipient: half of the world says it to a listed address.

Pure. A verdict on a reply that was seen before costs a look into a table (tests/delivery/rules_timing.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from mta.config.reply_book import ReplyRules
from mta.config.reply_classes import CLASSES, Decision
from mta.config.reply_patterns import Said, said
from mta.config.reply_rules import Fate, ReplyRule, Stage
from mta.smtp.reply import Reply

REMEMBERED = 4096  # verdicts on replies; twice as many at most
_LONG = 600  # characters of a reply that is not remembered: most have an identity of their own


@dataclass(frozen=True, slots=True)
class Ruling:
    """The verdict on one refusal."""

    kind: str  # a class of `CLASSES`
    rule: ReplyRule | None = None  # None: the codes decided
    message: Fate = ""  # what happens to the message; "": what its code says
    wait_s: float = 0.0  # of `defer`, when the rule says how long

    @property
    def decision(self) -> Decision:
        """Whom to blame."""
        return CLASSES[self.kind].decision

    @property
    def name(self) -> str:
        """The name of the rule, or ""."""
        return self.rule.name if self.rule is not None else ""

    @property
    def place(self) -> str:
        """`FILE:LINE` of the rule, or ""."""
        return self.rule.place if self.rule is not None else ""

    @property
    def elsewhere(self) -> bool:
        """Whether the next attempt is to go another way at once."""
        return self.message in ("elsewhere", "elsewhere host")

    def suppresses(self, code: int) -> bool:
        """Whether the recipient should get no more mail: it is at fault, and the mail has failed for good."""
        failed = self.message == "bounce" or (self.message == "" and 500 <= code < 600)
        return failed and self.decision == "suppress"


class RuleBook:
    """The rules of a configuration, with a memory of verdicts."""

    def __init__(self, rules: ReplyRules) -> None:
        self.rules = rules
        self._new: dict[tuple[str, Stage, Reply], Ruling] = {}
        self._old: dict[tuple[str, Stage, Reply], Ruling] = {}

    def judge(self, provider: str, stage: Stage, reply: Reply) -> Ruling:
        """The ruling on `reply`, a refusal at `stage` by a host of `provider` ("" for none). Raises nothing."""
        key = (provider, stage, reply)
        known = self._new.get(key)
        if known is not None:
            return known
        ruling = self._old.get(key)
        if ruling is None:
            ruling = self.look_up(provider, stage, reply)
        if len(reply.lines) == 1 and len(reply.lines[0]) <= _LONG:
            self._new[key] = ruling
            if len(self._new) >= REMEMBERED:
                self._old, self._new = self._new, {}
        return ruling

    def look_up(self, provider: str, stage: Stage, reply: Reply) -> Ruling:
        """The same, from the rules."""
        seen = said(reply.code, reply.enhanced, reply.lines)
        if reply.local and stage not in ("connect", "lost"):
            return Ruling(class_by_code(seen, stage))  # our own words: no host said anything
        return ruling_on(self.rules.find(provider, stage, seen), seen, stage)


def ruling_on(rule: ReplyRule | None, reply: Said, stage: Stage) -> Ruling:
    """What `rule`, which fits `reply`, makes of it; the codes fill in what it does not say."""
    if rule is None:
        return Ruling(class_by_code(reply, stage))
    return Ruling(rule.kind or class_by_code(reply, stage), rule, rule.message, rule.wait_s)


# --- by the codes alone --------------------------------------------------------------------------------------------

# RFC 3463, and what IANA's registry of enhanced status codes has since.
_DETAILS: dict[tuple[int, int], str] = {
    (1, 1): "unknown-user", (1, 2): "bad-domain", (1, 3): "bad-address", (1, 4): "recipient-refused", (1, 6): "moved",
    (1, 7): "sender", (1, 8): "sender", (1, 9): "relaying", (1, 10): "bad-domain",
    (2, 1): "inactive", (2, 2): "mailbox-full", (2, 3): "too-big", (2, 4): "recipient-refused",
    (3, 4): "too-big", (4, 5): "system", (5, 3): "session-limit", (5, 6): "malformed",
    (7, 2): "recipient-refused", (7, 10): "tls", (7, 11): "tls", (7, 17): "inactive", (7, 18): "inactive",
    (7, 20): "authentication", (7, 21): "authentication", (7, 22): "authentication", (7, 23): "authentication",
    (7, 24): "authentication", (7, 25): "reverse-dns", (7, 26): "authentication", (7, 27): "sender", (7, 28): "rate",
    (7, 29): "authentication", (7, 30): "tls",
}  # fmt: skip
_SUBJECTS = {3: "system", 4: "network", 5: "protocol", 6: "malformed", 7: "policy"}
_CODES = {
    452: "system", 455: "protocol", 500: "protocol", 501: "protocol", 502: "protocol", 503: "protocol",
    504: "protocol", 521: "host-refused", 530: "policy", 535: "policy", 555: "protocol", 556: "bad-domain",
}  # fmt: skip


def class_by_code(reply: Said, stage: Stage) -> str:
    """The class of a refusal that no rule takes."""
    if reply.enhanced is not None:
        _, subject, detail = reply.enhanced
        found = _DETAILS.get((subject, detail)) or _SUBJECTS.get(subject)
        if found is not None:
            return found
    if stage in ("connect", "lost"):
        return "network"
    if stage == "greeting":
        return "system" if reply.code < 500 else "host-refused"
    if reply.code == 552:  # RFC 5321 4.2.3: exceeded storage allocation; of the mailbox, or by the message
        return "mailbox-full" if stage == "rcpt" else "too-big"
    if reply.code == 421:
        return "system"
    return _CODES.get(reply.code) or ("temporary" if reply.code < 500 else "refused")
