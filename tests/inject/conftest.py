"""What tests of sessions and of the spool directory begin with: an authority, a file of users, disks that are fast."""

from __future__ import annotations

import os

import pytest

from tests.inject.access_helpers import Pki, make_pki, make_users


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority for all tests."""
    return make_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of users."""
    return make_users(tmp_path_factory.mktemp("users") / "users", acme="secret", bob="påss", certonly="")


@pytest.fixture
def disks_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of syncs matters here, not that they reach a disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
