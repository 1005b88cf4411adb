"""How much users and listeners have sent, against what they may, over all workers.

The counting is the table of limits' (`Limits.count`): messages and recipients in periods of the clock, sessions as a
level. Who has no limits costs nothing here. What was counted for a message that is refused afterwards is counted back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from mta.config.access import Allowance
from mta.config.units import Rate, format_duration, format_size
from mta.smtp.reply import Reply

Count = Callable[[str, int, int | None, int], bool]
"""Counts a number under a name; False, and nothing counted, if that would be more than the limit in the period."""

LEVEL: Final = 0  # a period that does not begin again: how many there are now


class Account(NamedTuple):
    """Who has an allowance."""

    name: str  # such as `user:acme`
    words: str  # the same for people
    allowance: Allowance

    @property
    def counts(self) -> bool:
        """Whether messages of it have to be counted, or measured."""
        allowance = self.allowance
        return bool(allowance.messages or allowance.recipients or allowance.message_size is not None)


def no_count(name: str, number: int, limit: int | None, period_s: int) -> bool:
    """For tests and tools: nothing is counted."""
    return True


class Usage:
    """The counts of one worker, in the name of all."""

    def __init__(self, count: Count) -> None:
        self._count = count

    def admit(self, accounts: Sequence[Account], recipients: int, size: int) -> Reply | None:
        """Count a message; the refusal if it is too much for one of the accounts: then it is not counted."""
        for account in accounts:
            most = account.allowance.message_size
            if most is not None and size > most:
                return Reply(552, "5.3.4", (f"The message is too big: {account.words} may send {format_size(most)}",))
        counted: list[tuple[str, int, int]] = []
        for account, what, rate, number in _rates(accounts, recipients):
            name, period_s = f"{account.name}:{what}", int(rate.per_s)
            if not self._count(_key(name, period_s), number, rate.count, period_s):
                for key, taken, period in counted:
                    self._count(key, -taken, None, period)
                limit = f"{rate.count} {what} in {format_duration(rate.per_s)}"
                return Reply(452, "4.7.1", (f"Limit of {limit} of {account.words} is reached",))
            counted.append((_key(name, period_s), number, period_s))
        return None

    def give_back(self, accounts: Sequence[Account], recipients: int) -> None:
        """A message that was counted was refused after all."""
        for account, what, rate, number in _rates(accounts, recipients):
            period_s = int(rate.per_s)
            self._count(_key(f"{account.name}:{what}", period_s), -number, None, period_s)

    def enter(self, account: Account) -> bool:
        """Count a session in, if there may be one more."""
        most = account.allowance.sessions
        return most is None or self._count(f"{account.name}:sessions", 1, most, LEVEL)

    def leave(self, account: Account) -> None:
        """Count a session out that was counted in."""
        if account.allowance.sessions is not None:
            self._count(f"{account.name}:sessions", -1, None, LEVEL)


def _rates(accounts: Sequence[Account], recipients: int) -> Iterator[tuple[Account, str, Rate, int]]:
    for account in accounts:
        for rate in account.allowance.messages:
            yield account, "messages", rate, 1
        for rate in account.allowance.recipients:
            yield account, "recipients", rate, recipients


def _key(name: str, period_s: int) -> str:
    return f"{name}/{period_s}"
