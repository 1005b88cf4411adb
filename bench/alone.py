"""One session alone: what its messages cost in clear and in TLS, by three sessions that take turns in one MTA.

Two runs, each with an MTA of its own, differ by more than TLS costs. And a client that encrypts pauses longer before
each command, which makes a message dearer in clear, too: the worker has slept, and the caches hold other things. So
three sessions of one MTA with one worker send 60 messages in turn, in an order that changes: one in clear, one in clear
whose client encrypts and decrypts as much as one in TLS, for nobody, and one in TLS 1.3 (STARTTLS). What counts is the
worker's CPU time in a turn, by the kernel's nanoseconds. A cost is the median of all turns; what TLS adds is the median
of the differences of turns with the same number, which follow each other, so that load beside them is in both.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from array import array
from pathlib import Path

from bench.candidate import CandidateError, Setup, runtime_directory
from bench.client import Client
from bench.loopback import consecutive
from bench.measure import Plan, Run, start_nameserver, start_sink
from bench.others import Others
from bench.ours import NAME, Ours
from bench.processes import Account, account, find, threads_cpu_s, wait_until_quiet
from bench.programs import Program, ProgramError, free_port
from bench.scenarios import FIRST_ADDRESS, Scenario
from bench.source import Content, quantile_ms
from bench.tlsclient import ForNobody, TlsClient

TURN = 60
"""Messages."""
_COMMANDS = 4  # with the content, of one message
_LATE_S = 0.03  # for what the last message of a turn has the MTA do after its 250
_QUIET_S = 20.0
_OTHERS_MOST = 0.3


class Timed(Client):
    """A session in clear, and what it took."""

    def __init__(self, address: str) -> None:
        self.worker_ms: list[float] = []
        """CPU time of the worker for one message, a figure for each turn."""
        self.own_ms: list[float] = []
        """The same of the client."""
        self.whole_s = array("d")
        """From MAIL to the final 250 of each message."""
        super().__init__(address)

    def ready(self) -> None:
        """Do what does not belong into a turn."""

    def send(self, content: Content, number: int) -> float:
        began_s = time.monotonic()
        dot_s = super().send(content, number)
        self.whole_s.append(time.monotonic() - began_s)
        return dot_s


class SlowClient(Timed):
    """One in clear that is as slow as one in TLS."""

    def __init__(self, address: str, certificate: Path) -> None:
        self._end = ForNobody(str(certificate), TURN * _COMMANDS)
        super().__init__(address)

    def ready(self) -> None:
        self._end.prepare(TURN * _COMMANDS)

    def _write(self, data: bytes) -> None:
        super()._write(self._end.encrypt(data))

    def _read(self) -> bytes:
        return self._end.decrypt(super()._read())


class TlsSession(Timed):
    """One in TLS."""

    def __init__(self, address: str) -> None:
        self._end = TlsClient(False).connect()
        super().__init__(address)
        self.say(b"STARTTLS\r\n")
        self._end.decrypt(b"")
        while not self._end.done:
            self._socket.sendall(self._end.output())
            self._end.decrypt(super()._read())
        self._socket.sendall(self._end.output())
        self.say(b"EHLO source.test\r\n")

    def _write(self, data: bytes) -> None:
        super()._write(self._end.encrypt(data) if self._end.done else data)

    def _read(self) -> bytes:
        data = super()._read()
        return self._end.decrypt(data) if self._end.done else data


def measure(plan: Plan, case: Scenario, number: int, certificate: Path, directory: Path) -> tuple[Run, Run, Run]:
    """Round `number` in `directory`, which is empty: in clear, in clear by a slower client, in TLS.

    The case's messages are those of each. What went wrong is in their `problems`.
    """
    runs = tuple(Run(case.name, NAME, number, 0) for _ in range(3))
    turns = max(case.messages // TURN, 1)
    sent = Scenario(case.name, case.title, (turns + 1) * TURN * len(runs), receivers_up=case.receivers_up)
    processes = account(f"{case.name}-{number}")
    problems: list[str] = []
    with contextlib.ExitStack() as ends:
        ends.callback(processes.close)
        try:
            _measure(plan, sent, turns, runs, processes, certificate, directory, ends, problems)
        except (ProgramError, CandidateError, OSError) as error:
            problems.append(str(error))
    for run in runs:
        run.problems += problems
    clear, slow, tls = runs
    return clear, slow, tls


def _measure(plan: Plan, sent: Scenario, turns: int, runs: tuple[Run, ...], processes: Account, certificate: Path,
             directory: Path, ends: contextlib.ExitStack, problems: list[str]) -> None:
    port = free_port(consecutive(FIRST_ADDRESS, sent.addresses))
    nameserver, dns = start_nameserver(sent, directory)
    ends.callback(nameserver.stop)
    sink = start_sink(plan, sent, port, directory)
    if sink is not None:
        ends.callback(sink.stop)
    place = directory / NAME
    place.mkdir(mode=0o755)
    runtime = ends.enter_context(runtime_directory())
    settings = {**plan.settings, "certificates": [{"certificate": str(certificate)}], "listeners": [
        {"smtp": "127.0.0.1:0", "relay_from": ["127.0.0.0/8"], "tls": "offered"}]}
    mta = Ours(Setup(place, runtime, processes, dns, port, "1", None, settings))
    ends.callback(lambda: problems.extend(mta.stop()))
    address = mta.start()
    wait_until_quiet(processes, _QUIET_S)
    worker = find(processes, "worker")
    if worker is None:
        raise CandidateError("there is no worker")

    before_s, others = processes.cpu_s(), Others()
    clients = []
    for make in (lambda: Timed(address), lambda: SlowClient(address, certificate), lambda: TlsSession(address)):
        clients.append(client := make())
        ends.callback(client.close)
    _take_turns(clients, worker, Content(sent.size, sent.domains, 1, sent.zone), turns)
    if sink is not None:
        sink.wait(plan.limit_s)
    wait_until_quiet(processes, _QUIET_S)
    cores = others.cores(processes.cpu_s() - before_s + (sink.cpu_s if sink is not None else 0.0))

    for run, client in zip(runs, clients, strict=True):
        _fill(run, client)
        if cores > _OTHERS_MOST:
            run.notes.append(f"others used {cores:.1f} cores meanwhile: not to be trusted")
    problems += missing(sent, mta.queued(), sink)


def _take_turns(clients: list[Timed], worker: int, content: Content, turns: int) -> None:
    """Send everything; the first turn of each is for warmth."""
    numbers = iter(range((turns + 1) * TURN * len(clients)))
    for turn in range(turns + 1):
        for client in random.sample(clients, len(clients)):
            client.ready()
            before_s, own_s = threads_cpu_s(worker), time.process_time()
            for _ in range(TURN):
                client.send(content, next(numbers))
            own_s = time.process_time() - own_s
            time.sleep(_LATE_S)
            if turn:
                client.worker_ms.append((threads_cpu_s(worker) - before_s) / TURN * 1000)
                client.own_ms.append(own_s / TURN * 1000)
            else:
                del client.whole_s[:]


def _fill(run: Run, client: Timed) -> None:
    """The figures of one session's turns; of all others a run has none here."""
    run.expected = run.accepted = len(client.whole_s)
    run.seconds = sum(client.whole_s)
    run.rate = run.accepted / run.seconds
    run.cpu_s = sum(client.worker_ms) * TURN / 1000
    run.cpu_ms, run.turns_ms = statistics.median(client.worker_ms), [round(ms, 4) for ms in client.worker_ms]
    run.cpu_how = f"the worker's threads, median of {len(client.worker_ms)} turns"
    run.syncs_why_not = "not counted for each session"
    run.source_cpu_ms = statistics.median(client.own_ms)
    run.ack_p50_ms, run.ack_p99_ms = quantile_ms(client.whole_s, 0.50), quantile_ms(client.whole_s, 0.99)


def missing(sent: Scenario, queued: int, sink: Program | None) -> list[str]:
    """Every message once at the sink, or in the queue when there is no sink."""
    problems = []
    if sink is not None:
        came = sink.result()
        if int(came["distinct"]) != sent.expected or came["dups"]:
            problems.append(f"{came['distinct']:.0f} of {sent.expected} messages arrived, {came['dups']:.0f} twice")
    if queued != (in_queue := 0 if sink is not None else sent.expected):
        problems.append(f"{queued} in the queue at the end instead of {in_queue}")
    return problems
