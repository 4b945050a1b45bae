"""A real Postfix on loopback, for the tests that want a relay that was not written by us.

Knows Postfix and Cyrus SASL; must not know the program under test. The instance is private: configuration,
queue, users, certificates and mailbox live in one temporary folder, /etc/postfix is not read. All listeners
belong to one master process, so that the start is paid once. Nothing is ever relayed, no name is looked up,
and Postfix's defences against strangers (pauses, connection limits) are off.

All listeners take mail for any address at mailbox.test but some: nobody@ is refused with 550 5.1.1, later@
with 450 4.2.0, full0@, full1@ … with 452 4.2.2; other domains with 454 4.7.1 or, after AUTH, 554 5.7.1. Every recipient gets a copy of its
own, in one Maildir; Postfix puts Return-Path, X-Original-To, Delivered-To and Received in front.
"""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
import trustme

from tests.support.server import Listener, Mailbox, Processes, greets, take_ports, until
from tests.support.tls import certificates

ENV = {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}
MAX_BYTES = 20_000  # content size that the `limits` listener takes
MAX_RECIPIENTS = 5  # recipients a transaction that it takes; more get 452 4.5.3

USERS = {
    "bot": "correct-horse",
    "space": "pass word with  spaces ",
    "percent": "100%s%20%%",
    "colon": "user:pass:word",
    "unicode": "pässwörd€",
    "long": "0123456789abcdef" * 60,
    "robot@mailbox.test": "its-name-has-a-domain",
}

_TLS_NEEDED = "-o smtpd_tls_security_level=encrypt"
_AUTH = "-o smtpd_sasl_auth_enable=yes"
_AUTH_NEEDED = f"{_AUTH} -o smtpd_relay_restrictions=permit_sasl_authenticated,reject"
_MUTUAL = f"{_TLS_NEEDED} -o smtpd_tls_req_ccert=yes -o smtpd_tls_CAfile=$config_directory/../ca.pem"
_LIBRARIES = ("lib", "lib64", "lib/*")
_QUEUES = ("incoming", "active", "deferred")  # in a mail's order
_LISTENERS = {
    "plain": "",
    "starttls": "-o smtpd_tls_security_level=may -o smtpd_tls_chain_files=$config_directory/self-signed.pem",
    "starttls_auth": f"{_TLS_NEEDED} {_AUTH_NEEDED} -o smtpd_tls_auth_only=yes",
    "implicit_auth": f"{_TLS_NEEDED} {_AUTH_NEEDED} -o smtpd_tls_wrappermode=yes",
    "mutual": _MUTUAL,
    "mutual_tls12": f"{_MUTUAL} -o smtpd_tls_mandatory_protocols=TLSv1.2 -o smtpd_tls_wrappermode=yes",
    "auth_optional": _AUTH,
    "auth_plain_only": _AUTH_NEEDED,
    "auth_scram": f"{_AUTH_NEEDED} -o smtpd_sasl_path=scram",
    "limits": f"-o message_size_limit={MAX_BYTES} -o smtpd_recipient_limit={MAX_RECIPIENTS}",
}

