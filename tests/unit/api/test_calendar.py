"""An invitation is read, or refused with what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.body import asked_of
from app.api.calendar import MAX_CALENDAR, METHODS, read_invitation
from app.mail.errors import InvalidMessage
from app.mail.message import Calendar

EVENT = "BEGIN:VEVENT\r\nUID:1@example.org\r\nSUMMARY:Lunch\r\nEND:VEVENT\r\n"
CALENDAR = f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nMETHOD:REQUEST\r\n{EVENT}END:VCALENDAR\r\n"


def _read(calendar: Any) -> Calendar | None:
    return asked_of(json.dumps({"calendar": calendar}).encode(), lenient=False).draft.calendar


def _faults(calendar: Any) -> dict[str, str]:
    with pytest.raises(InvalidMessage) as refused:
        _read(calendar)
    return {fault.pointer: fault.detail for fault in refused.value.faults}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_taken_in_any_case(method: str) -> None:
    content = CALENDAR.replace("REQUEST", method).strip()
    for written in (method, method.lower(), f" {method} "):
        assert _read({"method": written, "content": content}) == Calendar(method, content)


@pytest.mark.parametrize(
    "content",
    [
        CALENDAR,
        CALENDAR.replace("\r\n", "\n"),
        CALENDAR.replace("\r\n", "\r"),
        CALENDAR.lower(),
        f"\ufeff{CALENDAR}",
        f"\n {CALENDAR}\n\n",
        CALENDAR.replace("METHOD:REQUEST\r\n", ""),
        CALENDAR.replace("METHOD:REQUEST", "METHOD;X-A=b:request"),
        CALENDAR.replace("METHOD:REQUEST", "MET\r\n HOD:REQ\r\n\tUEST"),
        CALENDAR.replace("SUMMARY", "METHOD:CANCEL\r\nSUMMARY"),
        CALENDAR.replace("Lunch", "METHOD:CANCEL"),
        CALENDAR.replace("Lunch", "Essen für\r\n METHOD:CANCEL"),
        CALENDAR.replace("Lunch", "a\u2028METHOD:CANCEL\x85END:VCALENDAR"),
        "BEGIN:VCALENDAR\nEND:VCALENDAR",
    ],
)
def test_a_calendar_is_read_in_every_written_form(content: str) -> None:
    assert _read({"method": "REQUEST", "content": content}) == Calendar(
        "REQUEST", content.removeprefix("\ufeff").strip()
    )


@pytest.mark.parametrize("calendar", ["", None])
def test_an_empty_calendar_equals_none(calendar: Any) -> None:
    assert _read(calendar) is None


@pytest.mark.parametrize(
    ("calendar", "pointer", "why"),
    [
        (CALENDAR, "/calendar", '"method"'),
        (5, "/calendar", '"method"'),
        ([], "/calendar", '"method"'),
        ({"content": CALENDAR}, "/calendar/method", "method is missing"),
        ({"method": "", "content": CALENDAR}, "/calendar/method", "method is missing"),
        ({"method": 5, "content": CALENDAR}, "/calendar/method", "DECLINECOUNTER"),
        ({"method": "REQUESTS", "content": CALENDAR}, "/calendar/method", "do you mean 'REQUEST'?"),
        ({"method": "INVITE", "content": CALENDAR}, "/calendar/method", "PUBLISH, REQUEST"),
        ({"method": "REQUEST\r\nBcc: x", "content": CALENDAR}, "/calendar/method", "REQUEST"),
        ({"method": "CANCEL", "content": CALENDAR}, "/calendar/method", "METHOD:REQUEST; give the same"),
        ({"method": "REQUEST"}, "/calendar/content", "content is missing"),
        ({"method": "REQUEST", "content": ""}, "/calendar/content", "content is missing"),
        ({"method": "REQUEST", "content": ["x"]}, "/calendar/content", "string"),
        ({"method": "REQUEST", "content": "Hello"}, "/calendar/content", "BEGIN:VCALENDAR"),
        ({"method": "REQUEST", "content": " "}, "/calendar/content", "BEGIN:VCALENDAR"),
        ({"method": "REQUEST", "content": "QkVHSU46VkNBTEVOREFS"}, "/calendar/content", "not base64"),
        ({"method": "REQUEST", "content": EVENT}, "/calendar/content", "BEGIN:VCALENDAR"),
        ({"method": "REQUEST", "content": CALENDAR[:-20]}, "/calendar/content", "END:VCALENDAR"),
        ({"method": "REQUEST", "content": CALENDAR + CALENDAR}, "/calendar/content", "END:VCALENDAR"),
        ({"method": "REQUEST", "content": CALENDAR.replace("END:VEVENT\r\n", "")}, "/calendar/content", "its END"),
        ({"method": "REQUEST", "content": CALENDAR.replace("\r\n", "\\n")}, "/calendar/content", "line of its own"),
        (
            {"method": "REQUEST", "content": CALENDAR.replace("Lunch", "\x00")},
            "/calendar/content",
            "control characters",
        ),
        ({"method": "REQUEST", "content": "x" * (MAX_CALENDAR + 1)}, "/calendar/content", "at most 1000000"),
        ({"method": "REQUEST", "content": CALENDAR, "methods": 1}, "/calendar/methods", "do you mean 'method'?"),
        ({"method": "REQUEST", "content": CALENDAR, "url": 1}, "/calendar/url", "known are: method, content"),
        ({"method": "REQUEST", "content": CALENDAR, "a/b": 1}, "/calendar/a~1b", "known are"),
    ],
    ids=lambda value: str(value)[:50].encode("unicode_escape").decode(),
)
def test_a_fault_points_at_the_value_and_says_what_is_wrong_with_it(calendar: Any, pointer: str, why: str) -> None:
    faults = _faults(calendar)
    assert list(faults) == [pointer]
    assert why in faults[pointer]


def test_every_fault_is_told_at_once() -> None:
    assert list(_faults({"method": "x", "content": "y", "z": 1})) == [
        "/calendar/z",
        "/calendar/method",
        "/calendar/content",
    ]


_scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.just(CALENDAR))


@given(st.dictionaries(st.sampled_from(["method", "content", "x"]), _scalars))
def test_anything_is_an_invitation_or_has_faults(value: dict[str, Any]) -> None:
    calendar, faults = read_invitation(value)
    assert (calendar is None) is bool(faults)
    assert all(detail.isprintable() for _, detail in faults)
