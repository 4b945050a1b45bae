"""What every code and reason means, and what usually causes it: for people who look an error up.

The cure is the reason's hint (`mail/hints.py`), which knows the profile; this knows only the reason. One source for
`GET /errors`, `mailchute errors` and docs/errors.md. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.mail.codes import CODE_OF, ErrorCode, Reason
from app.mail.hints import hint
from app.mail.outcome import FailureClass
from app.mail.profile import AuthMode, Dialect, Profile, TlsMode

_P = FailureClass.PERMANENT
_T = FailureClass.TEMPORARY
_U = FailureClass.UNKNOWN
_C = FailureClass.CONFIGURATION


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a reason means. `classes` are those it comes with: whose turn it is depends on the reply too."""

    meaning: str
    causes: tuple[str, ...]
    classes: tuple[FailureClass, ...]


def cure(reason: Reason) -> str:
    """Give the reason's hint as a profile of `mailchute.toml` would get it, no fact of a conversation known."""
    return hint(reason, _PROFILE)


def reasons_of(code: ErrorCode) -> tuple[Reason, ...]:
    """Give a code's reasons, in the order of a conversation."""
    return tuple(reason for reason in Reason if CODE_OF[reason] is code)


_PROFILE = Profile(
    name="default",
    host="mail.example.org",
    port=587,
    tls=TlsMode.STARTTLS,
    auth=AuthMode.AUTO,
    dialect=Dialect.FILE,
)

CODES: Mapping[ErrorCode, str] = {
    ErrorCode.ECONNECTION: "The relay could not be reached, or ended the connection before it took the message.",
    ErrorCode.ETIMEDOUT: "The relay did not answer in the time that this phase has.",
    ErrorCode.ESOCKET: "The connection broke in the middle of the TLS handshake.",
    ErrorCode.EDNS: "The relay's name could not be looked up.",
    ErrorCode.ETLS: "TLS could not be had as the profile asks for it.",
    ErrorCode.EPROTOCOL: "The other side did not behave as an SMTP relay that serves us.",
    ErrorCode.EENVELOPE: "The relay refused the sender or a recipient.",
    ErrorCode.EMESSAGE: "The relay refused the content.",
    ErrorCode.EAUTH: "The relay wants a login that it did not get, or refused the one it got.",
    ErrorCode.ECONFIG: "The settings of this service cannot work as they are now.",
    ErrorCode.ETOOLARGE: "The message is larger than the relay takes.",
    ErrorCode.EEXPIRED: "The message's time ran out before a relay took it.",
    ErrorCode.EINDOUBT: "The content was handed over and the relay's verdict was lost: nobody knows.",
}

# Where nodemailer, whose spelling the codes have, says something else of the same event, and ours is truer.
NODEMAILER: Mapping[ErrorCode, str] = {
    ErrorCode.ECONNECTION: "A refused connection is ESOCKET there, a greeting of 421 EPROTOCOL.",
    ErrorCode.ETLS: "A certificate that is not trusted, has expired or is for another name is ESOCKET there.",
    ErrorCode.EAUTH: (
        "530 at MAIL and a refusal to relay without a login are EENVELOPE there; credentials where no AUTH is offered "
        "are silently not used there; an empty user name is EAUTH there, and no login at all here."
    ),
    ErrorCode.EMESSAGE: "A refusal of DATA is EENVELOPE there.",
    ErrorCode.ETOOLARGE: "EENVELOPE or EMESSAGE there.",
    ErrorCode.EINDOUBT: "ECONNECTION or ETIMEDOUT there, the same as before the content was handed over.",
}