# mynetworks is a documentation network (RFC 5737): loopback must not be trusted, or the default
# smtpd_relay_restrictions would let every test relay. master.cf has no SMTP client to relay with either.
# The lists left empty would read /etc/aliases and /etc/passwd, or rewrite what local clients send.
# Bare newlines are what Postfix takes by default until 3.9 (SMTP smuggling): it must stay the victim.
_FILES = {
    "main.cf": """
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
meta_directory = {home}/etc
maillog_file_prefixes = {home}
maillog_file = {home}/mail.log
inet_interfaces = loopback-only
inet_protocols = ipv4
myhostname = localhost
mydestination =
mynetworks = 192.0.2.1/32
local_recipient_maps =
local_header_rewrite_clients =
local_transport = $default_transport
default_transport = error:5.7.1 nothing leaves this machine
virtual_mailbox_domains = mailbox.test
virtual_mailbox_base = {home}/spool
virtual_mailbox_maps = static:inbox/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
message_size_limit = 50000000
in_flow_delay = 0
smtpd_forbid_bare_newline = no
smtpd_peername_lookup = no
smtpd_error_sleep_time = 0
smtpd_client_connection_count_limit = 0
smtpd_recipient_restrictions = reject_unauth_destination,check_recipient_access texthash:{home}/etc/recipients,check_recipient_access regexp:{home}/etc/full
smtpd_tls_chain_files = $config_directory/ca-signed.pem
cyrus_sasl_config_path = $config_directory/sasl
""",
    "master.cf": """
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
tlsmgr unix - - n 1000? 1 tlsmgr
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
postlog unix-dgram n - n - 1 postlogd
{smtpds}
""",
    "recipients": """
nobody@mailbox.test 550 5.1.1 User unknown
later@mailbox.test 450 4.2.0 Greylisted, try again later
""",
    "full": r"""
/^full[0-9]+@mailbox\.test$/ 452 4.2.2 Mailbox full
""",
    "sasl/smtpd.conf": """
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {home}/etc/sasl/users
mech_list: PLAIN LOGIN CRAM-MD5
""",
}
_FILES["sasl/scram.conf"] = _FILES["sasl/smtpd.conf"].replace("PLAIN LOGIN CRAM-MD5", "SCRAM-SHA-256 SCRAM-SHA-1")


def missing() -> str | None:
    """Say why the tests against Postfix cannot run here; None if they can."""
    if os.geteuid() != 0:
        return "Postfix's master process needs root"
    for program in ("postfix", "postconf", "saslpasswd2"):
        if shutil.which(program, path=ENV["PATH"]) is None:
            return f"{program} is not installed (scripts/test-packages.sh brings it on Debian)"
    of_sasl = [{file.name.split(".")[0] for file in Path("/usr").glob(f"{lib}/sasl2/*.so*")} for lib in _LIBRARIES]
    if not {"libcrammd5", "libscram"} <= set().union(*of_sasl):
        return "the SASL mechanisms are not installed (libsasl2-modules on Debian)"
    return None


