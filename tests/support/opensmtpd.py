"""A real OpenSMTPD on loopback, not installed: see `tests.support.jail` for how it is run.

Its own: it offers neither PIPELINING nor SMTPUTF8, and takes logins under TLS only. A mail has Return-Path,
Delivered-To and Received in front, and where it had no Date or Message-ID these are added.
"""

import re
from typing import ClassVar

from tests.support.jail import MAX_BYTES, Jailed

PACKAGE = "opensmtpd"

_CONFIGURATION = """
pki localhost cert "/etc/relay.pem"
pki localhost key "/etc/relay.pem"
table inbox {{ "@" = inbox }}
smtp max-message-size {max_bytes}
{more}
filter nobody phase rcpt-to match rcpt-to {{ "nobody@mailbox.test" }} reject "550 5.1.1 User unknown"
filter later phase rcpt-to match rcpt-to {{ "later@mailbox.test" }} reject "450 4.2.0 Greylisted, try again later"
filter recipients chain {{ nobody, later }}
listen on 127.0.0.1 port {plain} hostname localhost filter recipients
listen on 127.0.0.1 port {starttls} hostname localhost filter recipients tls pki localhost
action inbox maildir "/inbox" virtual <inbox>
match from any for domain "mailbox.test" action inbox
"""


class OpenSMTPD(Jailed):
    """Run one OpenSMTPD. `more` is put into its configuration."""

    package = PACKAGE
    listeners = ("plain", "starttls")
    accounts = ("opensmtpd", "opensmtpq")
    command = ("/usr/sbin/smtpd", "-d", "-f", "/etc/smtpd.conf")
    log_file = "output"
    queues: ClassVar[tuple[str, ...]] = ("var/spool/smtpd/incoming", "var/spool/smtpd/queue")

    def __init__(self, more: str = "") -> None:
        super().__init__()
        self._more = more

    @property
    def version(self) -> str:
        """Read from its log which one it is, such as 6.8.0p2."""
        (said,) = re.findall(r"OpenSMTPD (\S+) starting", self.log())[-1:]
        return str(said)

    def furnish(self) -> None:
        """Write its one file of configuration; its queue it makes itself."""
        ports = {name: at.port for name, at in self.ports.items()}
        self.write("/etc/smtpd.conf", _CONFIGURATION.format(more=self._more, max_bytes=MAX_BYTES, **ports))
        self.write("/etc/relay.pem", self.ca_file.read_text(), mode=0o600)  # or it does not take it
        self.write("/etc/ssl/certs/ca-certificates.crt", self.ca_file.read_text())  # 7.6 does not start without one
        for folder in ("var", "var/lib", "var/lib/opensmtpd", "var/lib/opensmtpd/empty", "var/run"):
            (self.root / folder).mkdir(exist_ok=True)
        for folder in ("var/spool", "var/spool/smtpd"):
            (self.root / folder).mkdir(exist_ok=True)
            (self.root / folder).chmod(0o711)  # as it wants it
