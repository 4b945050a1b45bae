"""Whether a refusal means "not so much" or "not yet": rate limits and greylisting, told by the words.

Codes do not tell: relays say it with 421, 432, 450, 451, 452, 454 and even 550. So the words do, and what looks
like a limit and is none (a full mailbox, too many errors, a recipient's own quota) is sorted out first. Held by
replies that real relays sent (tests/contract/recorded_replies.py). Pure.
"""

from __future__ import annotations

import re

from app.mail.codes import Reason
from app.mail.outcome import Phase
from app.mail.reply import Reply

_REPEATED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?:\s+|\Z)")  # the enhanced code stands on every line of a reply
_ADDRESS = re.compile(r"<[^<>\s]*>")  # a mailbox may be called rate-limit@ or greylist@

# RFC 3463: mailbox full, message too long for it, system full, message too big for it.
_NO_LIMIT_CODES = frozenset({"2.2", "2.3", "3.1", "3.4"})
_NO_LIMIT = re.compile(
    r"too many (?:errors|hops|bad |unrecogni[sz]ed|unknown|invalid|syntax|related|received|recipient attempts"
    r"|messages (?:in this connection|sent)|recipients\b(?! (?:from|received this)))"
    r"|max message per connection"
    r"|\bis receiving mail\b|\brecipient has exceeded\b|\bqueue quota\b"  # the recipient's or the server's own limit
    r"|mailbox (?:size|quota|storage)|\b(?:size|storage|disk|user) (?:limit|quota)\b|exceeded storage|out of storage"
    r"|\btime[d-]?\s?out\b|\btimeout\b"
    r"|mailbox (?:is )?(?:full|busy)|over ?quota|MapiExceptionShutoff"
    r"|insufficient (?:system|disk)|space shortage",
    re.IGNORECASE,
)
_GREYLISTED = re.compile(r"\bgr[ae]y-?\s?list", re.IGNORECASE)
# No word of it, but the whole text is what a known greylister says (rspamd, relaydelay, hMailServer, greylistd).
_GREYLISTED_BARE = re.compile(
    r"(?:please )?try again later(?: \(TEMPFAIL\))?\.?(?:: .*)?"
    r"|\S+ is not yet authorized to deliver mail from .*",
    re.IGNORECASE,
)
_COME_BACK = re.compile(
    r"(?:come back|try again|retry|again)\D{0,20}?\b(?:in|after)\s+(?:(\d{1,2}):(\d\d):(\d\d)|(\d{1,6})\b\s*"
    r"(m(?:in|ins|inutes?)?\b|h(?:ours?|rs?)?\b)?)",
    re.IGNORECASE,
)
_WORN_OUT = re.compile(
    r"\btoo many (?:(?:syntax|protocol|smtp|syntax or protocol) )?errors\b"
    r"|\btoo many (?:bad|failed|invalid|non-?existent|rejected|unknown|unrecogni[sz]ed|non-?mail) "
    r"(?:commands?|recipients?|rcpts?|users?|addresses|mailboxes)\b",
    re.IGNORECASE,
)
_TOO_MANY_RECIPIENTS = re.compile(r"\btoo many recipients\b", re.IGNORECASE)
_IN_TRANSACTION = (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.CONTENT)
LONGEST_WAIT = 3600.0  # seconds; whoever asks for more is tried after an hour all the same
_RATE_LIMITED = re.compile(
    r"too many (?:(?:concurrent|open|new|simultaneous) )?(?:smtp |tls )?(?:connections|sessions)\b"
    r"|too many (?:login attempts|auth commands|emails\b|recent messages|recipients (?:from|received this))"
    r"|too much mail from|too frequent connects"
    r"|\brate[- ]?limit"
    r"|\b(?:sending|send|submission|connections?|relay|messages?|message submission|recipients?|login) "
    r"(?:rate |quota |limits? )?[^.;<>]{0,40}?\b(?:limits?|quota|rate)\b[^.;<>]{0,40}?\b(?:exceeded|reached)"
    r"|\b(?:limit|rate) (?:is |was |has been |for this client has )?(?:exceeded|reached)\b"
    r"|\b(?:daily|hourly|monthly|per second|per minute|per hour|per day)\b[^.;<>]{0,40}\b(?:exceeded|reached)\b"
    r"|(?:exceeded|over) (?:the |your |its )?(?:max(?:imum)? )?(?:number of connections|(?:messaging|sending) limits?"
    r"|emails? per (?:hour|day))"
    r"|concurrent (?:server )?connections\b.{0,30}\bexceeded"
    r"|(?:messages?|emails|sigv2 smtp) [a-z ]{0,24}\b(?:rate|limit|quota) exceeded|maximum credits exceeded"
    r"|SubmissionQuotaExceeded|maximum tls rate exceeded"
    r"|\bthrottl(?:ed|ing)\b(?! due to continuous)|\bunusual (?:rate of|sending activity)"
    r"|\b(?:excessive|unexpected) volume\b|temporarily rate limited"
    r"|trop de connexions|slow down\b"
    r"|try again later, closing connection"  # Google
    r"|\bserver busy\. please try again later from \["  # Microsoft, 451 4.7.500
    r"|\btry again slower\b|\b(?:connection|ip|sender|domain) frequency limited"
    r"|please wait to send more",
    re.IGNORECASE,
)
_OF_CONNECTIONS = re.compile(r"\b(?:connect\w*|connexions?|sessions?|concurrent|threads?|tls)\b", re.IGNORECASE)
# 5xx: only what certainly speaks of our own rate.
_RATE_LIMITED_FOR_GOOD = re.compile(
    r"daily (?:user sending|smtp relay) (?:limit|quota) exceeded|too many emails per second"
    r"|SubmissionQuotaExceeded|unusual sending activity|\bfrequency limited\b|exceeded the max emails per hour",
    re.IGNORECASE,
)


