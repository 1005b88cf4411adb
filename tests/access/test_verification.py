"""Checking passwords in threads, without a hub: completions are collected by the test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import argon2
import pytest

from mta.access import passwords, verification
from mta.access.verification import Verifier

HASH = argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("secret")


class Hub:
    """Collects what the threads have done."""

    def __init__(self, **options: Any) -> None:
        self.woken = threading.Semaphore(0)
        self.verifier = Verifier(self.woken.release, **{"threads": 2, "remembered_s": 60.0} | options)
        self.answers: list[tuple[str, bool | None]] = []

    def ask(self, user: str, password: str, stored: str = HASH) -> None:
        """Ask about a password."""
        self.verifier.verify(user, password, stored, lambda right: self.answers.append((user, right)))

    def wait(self, number: int) -> list[tuple[str, bool | None]]:
        """That many answers."""
        while len(self.answers) < number:
            assert self.woken.acquire(timeout=30)
            self.verifier.collect()
        return self.answers


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Two threads."""
    hub = Hub()
    yield hub
    hub.verifier.close()


def test_yes_no_and_nobody(hub: Hub) -> None:
    """Right and wrong are told apart; of a user that does not exist a hash is computed, and the answer is no."""
    hub.ask("a", "secret")
    hub.ask("b", "wrong")
    hub.ask("c", "secret", "")
    assert sorted(hub.wait(3)) == [("a", True), ("b", False), ("c", False)]
    assert hub.verifier.computed == 3


def test_what_is_not_wanted_any_more_takes_no_time() -> None:
    """Whether it is, is asked when its turn comes, after the answers to those before it: a wrong one may have made the
    others unwanted."""
    hub = Hub(threads=1)
    wrong: list[str] = []

    def ask(user: str) -> None:
        def answer(right: bool | None) -> None:
            hub.answers.append((user, right))
            if right is False:
                wrong.append(user)

        hub.verifier.verify(user, "wrong", HASH, answer, wanted=lambda: len(wrong) < 2)

    for user in "abcdef":
        ask(user)
    assert hub.wait(6) == [("a", False), ("b", False), *((user, None) for user in "cdef")]
    assert hub.verifier.computed == 2
    hub.verifier.close()


def test_what_was_right_is_remembered(hub: Hub) -> None:
    """The same password of the same entry needs no thread; others, and other entries, do; wrong ones always."""
    hub.ask("a", "secret")
    hub.wait(1)
    hub.ask("a", "secret")
    assert hub.answers == [("a", True)] * 2
    assert hub.verifier.computed == 1
    hub.ask("a", "wrong")
    hub.wait(3)
    hub.ask("a", "wrong")
    hub.ask("b", "secret")
    hub.ask("a", "secret", passwords.hash_password("other"))
    assert sorted(hub.wait(6)[2:]) == [("a", False)] * 3 + [("b", True)]
    assert hub.verifier.computed == 5


def test_nothing_is_remembered_when_off() -> None:
    """`remembered: 0` computes each time."""
    hub = Hub(remembered_s=0)
    for number in range(3):
        hub.ask("a", "secret")
        hub.wait(number + 1)
    assert hub.verifier.computed == 3
    hub.verifier.close()


def test_who_asks_the_same_at_once_shares_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that opens a thousand connections at once has its password computed once, and nobody waits in vain."""
    monkeypatch.setattr(verification, "WAITING", 3)
    gate = threading.Semaphore(0)
    monkeypatch.setattr(passwords, "verify", lambda stored, password: gate.acquire() and password == "secret")
    hub = Hub(threads=1)
    for _ in range(1000):
        hub.ask("a", "secret")
        hub.ask("a", "wrong")
    gate.release()
    gate.release()
    assert sorted(set(hub.wait(2000))) == [("a", False), ("a", True)]
    assert [right for _, right in hub.answers].count(True) == 1000
    assert hub.verifier.computed == 2
    hub.verifier.close()


def test_who_does_not_exist_takes_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of somebody who does is computed for it; the answer is no, even if the password is that one's."""
    computed: list[str] = []
    monkeypatch.setattr(passwords, "verify", lambda stored, password: computed.append(stored) or True)
    hub = Hub()
    hub.verifier.verify("nobody", "secret", "", lambda right: hub.answers.append(("nobody", right)), stand_in=HASH)
    assert hub.wait(1) == [("nobody", False)]
    assert computed == [HASH]
    hub.verifier.close()


def test_the_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes when too many wait is told to come again, at once; there are never more threads than allowed."""
    monkeypatch.setattr(verification, "WAITING", 3)
    gate = threading.Semaphore(0)
    monkeypatch.setattr(passwords, "verify", lambda stored, password: gate.acquire())
    hub = Hub(threads=1)
    for number in range(6):
        hub.ask(str(number), "secret")
    assert hub.answers == [("4", None), ("5", None)]
    for _ in range(4):
        gate.release()
    assert len(hub.wait(6)) == 6
    hub.verifier.close()


def test_a_bug_answers_and_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What a check raises is in the log, and its client is told to come again; those that end with it are answered."""
    def verify(stored: str, password: str) -> bool:
        if password == "secret":
            return True
        raise RuntimeError("as asked for")
    monkeypatch.setattr(passwords, "verify", verify)
    hub = Hub(threads=3)
    for password in ("wrong", "wronger", "secret"):
        hub.ask("a", password)
        assert hub.woken.acquire(timeout=30)
    hub.verifier.collect()  # once: how often the hub was woken is not told
    assert hub.answers == [("a", None), ("a", None), ("a", True)]
    hub.verifier.close()
    assert caplog.text.count("RuntimeError: as asked for") == 2
    assert "wrong" not in caplog.text
