"""How many messages clients are sending just now, for who would rather wait a moment and store them together."""

from __future__ import annotations


class Coming:
    """Counts the transactions that are under way, but for those that were waited for in vain.

    Hot path: twice per message.
    """

    __slots__ = ("_round", "clients", "count")

    def __init__(self) -> None:
        self.count = 0
        self.clients = 0  # that are connected: whoever counts them says it here
        self._round = 0

    def begin(self) -> int:
        """A client begins to send a message. The number is for `end`."""
        self.count += 1
        return self._round

    def end(self, number: int) -> None:
        """It has come, or will not."""
        if number == self._round:
            self.count -= 1

    def give_up(self) -> None:
        """Those that are under way take their time: they count no more."""
        self.count = 0
        self._round += 1
