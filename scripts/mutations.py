"""Takes one safeguard after the other out of a copy of the code, and demands that a test sees it.

.venv/bin/python -m scripts.mutations

Each test must pass with the safeguard, and fail without. The tree itself is never touched.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).parents[1]
LONGEST = 120  # seconds of one test
FAILED = 1  # pytest's exit code where tests ran and some failed; a test that is not found or cannot run is another
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "var")
_SITUATIONS = "tests/contract/test_situations.py::test_the_attempt_says_what_the_table_says"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One safeguard less: `text`, which occurs once in `file`, becomes `instead`, and `test` must fail."""

    what: str
    file: str
    text: str
    instead: str
    test: str


MUTATIONS = (
    Mutation(
        "the sync of a commit",
        "app/store/database.py",
        'connection.execute("PRAGMA synchronous = FULL")',
        'connection.execute("PRAGMA synchronous = NORMAL")',
        "tests/e2e/test_order.py::test_a_message_is_on_the_disk_before_the_202_that_promises_it",
    ),
    Mutation(
        "the sync of a new folder",
        "app/store/database.py",
        "            os.fsync(above)\n",
        "            pass\n",
        "tests/e2e/test_power_cut.py::test_a_folder_that_was_made_for_the_database_outlives_a_power_cut",
    ),
    Mutation(
        "BEGIN IMMEDIATE",
        "app/store/journal.py",
        'connection.execute("BEGIN IMMEDIATE")\n                failed',
        'connection.execute("BEGIN")\n                failed',
        "tests/contract/test_journal.py::TestDurability::test_the_write_lock_is_taken_before_the_first_statement",
    ),
    Mutation(
        "the lease of whoever writes",
        "app/store/outbox.py",
        ' & (messages.c.lease_token == bindparam("token"))\n',
        "\n",
        "tests/contract/test_outbox.py::TestMark::test_a_mark_needs_the_lease",
    ),
    Mutation(
        "the wait for the mark",
        "app/smtp/transaction.py",
        "            await mark\n",
        "            _ignore(mark)\n",
        "tests/integration/test_session.py::test_the_final_dot_leaves_only_after_the_mark",
    ),
    Mutation(
        "the note that the content was let go",
        "app/smtp/transaction.py",
        "        self._attempt.handover = True\n",
        "",
        "tests/integration/test_every_byte.py"
        "::test_a_message_is_accounted_for_wherever_the_network_breaks[pipelined-closed]",
    ),
    Mutation(
        "the doubling of dots",
        "app/smtp/transaction.py",
        r'content.replace(b"\r\n.", b"\r\n..")',
        "content",
        "tests/unit/smtp/test_stuffing.py::test_a_relay_takes_out_what_was_put_in",
    ),
    Mutation(
        "the refusal of what came unasked, before MAIL",
        "app/smtp/phases.py",
        "        if surplus:\n",
        "        if surplus and False:\n",
        f"{_SITUATIONS}[uvloop-45-two-replies-to-greeting-before-auth]",
    ),
    Mutation(
        "the refusal of what came unasked, from MAIL on",
        "app/smtp/wire.py",
        "                self._break(Unexpected(str(reply)))\n                return\n",
        "                pass\n",
        f"{_SITUATIONS}[uvloop-45-354-and-250-together]",
    ),
    Mutation(
        "the look at what a prompt asks for",
        "app/smtp/mechanisms.py",
        "        what = asked_for or next(iter(self._left))\n",
        "        what = next(iter(self._left))\n",
        f"{_SITUATIONS}[uvloop-23b-the-user-name-is-asked-for-again-in-other-words]",
    ),
    Mutation(
        "the check of SCRAM's signature",
        "app/smtp/scram.py",
        "        if not hmac.compare_digest(",
        "        if False and not hmac.compare_digest(",
        f"{_SITUATIONS}[uvloop-23c-the-relay-proves-nothing]",
    ),
    Mutation(
        "the circuit after a login without a verdict",
        "app/mail/circuit.py",
        "    if failure.phase is Phase.AUTH or (",
        "    if (",
        "tests/api/test_circuit.py::test_whatever_goes_wrong_in_a_login_it_is_one_login_however_often_it_could_be_tried",
    ),
    Mutation(
        "the look at whose service answers",
        "app/operator.py",
        "    if theirs.is_same(ours) or (saves and is_of_this_path):\n",
        "    if theirs.inode:\n",
        "tests/e2e/test_control_socket.py::"
        "test_a_command_that_reaches_another_databases_service_says_so_and_does_nothing",
    ),
    Mutation(
        "the look at whether somebody listens on a control socket",
        "app/control_socket.py",
        "        _refuse_to_displace(path)\n",
        "",
        "tests/e2e/test_control_socket.py::test_a_living_service_keeps_its_socket_though_its_lock_was_deleted",
    ),
)


def main() -> None:
    unseen = []
    for mutation in MUTATIONS:
        began = monotonic()
        says = _verdict(mutation)
        print(f"{says:32}{mutation.what:50}{monotonic() - began:5.0f} s", flush=True)
        if says != SEEN:
            unseen.append(mutation.what)
    if unseen:
        raise SystemExit(f"not seen: {', '.join(unseen)}")
    print(f"{len(MUTATIONS)} safeguards, each missed when it is gone")


SEEN = "seen"


def mutated(mutation: Mutation, text: str) -> str:
    """Take the safeguard out of a file's text.

    Raises:
        ValueError: it is not there, or more than once.
    """
    if text.count(mutation.text) != 1:
        raise ValueError(f"{mutation.file} has {mutation.text!r} {text.count(mutation.text)} times, not once")
    return text.replace(mutation.text, mutation.instead)


def _verdict(mutation: Mutation) -> str:
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        tree = Path(name) / "tree"
        shutil.copytree(ROOT, tree, ignore=_LEFT_OUT)
        if _run(mutation.test, tree) != 0:
            return "FAILS WITH THE SAFEGUARD, TOO"
        file = tree / mutation.file
        file.write_text(mutated(mutation, file.read_text("utf-8")), "utf-8")
        code = _run(mutation.test, tree)
        return SEEN if code == FAILED else f"NOT SEEN (pytest ended with {code})"


def _run(test: str, tree: Path) -> int:
    """Run one test of a tree; gives pytest's exit code. A test that skips ends with 0 both times."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", str(LONGEST), test]
    environ = {**os.environ, "PYTHONPATH": str(tree)}  # in front of the package that .venv knows, for children too
    return subprocess.run(command, cwd=tree, env=environ, capture_output=True, check=False).returncode


if __name__ == "__main__":
    main()
