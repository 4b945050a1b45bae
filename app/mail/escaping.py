"""Escape text of callers and relays, so that a terminal shows it and never obeys it. Pure.

Escaped is what Unicode does not call printable: C0 and C1 controls (ECMA-48 sequences begin with one), DEL, line and
paragraph separators, format characters (bidirectional overrides, zero-width characters), lone surrogates, unassigned
code points, and every space but U+0020. The escapes are Python's: `\\x1b`, `\\u202e`, `\\U000e0001`.
"""

from __future__ import annotations


def escape(text: str) -> str:
    """Return `text` as one printable line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
