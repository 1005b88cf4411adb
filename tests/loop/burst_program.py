"""A hundred connections whose peers speak in the same instant: what each turn of the loop serves, in a patched process.

Each look at the clock is a millisecond, so that turns are counted and not timed.
"""

from gevent import monkey

monkey.patch_all()

import socket  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402

import gevent  # noqa: E402
from gevent.hub import get_hub  # noqa: E402

from mta.delivery.ourselves import AF_INET  # noqa: E402
from mta.delivery.wire import Sweeper, Wire  # noqa: E402
from mta.loop import burst as module  # noqa: E402

CONNECTIONS = 100
WORDS = 3


class Clock:
    """A millisecond passes at each look."""

    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.001
        return self.now_s


def main() -> None:
    """All that was sent is read once, in turns of a bounded size, and others get their turns in between."""
    loop = get_hub().loop
    sweeper = Sweeper()
    sweeper.burst = module.Burst(Clock())
    server = socket.create_server(("127.0.0.1", 0), backlog=CONNECTIONS)
    served: Counter[int] = Counter()
    heard: list[bytes] = []

    def talk(wire: Wire) -> None:
        wire.deadline = time.monotonic() + 60.0
        wire.connect(AF_INET, *server.getsockname(), None)
        for _ in range(WORDS):
            data = wire.read()
            served[loop.iteration] += 1
            assert isinstance(data, bytes)
            heard.append(data)
        wire.close()

    talks = [gevent.spawn(talk, Wire(sweeper)) for _ in range(CONNECTIONS)]
    peers = [server.accept()[0] for _ in range(CONNECTIONS)]
    gevent.sleep(0.01)
    for word in range(WORDS):
        for peer in peers:
            peer.sendall(b"%d" % word)  # which does not wait
        others = 0
        while len(heard) < (word + 1) * CONNECTIONS:
            others += 1
            gevent.sleep(0)
        assert others > 2, "nobody else had a turn in between"
    gevent.joinall(talks, raise_error=True)
    # As many as the turn has milliseconds: those in line first, then others.
    most = round(module.TURN_S * 1000) + 1
    assert max(served.values()) <= most, served
    assert Counter(heard) == {b"%d" % word: CONNECTIONS for word in range(WORDS)}, Counter(heard)
    assert len(sweeper.burst) == 0
    print("served")


if __name__ == "__main__":
    main()
