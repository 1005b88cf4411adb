"""Names of system users: looked up in a thread, once for all who wait, and kept."""

from __future__ import annotations

import pwd
import threading
from types import SimpleNamespace

import gevent
import pytest

from mta.inject import usernames
from mta.inject.usernames import UserNames


class Directory:
    """Stands for the directory service."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[int, str] = {}
        self.asked: list[int] = []
        self.broken = False
        self.answers = threading.Event()
        self.answers.set()
        monkeypatch.setattr(pwd, "getpwuid", self._look_up)

    def _look_up(self, uid: int) -> SimpleNamespace:
        assert threading.current_thread() is not threading.main_thread()
        self.asked.append(uid)
        assert self.answers.wait(20)
        if self.broken:
            raise MemoryError
        return SimpleNamespace(pw_name=self.names[uid])


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Directory:
    """In the place of the system's."""
    return Directory(monkeypatch)


def find(names: UserNames, *uids: int) -> list[str]:
    """What the names of these are said to be, all asked for at once."""
    found: list[str] = []
    for uid in uids:
        names.find(uid, found.append)
    with gevent.Timeout(20):
        while len(found) < len(uids):
            gevent.sleep(0.001)
    return found


def test_a_name_is_looked_up_once(directory: Directory) -> None:
    """However many connections there are, at the same time or later."""
    names = UserNames()
    directory.names[7] = "acme"
    assert find(names, 7, 7, 7) == ["acme"] * 3
    assert find(names, 7) == ["acme"]
    assert directory.asked == [7]


def test_the_hub_does_not_wait(directory: Directory) -> None:
    """A directory that does not answer holds up nobody but who asked."""
    names = UserNames()
    directory.answers.clear()
    directory.names |= {7: "acme", 8: "bob"}
    found: list[str] = []
    names.find(7, found.append)
    with gevent.Timeout(20):
        while not directory.asked:
            gevent.sleep(0.001)
    assert (directory.asked, found) == ([7], [])
    directory.answers.set()
    assert sorted(find(names, 8, 7)) == ["acme", "bob"]
    assert found == ["acme"]


def test_who_has_no_name_is_asked_for_again(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each connection, nor never: now and then, until there is a name."""
    names = UserNames()
    assert find(names, 7, 7) == find(names, 7) * 2 == ["7", "7"]
    assert directory.asked == [7]
    monkeypatch.setattr(usernames, "NAMELESS_S", 0.0)
    names = UserNames()
    assert find(names, 7) == ["7"]
    directory.broken = True
    assert find(names, 7) == ["7"]
    directory.broken = False
    directory.names[7] = "acme"
    assert find(names, 7) == ["acme"]
    assert directory.asked == [7] * 4
