"""What well-known relays say, and what each means there: the cure is often a page of theirs, not a setting of ours.

One table, asked in order; the first rule that matches wins. A rule looks at the reply's words (with its codes in
front), and at the profile's host where many relays use the same words. It gives a hint of its own, and a reason of
its own where the reply's code would mislead. The replies were recorded (tests/contract/recorded_replies.py). Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from app.mail.codes import Reason
from app.mail.outcome import FailureClass
from app.mail.profile import Profile
from app.mail.reply import Reply
from app.smtp.limits import words_of
from app.smtp.network import is_odd_name

_C = FailureClass.CONFIGURATION
_P = FailureClass.PERMANENT


class Login(Enum):
    """Whether this session logged in, and if not, whether the relay offers a mechanism that we speak."""

    DONE = auto()
    POSSIBLE = auto()
    IMPOSSIBLE = auto()


@dataclass(frozen=True, slots=True)
class Known:
    """A reply that we know. `hint` names our settings in braces; "" = the reason's own hint."""

    says: re.Pattern[str]
    hint: str
    host: re.Pattern[str] | None = None
    reason: tuple[Reason, FailureClass] | None = None
    login: Login | None = None  # None = whatever it was
    odd_name: bool = False  # only where we greet with a name that means nothing to others

    def hint_for(self, profile: Profile, *, offered: str = "") -> str:
        """Write the hint in the dialect the profile was set in; `offered` are the relay's mechanisms."""
        names = {key: profile.setting(key) for key in _SETTINGS}
        return self.hint.format_map({**names, "offered": offered or "none"}) if self.hint else ""


def recognise(profile: Profile, reply: Reply, *, login: Login = Login.IMPOSSIBLE, helo_name: str = "") -> Known | None:
    """Return the rule for a refusal, None where it is not one that we know."""
    text = f"{reply.code} {reply.enhanced or ''} {words_of(reply)}"
    return next(
        (
            known
            for known in _KNOWN
            if known.says.search(text)
            and (known.host is None or known.host.search(profile.host))
            and known.login in (None, login)
            and (not known.odd_name or is_odd_name(helo_name))
        ),
        None,
    )


_SETTINGS = (
    *("host", "port", "username", "password", "tls", "auth", "helo_name"),
    *("max_connections", "idle_timeout", "max_messages_per_connection"),
)


def _known(
    says: str,
    hint: str = "",
    *,
    host: str = "",
    reason: tuple[Reason, FailureClass] | None = None,
    login: Login | None = None,
    odd_name: bool = False,
) -> Known:
    pattern = re.compile(host, re.IGNORECASE) if host else None
    return Known(re.compile(says, re.IGNORECASE), hint, pattern, reason, login, odd_name)


_AUTH_REQUIRED = (Reason.AUTH_REQUIRED, _C)
_SENDER_REFUSED = (Reason.SENDER_REFUSED, _P)
_SEND_AS = r"5\.7\.60|sendasdenied|5\.2\.252|not have permissions to send as this sender"
_OWN_ADDRESS = "The account of {username} may send only as itself: send from its own address or one of its aliases."

_HELO_REFUSED = (Reason.HELO_REFUSED, _C)

