"""Why a text is not an address, and what to write instead: a table of the slips that callers really make.

Only called for a text that was refused, or that is not ASCII. Pure and linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata

# Octets before the @, RFC 5321 §4.5.3.1.1. Relays take more where they are ASCII: GitHub's reply addresses have 84.
MAX_INTERNATIONAL_LOCAL = 64
MAX_LABEL = 63  # octets, RFC 1035 §2.3.4
MAX_SPEC = 254  # octets of local@domain: RFC 5321 §4.5.3.1.3 less the brackets

DOT_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*\Z")
HOST = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\Z"
)

# What a language or a tool writes for a variable that has no value.
_NOTHING = frozenset(
    ["undefined", "null", "none", "nil", "nan", "n/a", "#n/a", "(null)", "(none)", "<null>", "true", "false"]
)
_OBJECT = re.compile(r"\[object \w{1,40}\]", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r"\{\{[^{}]{0,200}\}\}|\$\{[^{}]{0,200}\}|#\{[^{}]{0,200}\}|<?%=?[^<>%]{1,200}%>?|%\(\w{1,80}\)s"
    r"|\{\w{1,80}\}\Z|\[\w{1,80}\]\Z|\$\w{1,80}\Z|\{%[^{}]{0,200}%\}"
)
_JSON = re.compile(r"\[\s*[\"'{\[\]]|\{\s*[\"'}]")
_QUOTES = "'\"`\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a"
_SCHEME = re.compile(
    r"((?:mailto|e-?mail|mail|smtp|sips?|acct|xmpp|https?|from|to|b?cc|reply-to):)[^@]*@", re.IGNORECASE
)
_MARKDOWN = re.compile(r"\[[^\[\]]*\]\(")
_ENTITY = re.compile(r"&(?:lt|gt|quot|amp|nbsp|apos|commat|#\d{1,7}|#[xX][0-9A-Fa-f]{1,6});?")
_PERCENT_AT = re.compile(r"%40", re.ASCII)
_SPOKEN_AT = re.compile(r"\s*[\[({]\s*at\s*[\])}]\s*|\s+at\s+", re.IGNORECASE)
_OTHER_AT = frozenset("\uff20\ufe6b")
_JOINERS = "\u200c\u200d"  # an internationalised domain may hold them (RFC 5892 appendix A)
_SAFE_SPACE = " "


def absent_value(text: str) -> str | None:
    """Say that a text is what a variable without a value became, or a template that nobody filled; None = neither."""
    bare = text.strip().strip(_QUOTES).strip()
    if bare.lower() in _NOTHING:
        return f"{bare!r} is what a variable without a value becomes; fill the variable, or leave the field out"
    if _OBJECT.match(bare):
        return f"{bare[:50]!r} is an object that was turned into a string; send the object itself or its address"
    if "@" not in bare.replace("{{@", "") and (found := _PLACEHOLDER.match(bare)) and found.end() == len(bare):
        return (
            "it is a placeholder that was not filled; check the variable's name, and that the text is evaluated as a "
            "template (in n8n: an expression)"
        )
    return None


def nested_json(text: str) -> str | None:
    """Say that a text is JSON, where the JSON itself belongs; None where it is not."""
    bare = text.strip().strip(_QUOTES[:3]).strip()
    if not _JSON.match(bare) or absent_value(bare) or bare[-1] not in "]}":
        return None
    kind = "array" if bare.startswith("[") else "object"
    return (
        f"it is a JSON {kind} inside a string; send the {kind} itself, without quotes around it and without "
        "JSON.stringify()"
    )


def invisible_character(text: str, *, allowed: str = "") -> str | None:
    """Name the first character that nobody sees and where it is; None where there is none. A plain space is none."""
    for at, c in enumerate(text):
        if c == _SAFE_SPACE or c in allowed or (c.isascii() and c.isprintable()):
            continue
        if unicodedata.category(c) in ("Cc", "Cf", "Zs", "Zl", "Zp") or c in "\u034f\u115f\u1160\u3164\uffa0":
            kind = "a control" if unicodedata.category(c) == "Cc" else "an invisible"
            where = f"after {text[max(0, at - 20) : at]!r}" if at else "at the beginning"
            return f"it has {kind} character, U+{ord(c):04X}, {where}; remove it"
    return None


def slip_in(spec: str) -> str | None:
    """Return what is wrong with `spec` and what to write instead.

    None where only the rules of internationalised addresses (RFC 6531) can tell.
    """
    return (
        absent_value(spec)
        or nested_json(spec)
        or (None if spec.isascii() and spec.isprintable() else invisible_character(spec, allowed=_JOINERS))
        or _wrapping(spec)
        or _structure(spec)
    )


def _wrapping(spec: str) -> str | None:
    """Look for what surrounds an address: a scheme, markup, quotes, brackets."""
    if _MARKDOWN.match(spec):
        return "it is a link in Markdown; write the bare address: name@example.org"
    if found := _SCHEME.match(spec):
        return f"it begins with {found[1]!r}, which is not part of an address; remove it"
    if _ENTITY.search(spec):
        return "it is escaped for HTML (such as &lt;); write it unescaped: Name <name@example.org>"
    if len(spec) > 1 and spec[0] in _QUOTES and spec[-1] in _QUOTES:
        return "there are quotes around it; remove them: name@example.org"
    if "<<" in spec or ">>" in spec:
        return "the angle brackets are doubled; write: Name <name@example.org>"
    if spec.startswith("<") and ">" in spec.rstrip(">"):
        return "there is text behind the angle bracket; write the name first: Name <name@example.org>"
    if "<" in spec or ">" in spec:
        return "the angle brackets do not match; write: Name <name@example.org>"
    return None


def _structure(spec: str) -> str | None:
    local, at, domain = spec.rpartition("@")
    if not at:
        return _without_at(spec)
    if not local or not domain:
        return "something is missing beside the @; write name@example.org"
    if "=?" in local:
        return "an encoded word is not taken before the @; write it out: name@example.org"
    if '"' in local:
        return "quoted local parts are not taken; write name@example.org"
    if domain.startswith("["):
        return "an address literal is not taken; use the host's name"
    if "(" in spec or ")" in spec:
        return "comments are not taken; remove the brackets"
    if any(c.isspace() for c in spec):
        return "there is a space in it; separate several by a comma"
    if "@" in local:
        return "there is more than one @; separate several addresses by a comma"
    return _form(local, domain, spec)


def _without_at(spec: str) -> str:
    if not _OTHER_AT.isdisjoint(spec):
        return "the @ in it is another character (U+FF20); write name@example.org"
    if _PERCENT_AT.search(spec):
        return "it is URL-encoded (%40 is the @); decode it: write name@example.org"
    if _SPOKEN_AT.search(spec):
        return 'there is no @ in it, but an "at"; write name@example.org'
    cure = "write name@example.org"
    if " " in spec or "." not in spec:
        cure += '; if it is part of a name with a comma, quote the name: "Miller, Ann" <ann@example.org>'
    return f"there is no @ in it; {cure}"


def _form(local: str, domain: str, spec: str) -> str | None:
    if not local.isascii() and len(local.encode("utf-8", "replace")) > MAX_INTERNATIONAL_LOCAL:
        return f"the part before the @ is longer than {MAX_INTERNATIONAL_LOCAL} octets; use a shorter address"
    if len(spec) > MAX_SPEC or any(len(label) > MAX_LABEL for label in domain.split(".")):
        return f"it is too long: at most {MAX_SPEC} octets in all and {MAX_LABEL} between two dots of the domain"
    if domain.endswith(".") or ".." in spec or local.startswith(".") or local.endswith(".") or domain.startswith("."):
        return "a dot stands where none may be; write name@example.org"
    if domain.rpartition(".")[2].isdecimal():
        return "the domain is a number; use the host's name"
    if spec.isascii() and not ("--" in domain and HOST.match(domain) and DOT_ATOM.match(local)):
        return "it has characters that an address may not have; use letters, digits, dots and hyphens"
    return None
