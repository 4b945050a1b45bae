"""Writes the tables of docs/configuration.md from the settings as `app/written.py` describes them.

    .venv/bin/python -m scripts.configuration_page

Each stands between `<!-- settings: NAME -->` and `<!-- end -->`; what is outside is written by hand.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel

from app.written import ProfileSettings, RetentionSettings, RetrySettings, RouteSettings, Written

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
PREFIX = "MAILCHUTE_"
TABLES: dict[str, tuple[type[BaseModel], str | None]] = {
    "service": (Written, ""),
    "retry": (RetrySettings, "retry"),
    "retention": (RetentionSettings, "retention"),
    "profiles": (ProfileSettings, None),
    "routes": (RouteSettings, None),
}


def table(model: type[BaseModel], below: str | None) -> Iterable[str]:
    """Write one model, a line a setting; `below` None = its variables have a name of the user's in them."""
    column = "" if below is None else " variable |"
    yield f"| setting |{column} default | |"
    yield f"|---|{'---|' if column else ''}---|---|"
    for name, field in model.model_fields.items():
        key = field.alias or name
        if name in TABLES:
            continue
        extra = field.json_schema_extra
        shown = extra.get("shown") if isinstance(extra, dict) else None
        default = shown or ("–" if field.default is None else f"`{in_toml(field.default)}`")
        path = f"{below}.{key}" if below else key
        variable = f" `{PREFIX}{path.upper().replace('.', '__')}` |" if column else ""
        yield f"| `{path}` |{variable} {default} | {field.description} |".replace("|  |", "| |")


def in_toml(value: object) -> str:
    """Write a default as the file would."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def page(text: str) -> str:
    """Give the page with its tables anew."""
    for name, (model, below) in TABLES.items():
        rows = "\n".join(table(model, below))
        between = re.compile(rf"(<!-- settings: {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text, count = between.subn(rf"\g<1>{rows}\g<2>", text)
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} tables named {name}, not one")
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
