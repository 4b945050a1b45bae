"""A real Exim on loopback, not installed: see `tests.support.jail` for how it is run.

Its own: it says no enhanced status codes. A mail has Return-path, Envelope-to and Received in front.
"""

import re
from typing import ClassVar

from tests.support.jail import MAX_BYTES, Jailed
from tests.support.server import Listener, until

PACKAGE = "exim4-daemon-light"
USER, PASSWORD = "bot", "correct-horse"

# $received_port tells the listeners apart; what a session is offered is expanded anew at every EHLO, so that `login`
# offers AUTH under TLS only. What is not said here is as Exim has it, in particular how much a session may ask for.
# daemon_startup_retries: it would try a port that is taken again for five minutes.
_CONFIGURATION = """
{more}
primary_hostname = localhost
exim_user = Debian-exim
deliver_drop_privilege
local_interfaces = 127.0.0.1
daemon_smtp_ports = {plain} : {starttls} : {login}
daemon_startup_retries = 0
spool_directory = /var/spool/exim4
log_file_path = /var/log/exim4/%slog
log_selector = +pid +received_recipients
pid_file_path = /var/spool/exim4/exim.pid
keep_environment =
message_size_limit = {max_bytes}
tls_advertise_hosts = ${{if !={{$received_port}}{{{plain}}}{{*}}}}
tls_certificate = /etc/relay.pem
auth_advertise_hosts = ${{if and{{{{={{$received_port}}{{{login}}}}}{{def:tls_in_cipher}}}}{{*}}}}
acl_smtp_rcpt = recipient
acl_smtp_data = accept

begin acl
recipient:
  deny condition = ${{if ={{$received_port}}{{{login}}}}}
       !authenticated = *
       message = relay not permitted
  deny recipients = nobody@mailbox.test
       message = User unknown
  defer recipients = later@mailbox.test
       message = Greylisted, try again later
  accept domains = mailbox.test
  deny message = relay not permitted

begin routers
inbox:
  driver = accept
  transport = inbox

begin transports
inbox:
  driver = appendfile
  directory = /inbox
  maildir_format
  user = Debian-exim
  envelope_to_add
  return_path_add

begin authenticators
cram_md5:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${{if eq{{$auth1}}{{{user}}}{{{password}}}fail}}
  server_set_id = $auth1
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${{if and{{{{eq{{$auth1}}{{{user}}}}}{{eq{{$auth2}}{{{password}}}}}}}}}
  server_set_id = $auth1
"""


class Exim(Jailed):
    """Run one Exim. `more` is put before its configuration, a main option a line."""

    package = PACKAGE
    listeners = ("plain", "starttls", "login")
    login: Listener  # needs AUTH, by CRAM-MD5, PLAIN or LOGIN as USER; offers it under STARTTLS only
    accounts = ("Debian-exim",)
    command = ("/usr/sbin/exim4", "-bdf")
    log_file = "var/log/exim4/mainlog"
    queues: ClassVar[tuple[str, ...]] = ("var/spool/exim4/input",)

    def __init__(self, more: str = "") -> None:
        super().__init__()
        self._more = more

    def furnish(self) -> None:
        """Write its one file of configuration."""
        ports = {name: at.port for name, at in self.ports.items()}
        filled = _CONFIGURATION.format(more=self._more, max_bytes=MAX_BYTES, user=USER, password=PASSWORD, **ports)
        self.write("/etc/exim4/exim4.conf", filled)
        # It reads the key after it has given root away, and would make its folders with root as their owner.
        self.write("/etc/relay.pem", self.ca_file.read_text())
        for folder in ("/var/spool/exim4", "/var/log/exim4"):
            self.own(folder)

    def failed_logins(self, *, at_least: int = 0, timeout: float = 5) -> int:
        """Count the AUTH commands that were answered with 535; waits up to `timeout` seconds for `at_least`."""
        line = re.compile(r" (?:cram_md5|plain|login) authenticator failed for ")

        def count() -> int:
            return len(line.findall(self.log()))

        until(lambda: count() >= at_least, timeout=timeout)
        return count()