_KNOWN = (
    # Any relay under TLS. Postfix: smtpd_tls_req_ccert
    _known(
        r"\bno (client |peer )?certificate\b"
        r"|\b(client|peer|your) certificate\b.{0,30}"
        r"\b(not|un(trusted|verified)|required|rejected|refused|invalid|unknown|missing|expired|revoked|fail)"
        r"|\b(requires?|need|provide|present|want)s?\b.{0,20}\b(client|peer|tls|ssl) certificate",
        reason=(Reason.TLS_CLIENT_CERT_REQUIRED, _C),
    ),
    # Google: support.google.com/a/answer/3726730
    _known(
        r"534 5\.7\.9 application-specific password",
        "Google takes no account password where 2-Step Verification is on: make an app password at "
        "myaccount.google.com/apppasswords and set it as {password}, without the spaces.",
    ),
    _known(
        r"534 5\.7\.14",
        "Google wants a sign-in in the browser first: sign in once as {username}, then make an app password at "
        "myaccount.google.com/apppasswords and set it as {password}.",
    ),
    _known(
        r"535 5\.7\.8 username and password not accepted",
        "Google refused this login: {username} is the whole address, and {password} must be an app password "
        "(myaccount.google.com/apppasswords); the account's own password does not work.",
    ),
    _known(
        r"530 (?!.*starttls).*(wantautherror|gsmtp|google)",
        "Google takes no mail without a login here: set {username} to the whole address and {password} to an app "
        "password (myaccount.google.com/apppasswords).",
        reason=_AUTH_REQUIRED,
    ),
    _known(
        r"invalid credentials for relay",
        "Google's relay does not know us: in the Admin console (Apps, Google Workspace, Gmail, Routing, SMTP relay "
        "service) add this machine's public address, send from a domain of that account, or set {username} and "
        "{password}.",
    ),
    _known(
        r"5\.4\.5 daily (user sending|smtp relay)",
        "The account's daily limit at Google is reached: it opens again within 24 hours; spread the mail, or use "
        "another profile.",
    ),
    _known(
        r"5\.7\.26",
        "The sender's domain has neither SPF nor DKIM for the relay that sends: publish both in that domain's DNS.",
    ),
    # smtp-relay.gmail.com, to a name such as [127.0.0.1] or localhost
    _known(
        r"try again later, closing connection\. \(EHLO\)",
        "Google's relay does not take the name that we greet with: set {helo_name} to this machine's full public name.",
        reason=_HELO_REFUSED,
        odd_name=True,
    ),
    _known(
        r"is not authorized to send email directly to our servers",
        "{host} names a receiving server, not a relay: set it to smtp.gmail.com, or to your provider's relay.",
    ),
    # Microsoft 365 and Exchange: aka.ms/smtp_auth_disabled, aka.ms/concurrent_sending
    _known(
        r"smtpclientauthentication is disabled for the tenant",
        "SMTP AUTH is switched off for the whole Microsoft 365 tenant: have it allowed for this mailbox (Users, Active "
        "users, Mail, Manage email apps, Authenticated SMTP), or for all with Set-TransportConfig "
        "-SmtpClientAuthenticationDisabled $false.",
    ),
    _known(
        r"smtpclientauthentication is disabled for the mailbox",
        "SMTP AUTH is switched off for this mailbox in Microsoft 365: have it allowed (Users, Active users, Mail, "
        "Manage email apps, Authenticated SMTP).",
    ),
    _known(
        r"basic authentication is (disabled|not supported)",
        "Microsoft takes no password from this account, and an app password does not help: allow it in the tenant's "
        "authentication policy, or use another relay.",
    ),
    _known(
        r"5\.7\.139 .*security defaults",
        "The tenant's security defaults forbid logins by password: an administrator decides in Entra (Properties, "
        "Manage security defaults).",
    ),
    _known(
        r"5\.7\.139 .*did not meet the criteria",
        "A Conditional Access policy forbids this login: have {username} excluded from the policy that blocks legacy "
        "authentication.",
    ),
    _known(
        r"535 5\.7\.(139|3) ",
        "Microsoft refused this login: {username} is the user principal name; with multi-factor authentication set an "
        "app password as {password}, and have Authenticated SMTP allowed for the mailbox (Manage email apps).",
    ),
    _known(
        r"530 (5\.7\.57|.*client was not authenticated)",
        "The server takes no anonymous mail here: set {username} and {password}, or have this machine's address "
        "allowed on a receive connector with anonymous users (Microsoft 365: an inbound connector, and the tenant's "
        "mail.protection.outlook.com on port 25).",
    ),
    _known(
        _SEND_AS,
        "The relay does not let this machine send as this sender without a login: set {username} and {password} of an "
        "account that has Send As on that mailbox, or have this machine's address allowed on a receive connector that "
        "accepts any sender.",
        login=Login.POSSIBLE,
    ),
    _known(
        _SEND_AS,
        "The relay does not let this machine send as this sender, and offers no login that Mailchute speaks "
        "({offered}), so a user name will not do: have this machine's address allowed on a receive connector that "
        "accepts any sender, or use a port with AUTH PLAIN or LOGIN and an account that has Send As on that mailbox.",
        login=Login.IMPOSSIBLE,
    ),
    _known(
        _SEND_AS,
        "The account of {username} may not send as this sender: send from its own address, or give it Send As on that "
        "mailbox (Exchange admin center, Mailboxes, Delegation).",
    ),
    _known(
        r"432 4\.3\.2 concurrent connections",
        "Microsoft takes three connections at a time for a mailbox: set {max_connections} to 3 or less, all instances "
        "together.",
    ),
    _known(
        r"5\.1\.8 .*bad outbound sender",
        "Microsoft has stopped this account as a sender of spam: have it released (Defender, Restricted entities).",
    ),
    # Amazon SES: docs.aws.amazon.com/ses/latest/dg/troubleshoot-smtp.html
    _known(
        r"535 ",
        "SES wants SMTP credentials of this very region (SES console, SMTP settings, Create SMTP credentials) as "
        "{username} and {password}, not an AWS access key and its secret.",
        host=r"email-smtp\.",
    ),
    _known(
        r"email address is not verified",
        "SES sends only from verified identities: verify the sender's address or domain in this region (SES console, "
        "Identities); while the account is in SES's sandbox the recipients too.",
    ),
    _known(
        r"throttling failure",
        "The account's sending rate or daily quota at SES is used up: lower {max_connections}, or request a higher one "
        "(SES console, Account dashboard).",
    ),
    _known(
        r"not authorized to perform .?ses:sendrawemail",
        "The IAM user behind {username} lacks ses:SendRawEmail for the sender's identity: add it to its policy.",
    ),
    # SendGrid
    _known(
        r"from address does not match a verified sender identity",
        "SendGrid sends only from verified senders: verify this one (Settings, Sender Authentication), or send from "
        "one that is.",
    ),
    _known(
        r"maximum credits exceeded|exceeded your messaging limits", "The plan's mails are used up: upgrade, or wait."
    ),
    _known(
        r"unauthenticated senders not allowed",
        "SendGrid takes no mail without a login: set {username} to the word apikey and {password} to an API key.",
        reason=_AUTH_REQUIRED,
    ),
    _known(
        r"535 ",
        "SendGrid wants the word apikey as {username} and an API key with Mail Send as {password}.",
        host=r"sendgrid\.net\Z",
    ),
    # Mailgun
    _known(
        r"is not allowed to send: (sandbox|free accounts)",
        "Mailgun's sandbox domain sends only to authorised recipients: use your own domain's login, or add the "
        "recipient there.",
        reason=(Reason.SENDER_REFUSED, _C),
    ),
    _known(
        r"mailgun is not loving|535 ",
        "Mailgun wants the domain's SMTP credentials as {username} and {password} (Domain settings, SMTP credentials), "
        "not the API key; for domains in the EU set {host} to smtp.eu.mailgun.org.",
        host=r"mailgun\.org\Z",
    ),
    # Brevo
    _known(
        r"525 5\.7\.1 unauthorized ip",
        "Brevo knows the login but not this machine: add its public address (Settings, Security, Authorized IPs), or "
        "switch the blocking off there.",
    ),
    _known(
        r"smtp account is not yet activated",
        "Brevo has not released this account for SMTP yet: ask its support to activate it.",
    ),
    _known(
        r"please authenticate first",
        "The relay takes no mail without a login: set {username} and {password} (Brevo: the SMTP login and an SMTP "
        "key).",
        reason=_AUTH_REQUIRED,
    ),
    _known(
        r"535 ",
        "Brevo wants the SMTP login as {username} and an SMTP key (xsmtpsib-…) as {password} (Settings, SMTP & API), "
        "not the API key.",
        host=r"(brevo|sendinblue)\.com\Z",
    ),
    # Postmark, Mailjet, Zoho, Yahoo, iCloud
    _known(
        r"535 ",
        "Postmark wants the server's API token as {username} and as {password}, or an SMTP token's access key and "
        "secret key.",
        host=r"postmarkapp\.com\Z",
    ),
    _known(
        r"[45]35 ",
        "Mailjet wants the API key as {username} and the secret key as {password}.",
        host=r"mailjet\.com\Z",
        reason=(Reason.AUTH_REJECTED, _C),
    ),
    _known(r"relaying disallowed as", _OWN_ADDRESS, reason=_SENDER_REFUSED),
    _known(
        r"535 ",
        "This provider wants an app password as {password}, made in the account's security settings; {username} is the "
        "whole address.",
        host=r"(zoho\.[a-z.]+|yahoo\.com|aol\.com|mail\.me\.com|yandex\.[a-z]+|mail\.ru)\Z",
    ),
    # Relays that say it without 530
    _known(r"5(01|03|50) .*\b(auth|authentication|authorization) (is )?required", reason=_AUTH_REQUIRED),
    _known(r"please authenticate\b", reason=_AUTH_REQUIRED),
    # Postfix
    _known(
        r"503 5\.5\.1 error: authentication not enabled",
        "The relay takes no login on this port: set {auth} to none, or use the port where it does.",
        reason=(Reason.AUTH_NOT_OFFERED, _C),
    ),
    _known(r"encryption required for requested authentication", reason=(Reason.AUTH_NEEDS_TLS, _C)),
    # RFC 4954 §6: the account has nothing stored for the mechanism, until it has logged in with its password once
    _known(
        r"432 (4\.7\.12|.*password transition)",
        "The relay must see the password itself once, before {username} can log in this way: set {auth} to plain.",
        reason=(Reason.AUTH_MECHANISM_REFUSED, _C),
    ),
    _known(
        r"sender address rejected: not logged in",
        "The relay lets this sender send only after its login: set {username} and {password}.",
        reason=_AUTH_REQUIRED,
    ),
    _known(r"sender address rejected: not owned by (auth )?user", _OWN_ADDRESS, reason=_SENDER_REFUSED),
    _known(
        r"helo command rejected",
        "The relay does not accept the name that we greet with: set {helo_name} to this machine's full name, one that "
        "the DNS knows.",
        reason=_HELO_REFUSED,
    ),
    _known(
        r"cannot find your (reverse )?hostname",
        "This machine's address has no matching name in the DNS: have a PTR record set, or use the relay's port for "
        "logins with {username} and {password}.",
    ),
    # Replies whose code says something else than their words
    _known(
        r"(max(imum)? |too many )messages? (per|in this|sent|on this)|too many messages sent",
        "The relay takes only so many messages on one connection: it is tried again; set {max_messages_per_connection} "
        "to fewer.",
    ),
    _known(
        r"bad dns ptr|\bptr (resource )?record|\breverse dns\b|\brdns\b",
        "This machine's address has no matching name in the DNS: have a PTR record set, or use the relay's port for "
        "logins with {username} and {password}.",
    ),
    _known(
        r"that ip address is not allowed to send|traffic not accepted from this ip",
        "The relay takes no mail from this machine's address: have it allowed there, or use another relay.",
    ),
    _known(
        r"invalid dns mx or a/aaaa",
        "The sender's domain has neither an MX nor an address record: publish one, or send from another domain.",
    ),
    _known(
        r"unconfigured sending domain|sender domain not verified",
        "The relay sends only for domains that were verified there: verify the sender's domain, or send from one that "
        "is.",
    ),
    _known(
        r"storedrv\.submission\.exception:quotaexceeded",
        "The mailbox of the account that sends is full: have its sent mail emptied, or its quota raised.",
    ),
    _known(
        r"from/sender name is not valid",
        "The relay does not take the sender's name or address: use a From address it allows.",
    ),
    _known(
        r"not have access rights to this service",
        "The password is right, but {username} may not send by SMTP: have that enabled for the account.",
    ),
    _known(
        r"turn on smtp authentication",
        "The relay takes this mail only after a login: set {username} and {password}.",
    ),
    # Exim, GMX and IONOS, Titan, QQ
    _known(
        r"auth command used when not advertised",
        "The relay offers AUTH only under TLS: set {tls} to starttls.",
        reason=(Reason.AUTH_NEEDS_TLS, _C),
    ),
    _known(
        r"535 incorrect authentication data",
        "Exim refused this login: {username} is the whole address with many hosters. If {host} is another provider's, "
        "the hoster sends outgoing SMTP to its own server: have that lifted.",
    ),
    _known(
        r"sender address is not allowed|envelope sender not allowed|mail from address must be same as authorization",
        _OWN_ADDRESS,
    ),
)
