"""Makes imagejobd_VERSION_ARCHITECTURE.deb: `python packages/deb.py [FOLDER]` in the virtual environment.

The libraries are copied from that environment, at the versions that the tests ran with, to /usr/lib/imagejobd, so that
neither making nor installing the package needs an index. It is a plain folder, no virtual environment: that would hold
paths of the machine that made it, and a Python of its own instead of Debian's, which gets the security updates.
Compiled libraries fit one minor version of Python, on which the package depends: make it on the release that it is for.
"""

import datetime as dt
import gzip
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import manpage
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "packages"
REVISION = "1"
MAINTAINER = "imagejobd <root@localhost>"
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/imagejobd",
    "zsh": "usr/share/zsh/vendor-completions/_imagejobd",
    "fish": "usr/share/fish/vendor_completions.d/imagejobd.fish",
}
# What was compiled is there as such.
SOURCES = (".c", ".h", ".hpp", ".pxd", ".pxi", ".pyx")
CONFIG_HEAD = """\
# imagejobd: every key, its unit and its default, commented out. Remove the "#" in front of what you change, then
# `imagejobd check-config` tells what is wrong with it, and `systemctl restart imagejobd` uses it.
"""


def main() -> None:
    version, date = release((ROOT / "CHANGELOG.md").read_text())
    architecture = _output("dpkg", "--print-architecture")
    out = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build"
    out.mkdir(exist_ok=True)
    package = out / f"imagejobd_{version}-{REVISION}_{architecture}.deb"
    with tempfile.TemporaryDirectory(prefix="imagejobd-deb-") as folder:
        root = Path(folder) / "root"
        stage_program(root)
        stage_system(root)
        stage_documentation(root, version, date)
        stage_control(root, version, architecture)
        # Nothing is newer than the release: the same sources make the same package.
        environment = os.environ | {"SOURCE_DATE_EPOCH": f"{date.timestamp():.0f}"}
        build = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(package)]
        subprocess.run(build, env=environment, stdout=subprocess.DEVNULL, check=True)
    print(package)


def release(changelog: str) -> tuple[str, dt.datetime]:
    """Version and day of the newest release of the changelog."""
    heading = re.search(r"(?m)^## \[(\d[^\]]*)\] - (\S+)$", changelog)
    if heading is None:
        raise ValueError("CHANGELOG.md has no release")
    return heading[1], dt.datetime.fromisoformat(heading[2]).replace(tzinfo=dt.UTC)


def stage_program(root: Path) -> None:
    """/usr/bin/imagejobd, and below /usr/lib/imagejobd the package with its libraries."""
    library = root / "usr/lib/imagejobd"
    shutil.copytree(ROOT / "imagejobd", library / "imagejobd", ignore=shutil.ignore_patterns("__pycache__"))
    for distribution in libraries():
        for file in distribution.files or ():
            if ".." not in file.parts and file.suffix not in (*SOURCES, ".pyc"):
                _copy(Path(str(distribution.locate_file(file))), library / file)
    _copy(HERE / "launcher", root / "usr/bin/imagejobd", mode=0o755)