class Postfix:
    """Run one Postfix: the context makes and removes its folder, `start` and `stop` its processes."""

    ca_file: Path  # PEM; its authority vouches for localhost and 127.0.0.1
    plain: Listener
    starttls: Listener  # offered; the certificate for localhost is self-signed
    starttls_auth: Listener  # needs STARTTLS, then AUTH; certificate by ca_file
    implicit_auth: Listener  # TLS from the first byte, needs AUTH; certificate by ca_file
    mutual: Listener  # needs STARTTLS and a client's certificate by ca_file
    mutual_tls12: Listener  # the same with TLS 1.2 from the first byte
    auth_optional: Listener  # offered in clear, no TLS
    auth_plain_only: Listener  # needed, in clear, no TLS
    auth_scram: Listener  # the same, by SCRAM alone
    limits: Listener  # MAX_BYTES and MAX_RECIPIENTS

    def __init__(self) -> None:
        self.users = USERS  # passwords by name; AUTH is by PLAIN, LOGIN or CRAM-MD5 where SCRAM is not named
        self.listeners: dict[str, Listener] = {}  # by name
        self._processes: Processes | None = None

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="postfix-"))
        self.ca_file = self._home / "ca.pem"
        self.mailbox = Mailbox(self._home / "spool/inbox", [self._home / "queue" / name for name in _QUEUES])
        try:
            with ExitStack() as held:
                self.listeners |= take_ports(_LISTENERS, held)
                vars(self).update(self.listeners)
                self._furnish()
                self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
        shutil.rmtree(self._home)

    def start(self) -> None:
        """Start the processes, always on the same ports; returns once all listeners take connections.

        Raises: RuntimeError with Postfix's log if that fails or takes longer than 10 s.
        """
        if self._processes is not None:
            return
        etc = f"{self._home}/etc"
        asked = subprocess.check_output(["postconf", "-c", etc, "-h", "daemon_directory"], env=ENV, text=True)
        self._processes = Processes([f"{asked.strip()}/master", "-d", "-c", etc], env=ENV)
        if not until(lambda: greets(self.limits), timeout=10):  # the last one that the master opens
            raise RuntimeError(f"Postfix did not start:\n{self.log()}")

    def stop(self) -> None:
        """End every process of the instance; mails and log stay readable until the context ends."""
        if self._processes is None:
            return
        processes, self._processes = self._processes, None
        processes.end()

    def mails(self) -> list[bytes]:
        """Read all delivered mail, oldest first, as it lies in the Maildir (lines end in LF)."""
        return self.mailbox.mails()

    def wait_for_mail(self, wanted: str | Callable[[bytes], object], *, timeout: float = 15) -> bytes:
        """Return the first delivered mail that has `wanted` in its header section, or for which it is true.

        Blocks; `timeout` is in seconds. A session's tests share the mailbox, so look for something unique,
        such as a Message-ID. Raises: TimeoutError with the end of Postfix's log.
        """
        if not until(lambda: any(_matches(mail, wanted) for mail in self.mails()), timeout=timeout):
            raise TimeoutError(f"no such mail within {timeout} s; the log ends:\n{self.log()[-4000:]}")
        return next(mail for mail in self.mails() if _matches(mail, wanted))

    def log(self) -> str:
        """Read what Postfix logged so far; it trails the dialogue by some milliseconds."""
        file = self._home / "mail.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def auth_attempts(self, listener: Listener, *, at_least: int = 0, timeout: float = 5) -> int:
        """Count the AUTH commands, good and bad, of the sessions of `listener` that have ended.

        The log trails the dialogue: waits up to `timeout` seconds for `at_least` of them.
        """
        line = re.compile(rf"postfix/{listener.name}/smtpd\[\d+\]: disconnect from .* auth=(?:\d+/)?(\d+)")

        def count() -> int:
            return sum(map(int, line.findall(self.log())))

        until(lambda: count() >= at_least, timeout=timeout)
        return count()

    def _furnish(self) -> None:
        home, etc, nobody = self._home, self._home / "etc", pwd.getpwnam("nobody")
        queue = "pid active bounce corrupt defer deferred hold incoming maildrop private public saved trace"
        for path in ("etc/sasl", "data", "spool/inbox/new", *(f"queue/{name}" for name in queue.split())):
            (home / path).mkdir(parents=True)
        row = "127.0.0.1:{} inet n - n - - smtpd -o syslog_name=postfix/{} {}"
        smtpds = "\n".join(row.format(at.port, name, _LISTENERS[name]) for name, at in self.listeners.items())
        for name, text in _FILES.items():
            filled = text.format(home=home, uid=nobody.pw_uid, gid=nobody.pw_gid, smtpds=smtpds)
            (etc / name).write_text(filled)
        for folder in (home, home / "queue", home / "spool", etc, etc / "sasl"):
            folder.chmod(0o711)  # whatever the umask: Postfix's own users must get through
        for name, password in self.users.items():
            local, _, realm = name.partition("@")  # without a domain in the name it is Postfix's own
            command = ["saslpasswd2", "-pcf", f"{etc}/sasl/users", "-u", realm or "localhost", local]
            subprocess.run(command, env=ENV, input=password.encode(), check=True, capture_output=True)
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(self.ca_file))
        leaf = ca.issue_cert("localhost", "127.0.0.1")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(etc / "ca-signed.pem"))
        shutil.copy(certificates().self_signed_file, etc / "self-signed.pem")
        for owned in (home / "spool/inbox", home / "spool/inbox/new"):
            shutil.chown(owned, "nobody")
        for owned in (home / "data", *(etc / "sasl").iterdir(), *(home / "queue").iterdir()):
            shutil.chown(owned, "postfix")
        # Every Postfix process reads a file of the last second again, 0.3 s later, lest it be half-written.
        for file in etc.iterdir():
            os.utime(file, (0, 0))


def _matches(mail: bytes, wanted: str | Callable[[bytes], object]) -> bool:
    return wanted.encode() in mail.partition(b"\n\n")[0] if isinstance(wanted, str) else bool(wanted(mail))


@pytest.fixture(scope="session")
def postfix() -> Iterator[Postfix]:
    """Run Postfix for the session (with xdist: a worker's); the tests that want it are skipped where it cannot run.

    Each conftest.py that imports it gets an instance of its own: mailboxes are looked through whole, and a crash loop
    leaves thousands of mails in one.
    """
    if reason := missing():
        pytest.skip(reason)
    with Postfix() as running:
        yield running
