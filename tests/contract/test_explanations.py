"""What is said of a reason holds for every failure that the tables of this folder know: the classes it comes with."""

from collections import defaultdict
from collections.abc import Mapping

import pytest

from app.mail.codes import CODE_OF, Reason
from app.mail.explain import EXPLANATIONS
from app.mail.outcome import FailureClass
from app.smtp.relays import _KNOWN
from tests.contract.test_doctor import TABLE as DIAGNOSES
from tests.contract.test_recorded_replies import RECORDED
from tests.contract.test_situations import TABLE as SITUATIONS

CLASSES = {cls.value[0].upper(): cls for cls in FailureClass}

# What no relay can be made to do on loopback, or what is none of a relay's doing; other tests have them.
NOT_A_RELAYS = {
    Reason.HOST_UNREACHABLE,
    Reason.TLS_HANDSHAKE_FAILED,  # temporary only where OpenSSL has no name for it (test_failures.py)
    Reason.PROFILE_UNKNOWN,
    Reason.FILE_UNREADABLE,
    Reason.WORKER_CRASHED,
    Reason.EXPIRED,
    Reason.UNEXPECTED,
}


def in_the_tables() -> Mapping[Reason, set[FailureClass]]:
    """Read off every row with which class it asserts a reason."""
    said: dict[Reason, set[FailureClass]] = defaultdict(set)
    rows = [words for row in SITUATIONS for words in ([row.says] if isinstance(row.says, str) else row.says.values())]
    for words in (*rows, *(row.says for row in DIAGNOSES)):
        if words not in ("sent", "well"):
            code, _, rest = words.partition("/")
            reason, initial = rest.split()
            assert CODE_OF[Reason(reason)] == code
            said[Reason(reason)].add(CLASSES[initial])
    for recorded in RECORDED:
        reason, cls = recorded["says"].split()
        said[Reason(reason)].add(FailureClass(cls))
    return said


IN_THE_TABLES = in_the_tables()


@pytest.mark.parametrize("reason", Reason)
def test_every_class_that_a_reason_came_with_is_explained_and_no_other(reason: Reason) -> None:
    explained = EXPLANATIONS[reason].classes
    assert len(set(explained)) == len(explained)
    if reason in NOT_A_RELAYS:
        assert IN_THE_TABLES.get(reason, set()) <= set(explained)
    else:
        assert IN_THE_TABLES[reason] == set(explained)


def test_what_a_known_relay_means_is_explained_too() -> None:
    rules = [known.reason for known in _KNOWN if known.reason is not None]
    assert rules
    assert [(reason, cls) for reason, cls in rules if cls not in EXPLANATIONS[reason].classes] == []
