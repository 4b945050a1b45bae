"""What a hint proposes to change, for programs: settings to set, and those that must go with it. Pure.

A sentence names its settings through `Profile.setting()`; `Noting` notes those that it gives a value. So the sentence
and the changes cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from app.mail.profile import Profile, TlsMode, TlsVersion, Value

_JOINED = " and "  # between two lines of one change; whatever else stands between makes alternatives of them


@dataclass(frozen=True, slots=True)
class Change:
    """One way to put a profile right: keys of the profile and their values, and the settings to remove.

    `remove` has keys too, or the name of one of Typebot's switches (`SMTP_SECURE`).
    """

    set: Mapping[str, Value]
    remove: tuple[str, ...] = ()


class Noting(Profile):
    """A profile as a sentence speaks of it; `noted` has every line with a value, as (key, value, line)."""

    __slots__ = ("noted",)
    noted: list[tuple[str, Value, str]]

    @classmethod
    def of(cls, profile: Profile) -> Noting:
        """Return one for this profile, with nothing noted."""
        noting = cls(**{field.name: getattr(profile, field.name) for field in fields(profile)})
        object.__setattr__(noting, "noted", [])
        return noting

    def setting(self, key: str, value: Value = None) -> str:
        """Write a setting as `Profile.setting()` does, and note it where it has a value."""
        line = super().setting(key, value)
        if value is not None:
            self.noted.append((key, value, line))
        return line


def complete(
    sentence: str, profile: Profile, noted: Sequence[tuple[str, Value, str]]
) -> tuple[str, tuple[Change, ...]]:
    """Return the sentence with what each change in it removes, and those changes, in its order."""
    changes: list[Change] = []
    for end, proposed in reversed(list(_groups(sentence, profile, noted))):
        remove = _removed_by(profile, proposed)
        changes.insert(0, Change(proposed, remove))
        if remove:
            names = _JOINED.join(key if key.isupper() else profile.setting(key) for key in remove)
            sentence = f"{sentence[:end]} (and remove {names}){sentence[end:]}"
    return sentence, tuple(changes)


def _groups(
    sentence: str, profile: Profile, noted: Sequence[tuple[str, Value, str]]
) -> Iterator[tuple[int, dict[str, Value]]]:
    """Yield where each change ends in the sentence, and what it sets."""
    proposed: dict[str, Value] = {}
    end = 0
    for at, key, value, line in sorted((sentence.find(line), key, value, line) for key, value, line in noted):
        if at < end or _is_set(profile, key, value):
            continue
        if proposed and sentence[end:at] != _JOINED:
            yield end, proposed
            proposed = {}
        proposed[key] = value
        end = at + len(line)
    if proposed:
        yield end, proposed


def _is_set(profile: Profile, key: str, value: Value) -> bool:
    """Whether the line says how it is, and not how it should be."""
    return str(getattr(profile, key, None)).lower() == str(value).lower()


def _removed_by(profile: Profile, proposed: Mapping[str, Value]) -> tuple[str, ...]:
    """Name the settings that contradict a change, or that it leaves without effect."""
    remove: list[str] = []
    if "tls" in proposed and profile.tls_set_by.isupper():
        remove.append(profile.tls_set_by)
    if proposed.get("tls") in (TlsMode.NONE, TlsMode.OPPORTUNISTIC):
        remove += [
            k for k in ("ca_file", "cert_sha256", "server_name", "client_cert", "client_key") if getattr(profile, k)
        ]
        remove += ["min_tls"] if profile.min_tls is not TlsVersion.V1_2 else []
        remove += ["tls_security_level"] if profile.tls_security_level is not None else []
    elif proposed.get("verify") is False:
        remove += [k for k in ("ca_file", "cert_sha256") if getattr(profile, k)]
    elif "cert_sha256" in proposed and profile.ca_file:
        remove.append("ca_file")
    return tuple(remove)
