"""Work that would hold up the event loop, in gevent's pool of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from gevent.hub import get_hub

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call `function` in a thread, and wait for it without holding up the hub. Raises what it raises.

    The pool itself would print that with its traceback first, whoever expects it.
    """

    def outcome() -> tuple[list[T], BaseException | None]:
        try:
            return [function(*arguments, **named)], None
        except BaseException as error:
            return [], error

    results, error = get_hub().threadpool.apply(outcome)
    if error is not None:
        raise error
    result: T = results[0]
    return result
