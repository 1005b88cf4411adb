"""A bounded cache of DNS answers: the least recently used leave first, nothing is believed beyond its time."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from mta.delivery.dns_answer import Answer
from mta.delivery.dns_wire import RecordType


class Cache:
    """At most `size` answers, each until it expires. Every operation is O(1)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: OrderedDict[tuple[str, RecordType], Answer[Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: tuple[str, RecordType], now: float) -> Answer[Any] | None:
        """The answer kept for `key`, if it still holds at `now`."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        if answer.expires <= now:
            del self._answers[key]
            return None
        self._answers.move_to_end(key)
        return answer

    def put(self, key: tuple[str, RecordType], answer: Answer[Any]) -> None:
        """Keep `answer`."""
        self._answers[key] = answer
        self._answers.move_to_end(key)
        if len(self._answers) > self._size:
            self._answers.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._answers.clear()
