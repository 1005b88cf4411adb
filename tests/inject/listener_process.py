"""An SMTP listener in a process of its own, patched by gevent as a worker is, for `test_listener.py`.

Run with a JSON object of settings as its argument. It prints `["listening", port]`, then one JSON list per event:
`["message", sender, recipients, length, origin]` when a message is handed over, `["stopped"]` after `stop`. It reads
commands from stdin, one per line: `release` lets one message go on that was sent by `hold@...`, `stop SECONDS`,
`sessions`, `room yes|no`, `relay NETWORK` reloads with another `relay_from`, `config TEXT` with other options,
`refresh` looks for changed files, `source` tells of the last message, `checks` what is different in `checks` for it,
`exhaust` and `relieve` take and give back all file descriptors,
`busy`: each turn of the loop is over at once, and `turns` tells how often somebody stood in line for the next,
`steal` takes every one that the listener gives up from now on, `starve` leaves no memory for the next session.
With the setting `clock` the sessions' time passes by `pass SECONDS` alone, and `heard` tells how many octets they have
read so far, and how often a client did not take what it was sent.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from dataclasses import replace  # noqa: E402
from ipaddress import ip_network  # noqa: E402
from types import SimpleNamespace  # noqa: E402

import gevent  # noqa: E402
from gevent.fileobject import FileObjectThread  # noqa: E402
from gevent.lock import Semaphore  # noqa: E402

import mta.inject.listener  # noqa: E402
from mta.config.hosts import Endpoint  # noqa: E402
from mta.config.loader import loads  # noqa: E402
from mta.config.schema import Config, Listener, Memory, SmtpIn, SmtpTimeouts  # noqa: E402
from mta.config.units import Duration, Size  # noqa: E402
from mta.inject.listener import SmtpListener  # noqa: E402
from mta.inject.logins import Logins  # noqa: E402
from mta.inject.occupancy import Occupancy  # noqa: E402
from mta.inject.usage import Usage  # noqa: E402
from mta.loop.burst import Burst  # noqa: E402
from mta.smtp.reply import Reply  # noqa: E402
from tests.inject.listener_clock import HandClock  # noqa: E402

settings = json.loads(sys.argv[1])
released = Semaphore(0)
state = SimpleNamespace(closed=None, taken=[], config=None, turns=0)
clock = HandClock() if "clock" in settings else None


def tell(*event):
    """Print an event."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def submit(envelope, content, source, done):
    """Take every message but those whose sender says otherwise."""
    tell("message", envelope.sender, [to.address for to in envelope.recipients], len(content), source.origin)
    state.source = source
    if envelope.sender.startswith("fail@"):
        raise RuntimeError("as asked for")
    if envelope.sender.startswith("refuse@"):
        done(Reply(554, "5.4.6", ("Too many hops",)))
        return
    reply = Reply(250, "2.0.0", ("Ok: queued as 1",))
    if envelope.sender.startswith("hold@"):
        gevent.spawn(lambda: (released.acquire(), done(reply)))
    else:
        gevent.get_hub().loop.run_callback(done, reply)


