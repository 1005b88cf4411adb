"""What holds for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine makes no test fail
settings.load_profile("untimed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What root may do anyway is not tested as root; `.ci/run` runs those tests as another user."""
    if os.geteuid() == 0 and item.get_closest_marker("ordinary_user"):
        pytest.skip("needs an ordinary user: root may")
