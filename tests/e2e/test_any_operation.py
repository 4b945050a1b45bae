"""Whatever is asked, the program answers as openapi.json says: Schemathesis walks every operation of it.

It runs as a program of its own against the real one in the sandbox, where nothing leaves the machine: bodies and
parameters that fit and that do not, other methods, no key, and chains such as send, look up, cancel. The same seed
asks the same; a failure prints the curl line that shows it.
"""

import json
import re
import sys
from pathlib import Path

import pytest

from tests.support.service import Service, run

ROOT = Path(__file__).parents[2]
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
KEY = "a-key-of-the-tests-0123456789"
SEED = 4711
LONGEST = 110.0  # seconds; 15 on a machine that does nothing else

# 422 fits every body: that an address is one, or that there is a text or html, no schema says. The profile that is
# paused is another one: whatever is sent through that would be waited for.
CONFIGURATION = f"""
seed = {SEED}
color = false
[generation]
max-examples = 25
[parameters]
"path.name" = "sandbox"
[[operations]]
include-operation-id = "pauseProfile"
parameters = {{ "path.name" = "sandbox-down" }}
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "404", "409", "422", "424", "429"]
"""


@pytest.mark.timeout(120)
async def test_every_operation_answers_as_documented(tmp_path: Path) -> None:
    if not SCHEMATHESIS.exists():
        pytest.skip("schemathesis is not installed: make .venv/.dev")
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    async with Service({"MAILCHUTE_API_KEY": KEY, "MAILCHUTE_SANDBOX": "true"}) as service:
        where = (str(ROOT / "openapi.json"), "--url", service.base, "--header", f"Authorization: Bearer {KEY}")
        ended = await run(str(SCHEMATHESIS), "run", *where, folder=tmp_path, patience=LONGEST)
        sys.stdout.write(ended.out)
        assert ended.code == 0, f"seed {SEED}: {ended.out}{ended.err}"
        operations = len(
            [1 for methods in json.loads(Path(where[0]).read_text("utf-8"))["paths"].values() for _ in methods]
        )
        assert f"Tested: {operations}\n" in ended.out
        generated = re.search(r"(\d+) generated, (\d+) passed", ended.out)
        assert generated, ended.out
        assert int(generated[1]) > 500, "it really asked"
        assert [line for line in service.log if line["level"] not in ("info", "warning")] == []
        listed = await service.operator.get("/messages", params={"limit": 100})
        assert listed.json()["data"], "some of it was sent"
        assert all(message["sandbox"] for message in listed.json()["data"])
