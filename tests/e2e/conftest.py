"""Fixtures of the tests of the whole program: a real Postfix, started once a session (with xdist: once a worker)."""

from collections.abc import Iterator

import pytest

from tests.support.postfix import Postfix, missing


@pytest.fixture(scope="session")
def postfix() -> Iterator[Postfix]:
    """Run Postfix for the session; the tests that want it are skipped where it cannot run."""
    if reason := missing():
        pytest.skip(reason)
    with Postfix() as running:
        yield running
