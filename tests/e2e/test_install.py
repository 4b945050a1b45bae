"""The wheel is whole: installed by itself it migrates and serves from an empty folder.

Built and installed without an index. The new environment borrows the dependencies of this one by a .pth line,
behind its own packages; a .pth line does not read further .pth files, so the editable install stays out of sight.
"""

import json
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.service import Service, run

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")


async def succeed(*command: str, folder: Path) -> str:
    ended = await run(*command, folder=folder)
    assert ended.code == 0, f"{command}: {ended.out}{ended.err}"
    return ended.out


@pytest.fixture
async def wheel(tmp_path: Path) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path / "wheel"
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir")
    await succeed(*PIP, "wheel", *offline, "--wheel-dir", str(folder), str(ROOT), folder=tmp_path)
    (wheel,) = folder.iterdir()
    return wheel


async def install(wheel: Path, folder: Path) -> Path:
    """Install the wheel in an environment of its own; gives the folder of its programs."""
    await succeed(sys.executable, "-m", "venv", "--without-pip", str(folder), folder=wheel.parent)
    programs = folder / "bin"
    target = ("--python", str(programs / "python"))
    await succeed(
        *PIP, *target, "install", "--no-index", "--no-deps", "--no-cache-dir", str(wheel), folder=wheel.parent
    )
    ask = "import json, sysconfig; print(json.dumps(sysconfig.get_path('purelib')))"
    own = Path(json.loads(await succeed(str(programs / "python"), "-c", ask, folder=wheel.parent)))
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "dependencies.pth").write_text("".join(f"{path}\n" for path in sorted(dependencies)))
    return programs


async def test_the_wheel_migrates_and_serves_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    programs = await install(wheel, tmp_path / "environment")
    where = await succeed(str(programs / "python"), "-c", "import app; print(app.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "environment"), "it is not the checkout that is tested"

    async with Service(command=(str(programs / "mailchute"), "serve")) as service:
        answer = await service.send()
        assert (answer.status_code, answer.json()["state"]) == (200, "sent")
        failing = await service.send(profile="sandbox-tls-expired")  # which needs a file of the package's
        assert failing.json()["reason"] == "tls_cert_expired"
        for path in ("/docs", "/redoc", "/openapi.json", "/sandbox", "/sandbox/static/inspector.css"):
            assert (await service.http.get(path)).status_code == 200, path
        assert (service.folder / "var" / "mailchute.db").is_file()
        assert await service.stop() == 0


async def test_the_wheel_holds_what_it_needs_and_no_more(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    steps = {f"app/alembic/versions/{path.name}" for path in (ROOT / "alembic" / "versions").glob("*.py")}
    assert steps <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"app"}
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".db"))]
