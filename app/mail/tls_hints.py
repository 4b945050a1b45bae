"""What to change where TLS failed: one sentence for each reason, in the dialect the profile was set in. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from app.mail.profile import Profile, TlsMode, TlsVersion, is_host_name, is_loopback

_OLD = (TlsVersion.V1_0, TlsVersion.V1_1)


def cert_untrusted(p: Profile, facts: Mapping[str, str]) -> str:
    issuer, ca_file = facts.get("issuer"), p.setting("ca_file", "/path/to/ca.pem")
    otherwise = f"{_or_pin(p, facts)}, or stop verifying with {p.setting('verify', False)}."
    if issuer and facts.get("sends_no_issuer"):
        return (
            f"The relay's certificate is issued by {issuer}, whose own certificate the relay does not send and this "
            f"machine does not have: have the relay send it if it is an intermediate one, or put it and its root into "
            f"one file and set {ca_file}{otherwise}"
        )
    whose = f" (issued by {issuer})" if issuer else ""
    return (
        f"The relay's certificate{whose} is signed by nobody this machine trusts: name its CA with {ca_file}{otherwise}"
    )


def _or_pin(p: Profile, facts: Mapping[str, str]) -> str:
    """Trusting one certificate, looked at once, is better than trusting any."""
    sha256 = facts.get("sha256")
    return f", trust this one alone with {p.setting('cert_sha256', sha256)}" if sha256 else ""


def cert_expired(p: Profile, facts: Mapping[str, str]) -> str:
    ended = f" on {facts['not_after']}" if facts.get("not_after") else ""
    return (
        f"The relay's certificate ended{ended}: have it renewed{_or_pin(p, facts)}, or until then stop "
        f"verifying with {p.setting('verify', False)}."
    )


def hostname_mismatch(p: Profile, facts: Mapping[str, str]) -> str:
    names = facts.get("names")
    wanted = p.server_name or p.host
    if not names:
        return (
            f"The relay's certificate is not for {wanted}: set {p.setting('server_name')} to a name that it bears, "
            f"or stop verifying with {p.setting('verify', False)}."
        )
    # A certificate may bear names that no setting takes.
    examples = (name.replace("*", "mail", 1) for name in names.split(", "))
    example = next((name for name in examples if is_host_name(name)), None)
    return (
        f"The relay's certificate is for {names}, not for {wanted}: set {p.setting('server_name', example)} if that "
        f"is the relay you mean, or stop verifying with {p.setting('verify', False)}."
    )


def pin_mismatch(p: Profile, facts: Mapping[str, str]) -> str:
    sha256, names = facts.get("sha256"), facts.get("names")
    whose = f" (for {names}, until {facts.get('not_after')})" if names else ""
    return (
        f"The relay shows another certificate{whose} than the pinned one: if it was renewed, set "
        f"{p.setting('cert_sha256', sha256) if sha256 else p.setting('cert_sha256')}."
    )


def client_cert_required(p: Profile, facts: Mapping[str, str]) -> str:
    signed = f" signed by {facts['authorities']}" if facts.get("authorities") else " that it accepts"
    starttls = "" if p.requires_tls else f"{p.setting('tls', 'starttls')} and "
    cure = f"set {starttls}{p.setting('client_cert', '/path/to/client.pem')} (and {p.setting('client_key')})"
    if p.client_cert:
        return f"The relay does not accept our certificate: {cure} to one{signed}, or have this one accepted there."
    return f"The relay asks for a certificate of ours{signed}: {cure}."


def version_unsupported(p: Profile, facts: Mapping[str, str]) -> str:
    older = TlsVersion(facts.get("version") or ("1.2" if p.min_tls is TlsVersion.V1_3 else "1.0"))
    lines = [p.setting("min_tls", older.value)] if p.min_tls is not older else []
    if older in _OLD and p.tls_security_level != 0:  # OpenSSL 3 refuses TLS 1.0 and 1.1 at any other level
        lines.append(p.setting("tls_security_level", 0))
    if not lines:
        return f"The relay and this machine have no TLS version in common, from {p.min_tls} on: have it upgraded."
    return f"The relay speaks only older versions of TLS than we allow: have it upgraded, or set {' and '.join(lines)}."


def handshake_failed(p: Profile, facts: Mapping[str, str]) -> str:
    level = facts.get("level")
    if level:
        return (
            "The relay's TLS is weaker than we allow (an old cipher or a short key): have it upgraded, or set "
            f"{p.setting('tls_security_level', int(level))}."
        )
    if p.tls_security_level == 0:
        return "The TLS handshake failed: the error says why; have the relay's TLS repaired."
    lower = 1 if p.tls_security_level is None else p.tls_security_level - 1
    return (
        "The TLS handshake failed: the error says why; where it is about a cipher or a key, have the relay upgraded, "
        f"or set {p.setting('tls_security_level', lower)}."
    )


def mode_mismatch(p: Profile, facts: Mapping[str, str]) -> str:
    if p.tls is not TlsMode.IMPLICIT:
        return f"Port {p.port} expects TLS from the first byte: set {p.setting('tls', 'implicit')}."
    none = p.setting("tls", "none")
    if p.wants_login and not is_loopback(p.host):
        none += f" and {p.setting('allow_cleartext_auth', True)}"
    if facts.get("plain") == "starttls":
        return f"Port {p.port} begins without TLS and offers STARTTLS: set {p.setting('tls', 'starttls')}."
    if facts.get("plain") == "none":
        if p.wants_login and not facts.get("plain_auth"):
            none = f"{p.setting('tls', 'none')} and {p.setting('auth', 'none')}"
            return f"Port {p.port} has no TLS and takes no login: use another port, or set {none} to send in clear."
        return f"Port {p.port} has no TLS at all: use another port, or set {none} to send in clear."
    starttls = p.setting("tls", "starttls")
    return f"Port {p.port} does not begin with TLS: set {starttls}, or {none} where it has no TLS at all."
