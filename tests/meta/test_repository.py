"""What is generated is current, and nothing in the repository binds its user to one package index."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app.main import create_api
from app.runtime import Runtime
from app.settings import load
from scripts import errors_page

ROOT = Path(__file__).parents[2]

# In pieces, so that this file does not find itself.
REGISTRIES = (
    "index" + "-url",
    "files." + "pythonhosted",
    "registry." + "npmjs",
    "pypi." + "org/simple",
)


def test_the_committed_openapi_document_is_the_codes() -> None:
    document = create_api(Runtime(load({}, files=()))).openapi()
    text = (ROOT / "openapi.json").read_text("utf-8")
    assert json.loads(text) == document
    assert text == json.dumps(document, indent=2, ensure_ascii=False) + "\n", "another form: run make openapi"


def test_the_page_of_errors_is_the_codes() -> None:
    assert (ROOT / "docs" / "errors.md").read_text("utf-8") == errors_page.page(), "python -m scripts.errors_page"


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Name every file that git tracks; skips where this is no checkout."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip(f"this is no checkout: {listed.stderr.decode().strip()}")
    paths = [ROOT / name.decode() for name in listed.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file()]


@pytest.mark.parametrize("registry", REGISTRIES)
def test_no_tracked_file_names_a_registry(tracked: list[Path], registry: str) -> None:
    assert tracked
    found = [path for path in tracked if registry.encode() in path.read_bytes()]
    assert not found


def test_every_locked_requirement_has_a_hash(tracked: list[Path]) -> None:
    for name in ("requirements.lock", "requirements-dev.lock"):
        locked = (ROOT / name).read_text("utf-8").replace("\\\n", " ").splitlines()
        requirements = [line for line in locked if re.match(r"[A-Za-z0-9]", line)]
        assert requirements
        assert not [line for line in requirements if "--hash=sha256:" not in line]
