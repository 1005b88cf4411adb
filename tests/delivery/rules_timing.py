"""What a ruling costs, by hand: `python tests/delivery/rules_timing.py`. Microseconds for one reply; no test."""

from __future__ import annotations

import time
from functools import partial

from mta.config.loader import loads
from mta.config.reply_patterns import TEXT_LIMIT
from mta.config.reply_rules import STAGES
from mta.delivery.rules import RuleBook
from mta.smtp.reply import Reply

BOOK = RuleBook(loads("hostname: mta.example.net").rules)
TRAPS = ("a", "mailbox ", "user ", "5.1.1 ", "exceed message size ", "account recipient address mailbox ",
         "from sender ", "1.1.1.1 ", "sender domain does not ", "\u0130")


def main() -> None:
    """Print the figures."""
    reply = Reply(550, "5.1.1", ("<user@example.org>: Recipient address rejected: User unknown",))
    print(f"{'seen before':44}{timed(lambda: BOOK.judge('google', 'rcpt', reply), 200_000):10.2f}")
    for text in ("Recipient address rejected: User unknown", "no idea", "blocked using zen.spamhaus.org",
                 "You shall not pass " * 6):
        new = Reply(550, "5.7.1", (text,))
        print(f"{'new: ' + text[:38]:44}{timed(lambda new=new: BOOK.look_up('google', 'rcpt', new), 2000):10.2f}")
    worst = max((timed(partial(BOOK.look_up, provider, stage, Reply(550, "", (trap * 100_000,))), 3), trap, provider)
                for trap in TRAPS for provider in ("", "google", "netease") for stage in STAGES)
    print(f"{'worst of the hostile, cut to ' + str(TEXT_LIMIT):44}{worst[0]:10.2f}  {worst[1:]}")


def timed(function: object, times: int) -> float:
    """Microseconds for one call, the best of five rounds."""
    assert callable(function)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(times):
            function()
        best = min(best, time.perf_counter() - begun)
    return best / times * 1e6


if __name__ == "__main__":
    main()
