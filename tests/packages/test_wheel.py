"""The wheel: complete, installed by pip where there is no checkout, and a daemon that works from there."""

import http.client
import os
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from harness.daemon import to_toml
from harness.process import Process, free_port
from harness.services import require_made
from imagejobd import __version__

SOURCE_ROOT = Path(__file__).parents[2]
# What older versions of setuptools build wheels with, where there is no index to fetch it from.
DEBIAN = SOURCE_ROOT / ".lanes" / "machine"
PAGE = SOURCE_ROOT / "imagejobd" / "api" / "page"
BUILD_TIMEOUT_S = 240
START_TIMEOUT_S = 60.0


def pip(*args: str | Path, libraries: Path | str = "") -> None:
    """pip where there is no index: neither libraries nor tools for building are fetched."""
    env = os.environ | {"PYTHONPATH": str(libraries), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    subprocess.run([sys.executable, "-m", "pip", "-q", *args], env=env, timeout=BUILD_TIMEOUT_S, check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout: setuptools leaves files in it."""
    require_made(DEBIAN, "make machine")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        SOURCE_ROOT / "imagejobd", folder / "checkout/imagejobd", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(SOURCE_ROOT / name, folder / "checkout" / name)
    tools, built = folder / "tools", folder / "built"
    tools.mkdir()
    for path in (DEBIAN / "usr/lib/python3/dist-packages").glob("wheel*"):
        (tools / path.name).symlink_to(path)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", built, folder / "checkout", libraries=tools)
    return next(built.iterdir())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin/` of a fresh environment with the wheel. Its libraries are those of the tests."""
    home = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], timeout=BUILD_TIMEOUT_S, check=True)
    [site_packages] = home.glob("lib/python3*/site-packages")
    libraries = next(path for path in sys.path if path.endswith("site-packages"))
    (site_packages / "libraries.pth").write_text(libraries)
    pip("--python", home / "bin" / "python", "install", "--no-deps", "--force-reinstall", wheel)
    return home / "bin"


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"imagejobd-{__version__}.dist-info/METADATA").decode())


def test_every_file_is_in_it(wheel: Path) -> None:
    """Modules, SQL, page and the mark that it is typed: whatever is below imagejobd/, and the licence."""
    package = SOURCE_ROOT / "imagejobd"
    files = {str(path.relative_to(SOURCE_ROOT)) for path in package.rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in files if "__pycache__" not in name} == {n for n in names if n.startswith("imagejobd/")}
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_version(metadata: Message) -> None:
    """The package, `imagejobd --version` and the newest release of the changelog have one version."""
    releases = re.findall(r"(?m)^## \[(\d[^\]]*)\]", (SOURCE_ROOT / "CHANGELOG.md").read_text())
    assert {metadata["Version"], releases[0]} == {__version__}


def test_what_an_index_shows(metadata: Message) -> None:
    """Its description is the README, and licence, Python and libraries are named."""
    project = tomllib.loads((SOURCE_ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == (SOURCE_ROOT / "README.md").read_text().strip()
    assert "License :: OSI Approved :: Apache Software License" in metadata.get_all("Classifier", [])
    assert metadata["Requires-Python"] == ">=3.11"
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert len(required) == len(project["dependencies"])


@pytest.fixture(scope="module")
def daemon(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a daemon that runs from the wheel alone."""
    folder, port = tmp_path_factory.mktemp("daemon"), free_port()
    url = f"http://127.0.0.1:{port}"
    server = {"listen": [f"127.0.0.1:{port}"], "state_dir": str(folder / "state")}
    config = {"server": server, "engine": {"host": f"unix://{folder}/no-engine.sock"}}
    (folder / "config.toml").write_text(to_toml(config))
    # Nothing leads to the checkout: neither the working directory nor $PYTHONPATH.
    env = {"PATH": "/usr/bin:/bin"}
    argv = ["env", f"--chdir={folder}", str(installed / "imagejobd"), "serve", "--config", str(folder / "config.toml")]
    process = Process(argv, log_file=folder / "log", env=env)
    process.start(lambda: _answers(f"{url}/healthz"), timeout_s=START_TIMEOUT_S)
    yield url
    process.kill()


def test_the_daemon_runs_from_it(daemon: str) -> None:
    """A database is made, which takes the migrations, and it is ready; its version is the wheel's."""
    assert f'"version":"{__version__}"' in _body(f"{daemon}/version").replace(" ", "")
    assert _answers(f"{daemon}/readyz")


def test_the_page_is_served_from_it(daemon: str) -> None:
    """The page at / comes, and so does every file that it names, as it is in the checkout."""
    names = set(re.findall(r'(?:src|href)="(page/[^"]+)"', _body(f"{daemon}/", accept="text/html")))
    files = {f"page/{path.name}": path for path in PAGE.iterdir() if path.suffix in (".js", ".css")}
    assert names == files.keys()
    for name, path in files.items():
        assert _body(f"{daemon}/{name}") == path.read_text()


def _body(url: str, *, accept: str = "*/*") -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as response:
        return str(response.read().decode())


def _answers(url: str) -> bool:
    try:
        return bool(_body(url))
    except (OSError, http.client.HTTPException):
        return False
