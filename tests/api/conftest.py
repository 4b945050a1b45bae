"""Fixtures of the API tests: the application with a relay that takes everything, until the test scripts it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.app import Application, running


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Application]:
    async with running(tmp_path) as service:
        yield service
