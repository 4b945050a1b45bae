"""Fixtures of the integration tests: real servers, started once a session (with xdist: once a worker)."""

from collections.abc import Iterator

import pytest

from tests.support import exim as exims
from tests.support import jail
from tests.support import opensmtpd as opensmtpds
from tests.support.exim import Exim
from tests.support.opensmtpd import OpenSMTPD
from tests.support.postfix import postfix

__all__ = ["postfix"]


@pytest.fixture(scope="session")
def exim_here() -> None:
    """Skip the tests that want an Exim where none can run."""
    if reason := jail.missing(exims.PACKAGE):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def exim(exim_here: None) -> Iterator[Exim]:
    """Run Exim for the session. It delivers at once however many mails came before over the same connection."""
    with Exim("smtp_accept_queue_per_connection = 0") as running:
        yield running


@pytest.fixture(scope="session")
def opensmtpd_here() -> None:
    """Skip the tests that want an OpenSMTPD where none can run."""
    if reason := jail.missing(opensmtpds.PACKAGE):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def opensmtpd(opensmtpd_here: None) -> Iterator[OpenSMTPD]:
    """Run OpenSMTPD for the session."""
    with OpenSMTPD("smtp limit max-mails 100000") as running:
        yield running
