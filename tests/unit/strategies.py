"""What people, relays and attackers write: hypothesis strategies that more than one room needs."""

from __future__ import annotations

from hypothesis import strategies as st

from app.mail.address import Address

# Everything that may stand in a header field: no control character, no line or paragraph separator.
printable = st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp"))

# Pieces that have fooled a mail program before: encoded words that carry a line break (CVE-2024-6923), quotes and
# brackets that move an address (CVE-2023-27043), blanks that folding eats, characters that do not stand alone.
_TRICKS = (
    "x=?UTF-8?Q?=0A?=Bcc: evil@x",
    "=?utf-8?q?=0D=0ABcc=3A_evil@evil.example?=",
    "=?utf-8?B?DQpCY2M6IGV2aWxAeA==?=",
    "=?",
    "?=",
    "=?utf-8?q?a?= =?utf-8?q?b?=",
    "Bcc: evil@evil.example",
    '"',
    "\\",
    '\\"',
    "<",
    ">",
    "<evil@evil.example>",
    ", evil@evil.example",
    ";",
    "(",
    ")",
    "@",
    ":",
    " ",
    "  ",
    "\u00a0",
    "\u3000",
    "é",
    "e\u0301",
    "😀",
    "👩‍👩‍👧",
    "\u202eLTR",
    "שלום",
    "مرحبا",
    "\ufeff",
    "\u200b",
    "=0A",
    "%0d%0a",
    "ß",
    "a" * 80,
    "ü" * 40,
    "word " * 20,
)
tricky = st.lists(st.sampled_from(_TRICKS), min_size=1, max_size=6).map("".join)
header_texts = st.one_of(st.text(printable, max_size=120), tricky, st.builds("".join, st.lists(tricky, max_size=4)))

_atom = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789!#$%&'*+/=?^_`{|}~-", min_size=1, max_size=12)
locals_ = st.lists(_atom, min_size=1, max_size=4).map(".".join).filter(lambda local: "=?" not in local)
_label = st.from_regex(r"\A[a-z0-9](?:[a-z0-9-]{0,12}[a-z0-9])?\Z")
domains = st.builds(
    lambda labels, top: ".".join([*labels, top]), st.lists(_label, max_size=3), st.sampled_from(["example", "org"])
)
names = st.one_of(st.just(""), st.text(printable, max_size=80), tricky).map(str.strip)
addresses = st.builds(Address, locals_, domains, names)

_LINES = (
    ".",
    "..",
    ".\r\n",
    "\r\n.\r\n",
    "\n.\n",
    "\r.\r",
    "\r",
    "\n",
    "\r\n",
    "\n\n",
    "From here",
    "--=_",
    "é",
    "😀" * 30,
    "\x00",
    "\x1b[31m",
    "\x0b",
    "\x0c",
    "\x85",
    "\u2028",
    "=",
    "=20",
    " ",
    "\t",
    "trailing \n",
    "trailing\t\r\n",
    "x" * 75,
    "x" * 998,
    "x" * 999,
    "ü" * 600,
    "MAIL FROM:<evil@evil.example>\r\n",
)
bodies = st.one_of(
    st.text(max_size=300),
    st.lists(st.sampled_from(_LINES), max_size=12).map("".join),
    st.lists(st.text(max_size=1200), max_size=3).map("\r\n.\r\n".join),
)
