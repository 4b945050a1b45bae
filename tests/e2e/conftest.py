"""Fixtures of the tests of the whole program."""

from tests.support.postfix import postfix

__all__ = ["postfix"]
