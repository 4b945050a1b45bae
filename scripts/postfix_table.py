"""Prints what wrong settings say against a real Postfix, and how their hints mend them, as Markdown.

Every row is a real run, in the order of TABLE in tests/integration/test_postfix.py; below a wrong setting stands
what following its hint came to, down to `sent`. Where nothing is set there are only host and port.

    .venv/bin/python scripts/postfix_table.py 2>/dev/null
"""

import asyncio
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.telemetry import set_up_logs
from tests.integration.test_postfix import TABLE, Verdict, merged, verdicts_of
from tests.support.postfix import Postfix, missing


def shown(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Write what was set, and what removed, between two environments."""
    said = [f"`{name}={value}`" for name, value in after.items() if before.get(name) != value]
    return "<br>".join(said + [f"no `{name}`" for name in before if name not in after])


def row(listener: str, before: Mapping[str, str], verdict: Verdict, port: int) -> str:
    state, code, reason, cls = verdict.outcome
    hint = verdict.hint.replace(str(port), "{port}")
    return f"| {listener} | {shown(before, verdict.settings)} | {state} | {code} | {reason} | {cls} | {hint} |"


async def main() -> None:
    print("| listener | set | state | error_code | reason | class | hint, or the error at start |")
    print("|---|---|---|---|---|---|---|")
    with Postfix() as postfix:
        for case in TABLE.values():
            listener: str = case.listener
            before: Mapping[str, str] = merged()
            with tempfile.TemporaryDirectory() as folder:
                verdicts = await verdicts_of(postfix, case, Path(folder))
            for verdict in verdicts:
                print(row(listener, before, verdict, postfix.listeners[case.listener].port))
                listener, before = "", verdict.settings


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    set_up_logs(as_json=True)
    asyncio.run(main())
