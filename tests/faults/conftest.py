"""Fixtures of the fault tests: those of the integration tests."""

from tests.integration.conftest import directory, make_mta, sandbox

__all__ = ["directory", "make_mta", "sandbox"]
