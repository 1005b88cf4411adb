"""Sessions for mail that requires TLS: what they are opened with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mta.config.schema import Source
from mta.delivery import sources
from mta.delivery.protection import Protection


def test_authorities_that_cannot_be_read_are_told_to_the_caller_alone(
        tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The file is gone since the configuration was read: who opens the session says so. No traceback on stderr."""
    config: Any = SimpleNamespace(delivery=SimpleNamespace(ca_file=str(tmp_path / "gone.pem")))
    engine: Any = None
    context: Any = None
    protection = Protection(engine)
    protection.configure(config)
    with pytest.raises(FileNotFoundError):
        protection.context(sources.Source("", Source(), "mta.test", context))
    assert capfd.readouterr().err == ""
