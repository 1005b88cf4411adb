"""Prints how connections are spread over two listeners on one socket, as two workers have them.

    python -m tests.inject.balanced DIRECTORY
"""

from gevent import monkey

monkey.patch_all()

import socket  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import mta.inject.listener  # noqa: E402
from mta.config.hosts import Endpoint  # noqa: E402
from mta.config.schema import Config, Listener  # noqa: E402
from mta.inject.balance import Balance  # noqa: E402
from mta.inject.listener import SmtpListener  # noqa: E402
from mta.inject.occupancy import Occupancy  # noqa: E402


def main(directory: str) -> None:
    """With two that accept; then with one of them asleep."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(100)
        address = listening.getsockname()
        config = Config(hostname="mx.example.net", listeners=(Listener(smtp=Endpoint(*address)),))

        def listener(number: int) -> SmtpListener:
            return SmtpListener(listening.dup(), config, config.listeners[0], submit, lambda: None,
                                Occupancy(balance=Balance(directory, number, 2)))

        def connect(count: int) -> list[socket.socket]:
            clients = []
            for _ in range(count):
                clients.append(socket.create_connection(address))
                clients[-1].recv(100)  # the greeting
            return clients

        mta.inject.listener.COURTESY_S = 0.05
        one, two = listener(0), listener(1)
        one.start()
        two.start()
        clients = connect(20)
        print(one.sessions, "and", two.sessions, flush=True)
        for client in clients:
            client.close()
        one.stop()
        two.stop()
        one, two = listener(0), listener(1)
        one.start()
        clients = connect(5)
        print(one.sessions, "and", two.sessions, flush=True)
        for client in clients:
            client.close()
        one.stop()


def submit(*_: Any) -> None:
    """No message comes."""


if __name__ == "__main__":
    main(sys.argv[1])
