"""What to change: one sentence for every reason, in the dialect the profile was set in.

The only source of these sentences; the API, the docs and the CLI read them here. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from app.mail import tls_hints
from app.mail.changes import Change, Noting, complete
from app.mail.codes import Reason
from app.mail.profile import (
    MECHANISMS,
    MECHANISMS_IN_CLEAR,
    SANDBOX_PROFILES,
    AuthMode,
    Profile,
    TlsMode,
    is_loopback,
)
from app.mail.schedule import Rate

Facts: TypeAlias = Mapping[str, str]  # what only the conversation knows: names, dates, mechanisms, our address
_Hint: TypeAlias = Callable[[Profile, Facts], str]

_NOT_IN_TIME = "The message was not taken in the time it had: mend what the last failure says, and send it again."


def hint(reason: Reason, profile: Profile, facts: Facts | None = None) -> str:
    """Say in one sentence what to change so that this does not happen again."""
    return _advice(reason, profile, facts)[0]


def changes(reason: Reason, profile: Profile, facts: Facts | None = None) -> tuple[Change, ...]:
    """Return what the hint proposes to change, each a way of its own; what it only names is not among them."""
    return _advice(reason, profile, facts)[1]


def _advice(reason: Reason, profile: Profile, facts: Facts | None) -> tuple[str, tuple[Change, ...]]:
    noting = Noting.of(profile)
    sentence = _HINTS[reason](noting, facts or {})
    return complete(sentence, profile, noting.noted)


def at_the_end(said: str) -> str:
    """Give what to change where nothing is tried again any more: the promise goes, and what says nothing else."""
    said = said.replace(": it is tried again; ", ": ")
    return _NOT_IN_TIME if "it is tried again" in said else said


def _host_port(p: Profile) -> str:
    return f"{p.setting('host')} and {p.setting('port')} ({p.host}:{p.port})"


def _answers(p: Profile, facts: Facts) -> str:
    """Name a port that was seen to answer, in words that begin the cure."""
    found = facts.get("answers", "").split()
    if not found:
        return ""
    port = int(found[0])
    line = p.setting("port", port)
    if port == 465 and p.tls is not TlsMode.IMPLICIT:
        line += f" and {p.setting('tls', 'implicit')}"
    elif port != 465 and p.tls is TlsMode.IMPLICIT:
        line += f" and {p.setting('tls', 'starttls')}"
    return f"port {port} answers there, so set {line}; or "


def _connection_refused(p: Profile, facts: Facts) -> str:
    return (
        f"Nothing listens on {p.host} port {p.port}: {_answers(p, facts)}check {p.setting('host')} and "
        f"{p.setting('port')} (relays use 25, 465 or 587), and that the relay runs."
    )


def _connect_timeout(p: Profile, facts: Facts) -> str:
    return f"Nothing answers at {p.host} port {p.port}: {_answers(p, facts)}check {_host_port(p)}, and firewalls."


def _greeting_timeout(p: Profile, facts: Facts) -> str:
    if facts.get("tls"):
        return f"Port {p.port} expects TLS from the first byte: set {p.setting('tls', 'implicit')}."
    if facts.get("greets"):
        longer = p.setting("timeouts.greeting")
        return f"The relay greets, but too slowly: it is tried again; if it always does, raise {longer}."
    if facts.get("looked") or p.tls is TlsMode.IMPLICIT:
        return f"The relay took the connection and said nothing: {_answers(p, facts)}check {_host_port(p)}."
    return (
        f"The relay took the connection and said nothing: {_answers(p, facts)}if port {p.port} expects TLS from the "
        f"first byte, set {p.setting('tls', 'implicit')}."
    )


def _not_smtp(p: Profile, facts: Facts) -> str:
    server = f"{facts['server']}, " if facts.get("server") else ""
    return (
        f"What answers there is {server}not a mail server: {_answers(p, facts)}check {_host_port(p)}; relays use "
        "port 587, 465 or 25."
    )


def _malformed_reply(p: Profile, facts: Facts) -> str:
    if facts.get("mechanism") and not facts.get("answers"):
        return _login_derailed(p, facts)
    return f"What the relay answered is not SMTP: {_answers(p, facts)}check {_host_port(p)}."


def _tls_not_offered(p: Profile, facts: Facts) -> str:
    cure = f"set {p.setting('tls', 'implicit')} and {p.setting('port', 465)} if the relay has that"
    if p.wants_login and not facts.get("offered"):
        return (
            f"The relay offers neither STARTTLS nor AUTH on port {p.port}: if it wants no login, set "
            f"{p.setting('auth', 'none')} (or remove {p.setting('username')} and {p.setting('password')}), else {cure}."
        )
    if p.wants_login:
        allowed = "" if is_loopback(p.host) else f" and {p.setting('allow_cleartext_auth', True)}"
        return (
            f"The relay offers no STARTTLS on port {p.port}, and a password is not sent in clear: {cure}, or "
            f"{p.setting('tls', 'none')}{allowed} if it may be."
        )
    return (
        f"The relay offers no STARTTLS on port {p.port}: {cure}, or {p.setting('tls', 'opportunistic')} to encrypt "
        "only where it is offered."
    )


def _reply_timeout(p: Profile, facts: Facts) -> str:
    key = f"timeouts.{facts['phase']}" if facts.get("phase") else "timeouts"
    return f"The relay was too slow to answer: it is tried again; if it always is, raise {p.setting(key)}."


def _rate_limited(p: Profile, facts: Facts) -> str:
    cures = []
    if facts.get("limited") == "messages" or p.max_connections == 1:
        slower = p.rate.halved if p.rate else Rate(30, 60.0)
        cures = [f"send no more than it takes with {p.setting('rate', str(slower))}"] if slower else []
    if p.max_connections > 1:
        cures.append(f"open fewer connections at once with {p.setting('max_connections', p.max_connections // 2)}")
    cure = ", or ".join(cures) or "ask its operator for a higher limit"
    return f"The relay takes no more from us for now: it is tried again; if it happens often, {cure}."


def _outcome_unknown(p: Profile, facts: Facts) -> str:
    what = facts.get("message_id", "the Message-ID")
    where = f"the log of {p.host} from {facts['since']} on" if facts.get("since") else "the relay's log at that time"
    then = "; sent again, it may arrive twice." if facts.get("again") else " before you send it again."
    return f"The message was handed over and the relay's answer was lost: look for {what} in {where}{then}"


def _file_unreadable(_: Profile, facts: Facts) -> str:
    return (
        f"Give this service a readable file with the right content where {facts.get('setting', 'the setting')} points."
    )


def _auth_not_offered(p: Profile, facts: Facts) -> str:
    if facts.get("starttls"):
        return (
            f"The relay offers no AUTH before STARTTLS: set {p.setting('tls', 'starttls')}; if it wants no login at "
            f"all, {p.setting('auth', 'none')}."
        )
    return (
        f"The relay offers no AUTH, so it wants no login: set {p.setting('auth', 'none')} (or remove "
        f"{p.setting('username')} and {p.setting('password')})."
    )


def _auth_rejected(p: Profile, facts: Facts) -> str:
    tried = facts.get("mechanism", "")
    other = next((m for m in ("PLAIN", "LOGIN") if m in facts.get("offered", "").split()), None)
    # Servers that keep only a password's hash cannot check it, and offer it all the same.
    instead = (
        f"; if they are right, this relay may not manage {tried}: set {p.setting('auth', other.lower())}"
        if tried in MECHANISMS_IN_CLEAR and other
        else ""
    )
    return (
        f"The relay refused this user name and password: check {p.setting('username')} and {p.setting('password')}; "
        f"one login was tried{instead}."
    )


def _another_mechanism(p: Profile, facts: Facts) -> str:
    """Return the line that pins the strongest other mechanism on offer, "" where there is none."""
    offered, tried = facts.get("offered", "").split(), facts.get("mechanism")
    other = next((m for m in MECHANISMS if m in offered and m != tried), None)
    return p.setting("auth", other.lower()) if other else ""


def _auth_mechanism_unsupported(p: Profile, facts: Facts) -> str:
    offered, tried = facts.get("offered") or "none that we know", facts.get("mechanism")
    other = _another_mechanism(p, facts)
    if facts.get("iterations"):
        instead = f", or set {other}" if other else ""
        return f"Have the relay ask for {facts['iterations']} iterations of {tried} at most{instead}."
    if tried:
        cure = f"set {other}" if other else "ask its operator, who offers no other that Mailchute speaks"
        return f"The relay refused AUTH {tried} itself, not the password; it offers {offered}: {cure}."
    if other:
        strongest = f", or {p.setting('auth', 'auto')} to take the strongest" if p.auth.is_pinned else ""
        return f"The relay offers these mechanisms: {offered}; set {other}{strongest}."
    return (
        f"The relay offers these mechanisms: {offered}, and Mailchute speaks {', '.join(MECHANISMS[:-1])} and "
        f"{MECHANISMS[-1]}: have one of them allowed there."
    )


def _login_derailed(p: Profile, facts: Facts) -> str:
    other = _another_mechanism(p, facts)
    instead = f"set {other}" if other else f"check {_host_port(p)}"
    return f"The relay does not keep to AUTH {facts['mechanism']}: it is tried again; if it persists, {instead}."


def _unexpected_reply(p: Profile, facts: Facts) -> str:
    if facts.get("mechanism"):
        return _login_derailed(p, facts)
    return f"The relay answered out of turn: it is tried again; a proxy before {p.host} may do that."


def _auth_server_unverified(p: Profile, _: Facts) -> str:
    return (
        f"What answers at {p.host} does not know this password, or cannot prove it: check {_host_port(p)}"
        + (", and that the relay's certificate is verified" if not p.verify or not p.requires_tls else "")
        + "; a proxy may stand between."
    )


def _auth_required(p: Profile, facts: Facts) -> str:
    offered = facts.get("offered", "").split()
    if not p.wants_login and offered and not set(offered) & set(MECHANISMS):
        return (
            f"The relay takes this mail only after a login, and offers only {' '.join(offered)}, which Mailchute does "
            "not speak, so a user name will not do: have this machine's address allowed there without a login, or "
            f"{MECHANISMS[-2]} or {MECHANISMS[-1]} enabled."
        )
    if not p.wants_login and facts.get("session") and not offered and p.auth is not AuthMode.NONE:
        return _auth_required_elsewhere(p, facts)
    if p.auth is AuthMode.NONE:
        return (
            f"The relay takes mail only after a login, and {p.setting('auth', 'none')} forbids it: set "
            f"{p.setting('auth', 'auto')}{_under_tls(p)} with {p.setting('username')} and {p.setting('password')}."
        )
    return (
        f"The relay takes mail only after a login: set {p.setting('username')} and {p.setting('password')}"
        f"{',' if _under_tls(p) else ''}{_under_tls(p)}."
        if not p.wants_login
        else f"The relay wants a login that it accepts: check {p.setting('username')} and {p.setting('password')}."
    )


def _under_tls(p: Profile) -> str:
    """A login is refused with a TLS mode that was set and may send it in clear."""
    if not p.tls_set_by or p.requires_tls or (p.tls is TlsMode.NONE and is_loopback(p.host)):
        return ""
    return f" and {p.setting('tls', 'starttls')}"


def _auth_required_elsewhere(p: Profile, facts: Facts) -> str:
    """The relay wants a login and offers none here."""
    credentials = f"{p.setting('username')} and {p.setting('password')}"
    if facts.get("starttls"):
        return (
            "The relay takes mail only after a login, which it may offer after STARTTLS: set "
            f"{p.setting('tls', 'starttls')}, {credentials}."
        )
    return (
        f"The relay takes mail only after a login, and offers none on port {p.port}: set {credentials}, and "
        f"{p.setting('port')} to one with AUTH (587 or 465), or have this machine's address allowed there."
    )


def _auth_needs_tls(p: Profile, facts: Facts) -> str:
    what = "logins" if p.wants_login else "mail"
    if facts.get("tls_error"):
        return (
            f"The relay takes {what} only under TLS, and TLS failed with it: have that repaired there, or use another "
            f"port ({p.setting('port', 465)} and {p.setting('tls', 'implicit')}, where it has that)."
        )
    return f"The relay takes {what} only under TLS: set {p.setting('tls', 'starttls')}."


def _greeting_refused(_: Profile, facts: Facts) -> str:
    if facts.get("for_now"):
        return "The relay takes no connections for now: nothing to change here; it is tried again."
    return "The relay turns this machine away: ask its operator whether our address is allowed."


def _relay_denied(_: Profile, facts: Facts) -> str:
    ours = facts.get("our_address")
    whom = f"our address {ours}" if ours else "this machine's address"
    return (
        f"The relay does not relay for {whom}: have it added there (Postfix: mynetworks; Exchange: the receive "
        "connector's remote addresses), or use a profile that logs in."
    )


def _message_too_large(_: Profile, facts: Facts) -> str:
    limit = f" of {facts['limit']} bytes" if facts.get("limit") else ""
    return f"The message is over the relay's limit{limit}: send less, or have the limit raised there."


def _profile_unknown(p: Profile, _: Facts) -> str:
    if p.name in SANDBOX_PROFILES:
        return "The message was for the sandbox, which is off: cancel it, and send it again through a relay."
    return f"There is no profile {p.name} in the settings any more: add it again, or cancel the message."


def _fixed(text: str) -> _Hint:
    return lambda _profile, _facts: text


def _with_host(text: str) -> _Hint:
    return lambda p, _facts: text.format(host_port=_host_port(p), host=p.setting("host"), name=p.host, port=p.port)


_HINTS: Mapping[Reason, _Hint] = {
    Reason.CONNECTION_REFUSED: _connection_refused,
    Reason.HOST_UNREACHABLE: _with_host(
        "There is no way from here to {name}: check {host}, the network and firewalls."
    ),
    Reason.HOST_NOT_FOUND: _with_host("The name {name} does not exist: check {host}."),
    Reason.DNS_FAILURE: _with_host("The name {name} could not be looked up now: check this machine's DNS servers."),
    Reason.CONNECT_TIMEOUT: _connect_timeout,
    Reason.GREETING_REFUSED: _greeting_refused,
    Reason.GREETING_TIMEOUT: _greeting_timeout,
    Reason.SERVICE_UNAVAILABLE: _fixed(
        "The relay is closing or overloaded: nothing to change here; it is tried again."
    ),
    Reason.RATE_LIMITED: _rate_limited,
    Reason.CONNECTION_LOST: _with_host(
        "The relay cut the connection before it took the message: it is tried again; if it persists, check {host_port}."
    ),
    Reason.NOT_SMTP: _not_smtp,
    Reason.HELO_REFUSED: lambda p, _: (
        f"The relay does not like our name: set {p.setting('helo_name')} to a name it accepts."
    ),
    Reason.TLS_NOT_OFFERED: _tls_not_offered,
    Reason.TLS_UNAVAILABLE: _fixed(
        "The relay cannot do TLS for the moment: nothing to change here; it is tried again."
    ),
    Reason.TLS_CERT_UNTRUSTED: tls_hints.cert_untrusted,
    Reason.TLS_CERT_EXPIRED: tls_hints.cert_expired,
    Reason.TLS_HOSTNAME_MISMATCH: tls_hints.hostname_mismatch,
    Reason.TLS_TIMEOUT: _with_host(
        "The TLS handshake did not end: check that {host_port} is a TLS port, and firewalls."
    ),
    Reason.TLS_CONNECTION_LOST: _with_host("The relay cut the TLS handshake: check that {host_port} is a TLS port."),
    Reason.TLS_VERSION_UNSUPPORTED: tls_hints.version_unsupported,
    Reason.TLS_PIN_MISMATCH: tls_hints.pin_mismatch,
    Reason.TLS_CLIENT_CERT_REQUIRED: tls_hints.client_cert_required,
    Reason.TLS_HANDSHAKE_FAILED: tls_hints.handshake_failed,
    Reason.TLS_MODE_MISMATCH: tls_hints.mode_mismatch,
    Reason.AUTH_NOT_OFFERED: _auth_not_offered,
    Reason.AUTH_REJECTED: _auth_rejected,
    Reason.AUTH_MECHANISM_REFUSED: lambda p, _: (
        "The relay wants another kind of login: make an app password and set it as "
        f"{p.setting('password')}; if it takes OAuth2 only, have password logins allowed for this account."
    ),
    Reason.AUTH_MECHANISM_UNSUPPORTED: _auth_mechanism_unsupported,
    Reason.AUTH_UNAVAILABLE: _fixed(
        "The relay cannot check logins for the moment: nothing to change; it is tried again."
    ),
    Reason.AUTH_NEEDS_TLS: _auth_needs_tls,
    Reason.AUTH_SERVER_UNVERIFIED: _auth_server_unverified,
    Reason.AUTH_REQUIRED: _auth_required,
    Reason.SENDER_REFUSED: _fixed("The relay does not take mail from this sender: use a From address it allows."),
    Reason.SENDER_DEFERRED: _fixed(
        "The relay does not take this sender now: nothing to change yet; it is tried again."
    ),
    Reason.BAD_SEQUENCE: _fixed("The relay lost track of the conversation: nothing to change; it is tried again."),
    Reason.MESSAGE_TOO_LARGE: _message_too_large,
    Reason.MAILBOX_UNKNOWN: _fixed("The relay knows no such mailbox: check the address."),
    Reason.RECIPIENT_REFUSED: _fixed("The relay refuses this recipient: its words say why; check the address."),
    Reason.RECIPIENT_DEFERRED: _fixed(
        "The relay does not take this recipient now: nothing to change; it is tried again."
    ),
    Reason.GREYLISTED: _fixed(
        "The relay takes a sender it does not know only at a later try: nothing to change; it is tried again."
    ),
    Reason.RELAY_DENIED: _relay_denied,
    Reason.DATA_REFUSED: _fixed("The relay refused to take the content: its words say why."),
    Reason.DATA_DEFERRED: _fixed("The relay does not take the content now: nothing to change; it is tried again."),
    Reason.CONTENT_REJECTED: _fixed(
        "The relay refused the content, often as spam: its words say why; change the message."
    ),
    Reason.CONTENT_DEFERRED: _fixed("The relay does not take the message now: nothing to change; it is tried again."),
    Reason.OUTCOME_UNKNOWN: _outcome_unknown,
    Reason.REPLY_TIMEOUT: _reply_timeout,
    Reason.MALFORMED_REPLY: _malformed_reply,
    Reason.UNEXPECTED_REPLY: _unexpected_reply,
    Reason.SMTPUTF8_NOT_OFFERED: _fixed("The relay takes only ASCII addresses: use an ASCII form of this address."),
    Reason.PROFILE_UNKNOWN: _profile_unknown,
    Reason.FILE_UNREADABLE: _file_unreadable,
    Reason.WORKER_CRASHED: _fixed(
        "Nothing was let go, and it is tried again; given up the fifth time in a row: the service's log, and the "
        "machine's, say what ended it."
    ),
    Reason.EXPIRED: _fixed(_NOT_IN_TIME),
    Reason.UNEXPECTED: _fixed("Something happened that we do not know: it is tried again; the log has its name."),
}
