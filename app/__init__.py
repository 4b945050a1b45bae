"""Mailchute: an HTTP service that sends e-mail through your relay, and remembers every attempt."""

from importlib.metadata import version

__version__ = version("mailchute")