def libraries() -> list[importlib.metadata.Distribution]:
    """What imagejobd needs, and what that needs, in this environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [*_needed(project["dependencies"])]
    while waiting:
        wanted = waiting.pop()
        distribution = importlib.metadata.distribution(wanted.name)
        found[canonicalize_name(wanted.name)] = distribution
        further = _needed(distribution.requires or (), wanted.extras)
        waiting += [one for one in further if canonicalize_name(one.name) not in found]
    return [found[name] for name in sorted(found)]


def _needed(requirements: Iterable[str], extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """Those of `requirements` that hold on this Python, with these extras."""
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def stage_system(root: Path) -> None:
    """Units, user, folders, configuration, completions."""
    units = root / "usr/lib/systemd/system"
    for name in ("imagejobd.service", "imagejobd.socket"):
        _write(units / name, unit((ROOT / "systemd" / name).read_text()))
    _copy(ROOT / "systemd/sysusers.conf", root / "usr/lib/sysusers.d/imagejobd.conf")
    _copy(HERE / "tmpfiles.conf", root / "usr/lib/tmpfiles.d/imagejobd.conf")
    _write(root / "etc/imagejobd/config.toml", configuration((ROOT / "config.example.toml").read_text()))
    for shell, path in COMPLETIONS.items():
        _write(root / path, _output(sys.executable, "-m", "imagejobd", "completion", shell) + "\n")


def unit(text: str) -> str:
    """A unit of the checkout as that of the package, which is installed already and elsewhere."""
    return text[text.index("[Unit]") :].replace("/opt/imagejobd/bin/", "/usr/bin/")


def configuration(example: str) -> str:
    """The example with every key commented out: what the operator writes are the differences, also after upgrades."""
    _, _, body = example.partition("\n\n")
    lines = [line if line[:1] in ("", "#", "[") else f"#{line}" for line in body.splitlines()]
    return "\n".join([CONFIG_HEAD, *lines, ""])


def stage_documentation(root: Path, version: str, date: dt.datetime) -> None:
    """The manual page, the manual, the changelogs, and whose the libraries are."""
    page = "\n".join(manpage.page(date.date().isoformat())) + "\n"
    _write_gzip(root / "usr/share/man/man1/imagejobd.1.gz", page)
    documentation = root / "usr/share/doc/imagejobd"
    shutil.copytree(ROOT / "docs", documentation / "docs")
    _copy(ROOT / "README.md", documentation / "README.md")
    _copy(ROOT / "config.example.toml", documentation / "config.example.toml")
    _write_gzip(documentation / "changelog.gz", (ROOT / "CHANGELOG.md").read_text())
    stamp = f"{date:%a, %d %b %Y %H:%M:%S %z}"
    entry = f"imagejobd ({version}-{REVISION}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n"
    _write_gzip(documentation / "changelog.Debian.gz", f"{entry} -- {MAINTAINER}  {stamp}\n")
    _write(documentation / "copyright", "\n".join(_copyright()))


def _copyright() -> Iterator[str]:
    yield "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
    yield "Upstream-Name: imagejobd\n\nFiles: *\nCopyright: the authors of imagejobd\nLicense: Apache-2.0"
    yield " /usr/share/common-licenses/Apache-2.0 has its text.\n"
    for distribution in libraries():
        fields = distribution.metadata.json
        licence = str(fields.get("license_expression") or fields.get("license") or "see there").splitlines()[0]
        yield f"Files: usr/lib/imagejobd/{distribution.name}\nCopyright: the authors of {distribution.name}"
        yield f"License: {licence}\n Version {distribution.version}; its text is in the .dist-info folder there.\n"


def stage_control(root: Path, version: str, architecture: str) -> None:
    """What dpkg reads."""
    control = root / "DEBIAN"
    major, minor = sys.version_info[:2]
    libc = platform.libc_ver()[1]
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) // 1024
    fields = {
        "Package": "imagejobd",
        "Version": f"{version}-{REVISION}",
        "Architecture": architecture,
        "Maintainer": MAINTAINER,
        "Installed-Size": str(size),
        "Depends": f"python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1}~), systemd, ca-certificates, "
        f"libc6 (>= {libc}), libgcc-s1, libstdc++6",
        "Recommends": "docker.io | docker-ce",
        "Suggests": "sqlite3",
        "Section": "admin",
        "Priority": "optional",
        "Description": "daemon for image jobs: durable queue, builds, pushes, runs, copies\n"
        + textwrap.fill(
            "Builds, pushes and sandboxed runs on the Docker Engine of this host, and copies from one registry to many "
            "without it, over HTTP and from the command line. Jobs are kept in SQLite and survive crashes. The user "
            "that it runs as becomes a member of the group docker, which is root on this host.",
            width=78,
            initial_indent=" ",
            subsequent_indent=" ",
        ),
    }
    _write(control / "control", "".join(f"{name}: {value}\n" for name, value in fields.items()))
    _write(control / "conffiles", "/etc/imagejobd/config.toml\n")
    for name in ("postinst", "prerm", "postrm"):
        _copy(HERE / "debian" / name, control / name, mode=0o755)
    installed = sorted(path for path in root.rglob("*") if path.is_file() and control not in path.parents)
    sums = _output("md5sum", *(str(path.relative_to(root)) for path in installed), cwd=root)
    _write(control / "md5sums", sums + "\n")
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


def _copy(source: Path, target: Path, *, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _write(target: Path, text: str | bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(text.encode() if isinstance(text, str) else text)
    target.chmod(0o644)


def _write_gzip(target: Path, text: str) -> None:
    _write(target, gzip.compress(text.encode(), mtime=0))


def _output(*argv: str, cwd: Path = ROOT) -> str:
    return subprocess.run(argv, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True).stdout.rstrip("\n")


if __name__ == "__main__":
    main()