EXPLANATIONS: Mapping[Reason, Explanation] = {
    Reason.CONNECTION_REFUSED: Explanation(
        "The host answered that nothing listens on this port.",
        ("the port is wrong (relays use 25, 465 or 587)", "the relay is not running", "a firewall rejects"),
        (_T,),
    ),
    Reason.HOST_UNREACHABLE: Explanation(
        "The network has no way to the host.",
        ("no route, or no IPv6, from this machine", "a firewall rejects", "the host is down"),
        (_T,),
    ),
    Reason.HOST_NOT_FOUND: Explanation(
        "The DNS says that this name does not exist, or has no address.",
        (
            "a slip in the name",
            "a name of the intranet, asked of a public resolver",
            "a compose service name that is not up",
        ),
        (_C,),
    ),
    Reason.DNS_FAILURE: Explanation(
        "The resolver could not answer now.",
        ("the resolver is down or unreachable", "no resolver is configured in this container"),
        (_T,),
    ),
    Reason.CONNECT_TIMEOUT: Explanation(
        "Nothing came back when the connection was opened.",
        ("a firewall drops (clouds drop port 25)", "the host is down", "the wrong address or port"),
        (_T,),
    ),
    Reason.GREETING_REFUSED: Explanation(
        "The relay greeted with a refusal.",
        ("this machine's address is blocked, or not on the relay's list", "no reverse DNS for our address"),
        (_T,),
    ),
    Reason.GREETING_TIMEOUT: Explanation(
        "The relay took the connection and did not greet.",
        ("the port expects TLS from the first byte", "the relay looks our address up and its DNS hangs", "a tarpit"),
        (_T,),
    ),
    Reason.SERVICE_UNAVAILABLE: Explanation(
        "The relay said 421 and closes.",
        ("it is being restarted", "it is overloaded", "too many errors in one session"),
        (_T,),
    ),
    Reason.RATE_LIMITED: Explanation(
        "The relay takes no more from us for now: too many connections, logins or messages.",
        ("more connections at once than it allows", "a quota of messages by minute, hour or day is used up"),
        (_T,),
    ),
    Reason.CONNECTION_LOST: Explanation(
        "The connection ended before the message was handed over.",
        ("the relay was restarted", "a firewall or proxy in between", "the relay drops whom it does not like"),
        (_T,),
    ),
    Reason.NOT_SMTP: Explanation(
        "What answered is no mail server.",
        ("the port of a web server or of SSH", "a proxy that answers for the host"),
        (_C,),
    ),
    Reason.HELO_REFUSED: Explanation(
        "The relay does not accept the name that we greet with.",
        ("a container's random host name", "the relay wants a name that exists in the DNS"),
        (_C, _T),
    ),
    Reason.TLS_NOT_OFFERED: Explanation(
        "The profile wants STARTTLS and the relay does not offer it; nothing is sent in clear instead.",
        ("an intranet relay without TLS", "a port for implicit TLS is meant", "something in between strips STARTTLS"),
        (_C,),
    ),
    Reason.TLS_UNAVAILABLE: Explanation(
        "The relay offers STARTTLS and cannot do it now.",
        ("its certificate or key cannot be read", "it is overloaded"),
        (_T,),
    ),
    Reason.TLS_CERT_UNTRUSTED: Explanation(
        "Nobody whom this machine trusts has signed the relay's certificate.",
        (
            "it is self-signed",
            "the organisation's own CA signed it",
            "the relay does not send its intermediate certificate",
        ),
        (_C,),
    ),
    Reason.TLS_CERT_EXPIRED: Explanation(
        "The relay's certificate has expired, or is not valid yet.",
        ("it was not renewed", "the relay was not reloaded after a renewal", "this machine's clock is wrong"),
        (_C,),
    ),
    Reason.TLS_HOSTNAME_MISMATCH: Explanation(
        "The relay's certificate is for another name.",
        ("host is an address or an internal alias", "a load balancer shows another certificate"),
        (_C,),
    ),
    Reason.TLS_PIN_MISMATCH: Explanation(
        "The relay shows another certificate than the one that cert_sha256 names.",
        ("it was renewed", "somebody sits in between"),
        (_C,),
    ),
    Reason.TLS_CLIENT_CERT_REQUIRED: Explanation(
        "The relay wants to see a certificate of ours, and did not see one that it accepts.",
        ("no client_cert is set", "the relay does not know the CA that signed it"),
        (_C,),
    ),
    Reason.TLS_TIMEOUT: Explanation(
        "The TLS handshake did not end.",
        ("the port does not speak TLS", "a firewall that inspects TLS"),
        (_T,),
    ),
    Reason.TLS_CONNECTION_LOST: Explanation(
        "The relay cut the connection in the middle of the TLS handshake.",
        ("the port does not speak TLS", "no version or cipher in common, and no word about it"),
        (_T,),
    ),
    Reason.TLS_VERSION_UNSUPPORTED: Explanation(
        "The relay and this service have no version of TLS in common.",
        ("an old relay that speaks TLS 1.0 or 1.1 only", "a min_tls that is newer than the relay"),
        (_C,),
    ),
    Reason.TLS_HANDSHAKE_FAILED: Explanation(
        "The TLS handshake failed in another way; the relay's or OpenSSL's words say how.",
        ("an old relay: no cipher in common", "a key that is too short for tls_security_level"),
        (_C, _T),
    ),
    Reason.TLS_MODE_MISMATCH: Explanation(
        "One side began with TLS and the other did not.",
        ("tls = implicit on a port for STARTTLS (587, 25)", "no TLS, or STARTTLS, on a port for implicit TLS (465)"),
        (_C,),
    ),
    Reason.AUTH_NOT_OFFERED: Explanation(
        "There are credentials and the relay offers no AUTH; nothing is sent without the login instead.",
        ("the relay wants no login", "it offers AUTH only after STARTTLS", "another port is the one for logins"),
        (_C,),
    ),
    Reason.AUTH_REJECTED: Explanation(
        "The relay refused the user name and the password.",
        (
            "a slip, or a password that was changed",
            "the provider wants an app password",
            "password logins are switched off",
        ),
        (_C,),
    ),
    Reason.AUTH_MECHANISM_REFUSED: Explanation(
        "The relay wants a stronger or another kind of login.",
        ("an app password is needed", "only OAuth2 is allowed for this account"),
        (_C,),
    ),
    Reason.AUTH_MECHANISM_UNSUPPORTED: Explanation(
        "The relay offers no mechanism that the profile allows and Mailchute speaks, or refused the AUTH command "
        "itself and not the password.",
        (
            "auth pins another mechanism",
            "the relay offers only NTLM, GSSAPI or OAuth2",
            "the relay offers a mechanism that it cannot do",
        ),
        (_C,),
    ),
    Reason.AUTH_UNAVAILABLE: Explanation(
        "The relay cannot check logins now.",
        ("its user database is down", "too many logins in a short time"),
        (_T,),
    ),
    Reason.AUTH_NEEDS_TLS: Explanation(
        "A password, or any mail, is wanted only under TLS.",
        ("tls = none where the relay wants STARTTLS",),
        (_C,),
    ),
    Reason.AUTH_SERVER_UNVERIFIED: Explanation(
        "The relay accepted the login, or went on with it, without proving that it knows the password (SCRAM).",
        ("host leads to another server", "a proxy answers in the relay's place", "a relay whose SCRAM is broken"),
        (_C,),
    ),
    Reason.AUTH_REQUIRED: Explanation(
        "The relay takes this mail only after a login.",
        ("no credentials are set", "auth = none", "this machine's address is not on the relay's list"),
        (_C,),
    ),
    Reason.SENDER_REFUSED: Explanation(
        "The relay refuses the sender's address.",
        ("the account may not send as this address", "the domain is not verified at the provider", "a slip"),
        (_P, _C),
    ),
    Reason.SENDER_DEFERRED: Explanation(
        "The relay does not take the sender's address now.",
        ("it cannot look the domain up", "its disk or queue is full"),
        (_T,),
    ),
    Reason.BAD_SEQUENCE: Explanation(
        "The relay says that a command came out of order or is unknown: the fault is the session's, not the message's.",
        ("a relay, or a proxy before it, that lost its place", "a relay that cannot take several commands at once"),
        (_T,),
    ),
    Reason.MESSAGE_TOO_LARGE: Explanation(
        "The message is larger than the relay takes; base64 makes attachments a third larger.",
        ("the relay's limit (SIZE)", "the mailbox's quota"),
        (_P,),
    ),
    Reason.MAILBOX_UNKNOWN: Explanation(
        "The relay knows no such mailbox.",
        ("a slip in the address", "the mailbox was closed"),
        (_P,),
    ),
    Reason.RECIPIENT_REFUSED: Explanation(
        "The relay refuses this recipient.",
        ("a policy of the relay or of the recipient", "the mailbox is disabled"),
        (_P,),
    ),
    Reason.RECIPIENT_DEFERRED: Explanation(
        "The relay does not take this recipient now.",
        ("the mailbox is busy or full", "too many recipients at once", "its own DNS fails"),
        (_T,),
    ),
    Reason.GREYLISTED: Explanation(
        "The relay lets whom it does not know wait, and takes the message at a later try.",
        ("greylisting: normal for a first message",),
        (_T,),
    ),
    Reason.RELAY_DENIED: Explanation(
        "The relay does not send to other domains for us.",
        ("this machine's address is not on its list (Postfix: mynetworks)", "the relay is for incoming mail only"),
        (_C, _P, _T),
    ),
    Reason.SMTPUTF8_NOT_OFFERED: Explanation(
        "An address has non-ASCII characters before the @, which this relay cannot carry.",
        ("a relay without SMTPUTF8 (RFC 6531)",),
        (_P,),
    ),
    Reason.DATA_REFUSED: Explanation(
        "The relay refused to take any content.", ("a policy of the relay", "no valid recipient was left"), (_P,)
    ),
    Reason.DATA_DEFERRED: Explanation("The relay does not take content now.", ("its disk or queue is full",), (_T,)),
    Reason.CONTENT_REJECTED: Explanation(
        "The relay looked at the content and refused it.",
        ("taken for spam", "SPF, DKIM or DMARC of the sender's domain", "a forbidden attachment"),
        (_P,),
    ),
    Reason.CONTENT_DEFERRED: Explanation(
        "The relay looked at the content and does not take it now.",
        ("its spam filter is busy", "its disk is full", "greylisting after the content"),
        (_T,),
    ),
    Reason.OUTCOME_UNKNOWN: Explanation(
        "The content was handed over, and the relay's verdict did not come: sent or not, nobody knows (RFC 1047).",
        ("the connection broke in that moment", "the relay was too slow", "this service was stopped in that moment"),
        (_U,),
    ),
    Reason.REPLY_TIMEOUT: Explanation(
        "The relay did not answer a command in time.",
        ("it is overloaded", "it slows down whom it does not trust", "a firewall that forgot the connection"),
        (_T,),
    ),
    Reason.MALFORMED_REPLY: Explanation(
        "What the relay said is not an SMTP reply.",
        ("another protocol listens there", "a broken relay or proxy"),
        (_T, _U),
    ),
    Reason.UNEXPECTED_REPLY: Explanation(
        "The relay said something that cannot be an answer to what it was asked.",
        ("a relay or proxy that answers twice or out of turn",),
        (_T, _U),
    ),
    Reason.PROFILE_UNKNOWN: Explanation(
        "The message waits for a profile that is in the settings no more.",
        ("the profile was renamed or removed",),
        (_C,),
    ),
    Reason.FILE_UNREADABLE: Explanation(
        "A file that the settings name cannot be read, or holds nothing usable.",
        ("a secret that is not mounted", "permissions", "a rotation that left it empty"),
        (_C,),
    ),
    Reason.WORKER_CRASHED: Explanation(
        "This service ended in the middle of the try, before the content was handed over.",
        ("it was killed", "the machine went down", "the message itself, where it happened five times in a row"),
        (_T, _P),
    ),
    Reason.EXPIRED: Explanation(
        "The message was not taken in the time it had; `message` names the last failure.",
        ("the relay was down for longer than expires_after", "a setting that nobody mended", "a short expires_in"),
        (_P,),
    ),
    Reason.UNEXPECTED: Explanation(
        "Something happened that this version does not know.",
        (
            "a bug: please report it with the log line",
            "the message was stored by a newer version of Mailchute, or its rows in the database are damaged",
        ),
        (_T, _U, _P),
    ),
}