def obey(listener, command, *arguments):
    """Carry out a command."""
    if command == "release":
        released.release()
    elif command == "stop":
        began_s = time.monotonic()
        listener.stop(began_s + float(arguments[0]))
        tell("stopped", time.monotonic() - began_s)
    elif command == "checks":
        checks = state.source.checks
        tell("checks", checks and [checks.repeated, checks.missing_from, *checks.from_domains])
    elif command == "source":
        labels = state.source.labels
        tell("source", state.source.tls, state.source.authenticated, labels.tenant if labels else None)
    elif command == "pass":
        clock.go_on(float(arguments[0]))
        tell("ok")
    elif command == "heard":
        tell("heard", clock.heard, clock.choked)
    elif command == "sessions":
        tell("sessions", listener.sessions)
    elif command == "room":
        state.closed = None if arguments[0] == "yes" else Reply(452, "4.3.1", ("Disk is nearly full",))
        tell("ok")
    elif command == "relay":
        networks = (ip_network(arguments[0]),)
        listeners = tuple(replace(found, relay_from=networks) for found in state.config.listeners)
        listener.configure(replace(state.config, listeners=listeners))
        tell("ok")
    elif command == "config":
        state.config = with_port(json.loads(" ".join(arguments)), state.config.listeners[0].smtp)
        listener.logins.configure(state.config)
        listener.configure(state.config)
        tell("ok")
    elif command == "refresh":
        listener.logins.refresh()
        listener.refresh()
        gevent.sleep(0)
        while (listener.logins.config.access.users_file and not listener.logins._state) or listener.refreshing:
            gevent.sleep(0.01)
        tell("ok")
    elif command == "exhaust":
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        try:
            while True:
                state.taken.append(os.dup(2))
        except OSError:
            tell("ok")
    elif command == "steal":
        close = mta.inject.listener._close

        def close_and_steal(fd):
            close(fd)
            state.taken.append(os.dup(2))

        mta.inject.listener._close = close_and_steal
        tell("ok")
    elif command == "starve":
        session = mta.inject.listener.Session

        def no_memory(*arguments, **options):
            mta.inject.listener.Session = session
            raise MemoryError

        mta.inject.listener.Session = no_memory
        tell("ok")
    elif command == "busy":
        later = Burst.later

        def note_and_later(burst, call, *arguments):
            state.turns += 1
            later(burst, call, *arguments)

        Burst.is_over, Burst.later = (lambda burst: True), note_and_later
        tell("ok")
    elif command == "turns":
        tell("turns", state.turns)
    elif command == "relieve":
        mta.inject.listener._close = os.close
        for fd in state.taken:
            os.close(fd)
        tell("ok")


def with_port(text, endpoint):
    """A configuration for the listener that there is."""
    config = loads(text)
    return replace(config, listeners=(replace(config.listeners[0], smtp=endpoint),))


counts = {}


def count(name, number, limit, period_s):
    """As `Limits.count`, for one process and one period."""
    total = counts.get(name, 0) + number
    if number > 0 and limit is not None and total > limit:
        return False
    counts[name] = max(total, 0)
    return True


def main():
    """Listen and obey until stdin ends."""
    if "log" in settings:
        logging.basicConfig(level=settings["log"])
    limits = dict(settings.get("smtp", {}))
    if "message_size" in limits:
        limits["message_size"] = Size(limits["message_size"])
    if "timeouts" in limits:
        limits["timeouts"] = SmtpTimeouts(**{key: Duration(value) for key, value in limits["timeouts"].items()})
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    if "sndbuf" in settings:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings["sndbuf"])  # accepted sockets inherit it
    sock.listen(100)
    port = sock.getsockname()[1]
    networks = tuple(ip_network(network) for network in settings.get("relay_from", ["127.0.0.0/8"]))
    config = state.config = Config(
        hostname="mx.example.net",
        listeners=(Listener(smtp=Endpoint("127.0.0.1", port), relay_from=networks),),
        smtp=SmtpIn(**limits),
        memory=Memory(receiving=Size(settings.get("receiving", 256_000_000))),
    )
    if "config" in settings:
        config = state.config = with_port(settings["config"], config.listeners[0].smtp)
    if "unix" in settings:
        sock.close()
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(settings["unix"])
        sock.listen(100)
    lenient = "lenient" in settings
    listener = SmtpListener(sock, config, config.listeners[0], submit, lambda: state.closed, Occupancy(),
                            Logins(config, lenient=lenient), Usage(count), lenient=lenient)
    listener.start()
    tell("listening", port)
    commands = FileObjectThread(sys.stdin.buffer, "rb")
    for line in iter(commands.readline, b""):
        gevent.spawn(obey, listener, *line.decode().split())


main()