def words_of(reply: Reply) -> str:
    """Give all lines in one, without enhanced codes and addresses, so that words broken over lines stand together."""
    lines = (line[found.end() :] if (found := _REPEATED.match(line)) else line for line in reply.lines)
    return " ".join(_ADDRESS.sub(" ", " ".join(lines)).split())


_OF_MESSAGES = re.compile(
    r"\b(e?mails?|messages?|submissions?|sending|daily|hourly|per (second|minute|hour|day)|quota|volume|recipients?)\b",
    re.IGNORECASE,
)


def limit(phase: Phase, reply: Reply) -> Reason | None:
    """Give RATE_LIMITED or GREYLISTED where a refusal is one, else None."""
    words = words_of(reply)
    if (reply.enhanced or "")[2:] in _NO_LIMIT_CODES or _NO_LIMIT.search(words):
        return None
    if reply.is_permanent:
        return Reason.RATE_LIMITED if _RATE_LIMITED_FOR_GOOD.search(words) else None
    if phase in _IN_TRANSACTION and _GREYLISTED.search(words):
        return Reason.GREYLISTED
    if reply.code == 432 or _RATE_LIMITED.search(words):
        return Reason.RATE_LIMITED
    if phase is Phase.RCPT and reply.code in (450, 451):
        is_bare = (reply.enhanced or "")[1:] == ".7.1" and _GREYLISTED_BARE.fullmatch(words)
        return Reason.GREYLISTED if is_bare or _COME_BACK.search(words) else None
    return None


def counts_messages(phase: Phase, reply: Reply) -> bool:
    """Whether a rate limit is on messages, and not on connections or logins: by its words, else by its phase."""
    words = words_of(reply)
    if _OF_MESSAGES.search(words):
        return True
    return phase in _IN_TRANSACTION and _OF_CONNECTIONS.search(words) is None


def is_too_many_recipients(reply: Reply) -> bool:
    """Whether another transaction may carry the recipient that was refused (RFC 5321 §4.5.3.1.10, RFC 3463 §3.6)."""
    is_meant = (reply.enhanced or "")[1:] == ".5.3" or _TOO_MANY_RECIPIENTS.search(words_of(reply)) is not None
    return is_meant and limit(Phase.RCPT, reply) is None


def is_worn_out(reply: Reply) -> bool:
    """Whether a refusal is about the errors that came before it in this session, and not about what it answers."""
    return _WORN_OUT.search(words_of(reply)) is not None


def wait_asked_for(words: str) -> float:
    """Give the seconds that a refusal asks to wait ("try again in 300 seconds", "in 5 min"); 0 = it asks nothing."""
    found = _COME_BACK.search(words)
    if found is None:
        return 0.0
    if found[1] is not None:
        seconds = int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3])
    else:
        unit = (found[5] or "s")[0].lower()
        seconds = int(found[4]) * {"s": 1, "m": 60, "h": 3600}[unit]
    return min(float(seconds), LONGEST_WAIT)
