"""The Debian package: made without an index, and installed, upgraded, removed and purged in a Debian of its own.

That is what `.ci/machine` made, under a layer in memory. Nothing of the checkout or of its libraries is there.
"""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness.debian_package import MAKE_TIMEOUT_S, make_package
from harness.services import require, require_made, require_root
from imagejobd import __version__

SOURCE_ROOT = Path(__file__).parents[2]
DEBIAN = SOURCE_ROOT / ".lanes" / "machine"
COMMAND_TIMEOUT_S = 300
CONFIGURATION = "/etc/imagejobd/config.toml"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
SOCKET = "/var/lib/imagejobd/api.sock"
COMPLETIONS = {
    "bash": "bash-completion/completions/imagejobd",
    "zsh": "zsh/vendor-completions/_imagejobd",
    "fish": "fish/vendor_completions.d/imagejobd.fish",
}
UNITS = ("imagejobd.service", "imagejobd.socket")
# Takes the folder of the Debian, and an empty one.
MOUNT = """
set -e
mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$0,upperdir=$1/upper,workdir=$1/work" none "$1/root"
mount -t proc none "$1/root/proc"
mkdir -p "$1/root/dev" && mount --rbind /dev "$1/root/dev"
echo mounted
exec cat
"""
# As an older version: another number, a module that is gone since, and no other default than today's.
OLDER = """
set -e
dpkg-deb --raw-extract "$0" "$1"
sed -i 's/^Version: .*/Version: 0.1.9-1/' "$1/DEBIAN/control"
touch "$1/usr/lib/imagejobd/imagejobd/gone.py"
dpkg-deb --root-owner-group -Znone --build "$1" "$2" >/dev/null
"""
# Takes a configuration and the URL that it listens at; fails unless the client gets an answer.
SERVE = """
export IMAGEJOBD_URL="$1"
imagejobd serve --config "$0" >/tmp/log 2>&1 &
trap "kill $!; wait" EXIT
for n in $(seq 100); do
    if imagejobd queue; then exit; fi
    sleep 0.2
done
cat /tmp/log
exit 1
"""


class Chroot:
    """A Debian that is writable, in memory, and gone with its process."""

    def __init__(self, folder: Path) -> None:
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", MOUNT, str(DEBIAN.resolve()), str(folder)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._root = folder / "root"
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "mounted\n":
            raise RuntimeError("no overlay of the Debian could be mounted")

    def run(self, *argv: str, stdin: Path | None = None, check: bool = True) -> str:
        """A program inside, as root; returns all that it prints."""
        inside = ["nsenter", f"--target={self._process.pid}", "--mount", "chroot", str(self._root)]
        with ExitStack() as stack:
            source = stack.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
            done = subprocess.run(
                [*inside, *argv],
                env=ENVIRONMENT,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        said = done.stdout.decode()
        assert not check or done.returncode == 0, said
        return said

    def install(self, package: Path) -> str:
        self.run("sh", "-c", "cat >/tmp/package.deb", stdin=package)
        return self.run("dpkg", "--install", "/tmp/package.deb")

    def has(self, path: str) -> bool:
        return self.run("sh", "-c", f"if [ -e {path} ]; then echo yes; fi") != ""

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("dpkg-deb")
    return make_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def older(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("older")
    made = folder / "older.deb"
    subprocess.run(["sh", "-c", OLDER, package, folder / "root", made], timeout=MAKE_TIMEOUT_S, check=True)
    return made


@contextmanager
def debian(folder: Path) -> Iterator[Chroot]:
    require("nsenter")
    require_root("a chroot")
    require_made(DEBIAN, "make machine")
    root = Chroot(folder)
    try:
        yield root
    finally:
        root.close()


@pytest.fixture
def chroot(tmp_path: Path) -> Iterator[Chroot]:
    with debian(tmp_path) as root:
        yield root


@pytest.fixture(scope="module")
def installed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chroot]:
    """One that has the package, as it is after the installation but for what tests say."""
    with debian(tmp_path_factory.mktemp("installed")) as root:
        root.install(package)
        yield root


def field(package: Path, name: str) -> str:
    done = subprocess.run(["dpkg-deb", "--field", package, name], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def test_its_control_file(package: Path) -> None:
    """Version, and the Python that its compiled libraries fit; the configuration is the operator's."""
    major, minor = sys.version_info[:2]
    assert field(package, "Version") == f"{__version__}-1"
    assert f"python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1}~), systemd" in field(package, "Depends")
    names = subprocess.run(["dpkg-deb", "--contents", package], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "root/root" in names
    assert "__pycache__" not in names
    assert re.search(r"(?m)^-rwxr-xr-x root/root .* \./usr/bin/imagejobd$", names)


def test_its_life(package: Path, older: Path, chroot: Chroot) -> None:
    """Installed, upgraded, removed, purged: the operator's configuration and the users' jobs stay."""
    chroot.install(older)
    assert chroot.run("imagejobd", "--version") == f"imagejobd, version {__version__}\n"
    assert chroot.run("stat", "-c", "%U:%G %a", "/var/lib/imagejobd") == "imagejobd:imagejobd 750\n"
    assert "docker" in chroot.run("id", "-nG", "imagejobd").split()
    assert chroot.has("/usr/lib/imagejobd/imagejobd/__pycache__")
    for unit in UNITS:
        assert chroot.run("systemctl", "is-enabled", unit) == "enabled\n"

    chroot.run(
        "sh", "-c", f"echo '[limits]\nbuild = 7' >>{CONFIGURATION}.new && mv {CONFIGURATION}.new {CONFIGURATION}"
    )
    chroot.run("systemctl", "disable", "imagejobd.socket")
    chroot.run("touch", "/var/lib/imagejobd/imagejobd.db")
    chroot.install(package)
    assert "build = 7" in chroot.run("cat", CONFIGURATION)
    assert "disabled" in chroot.run("systemctl", "is-enabled", "imagejobd.socket", check=False)
    assert not chroot.has("/usr/lib/imagejobd/imagejobd/gone.py")
    assert chroot.run("dpkg", "--verify", "imagejobd").splitlines() == [f"??5?????? c {CONFIGURATION}"]

    chroot.run("dpkg", "--remove", "imagejobd")
    assert (chroot.has("/usr/bin/imagejobd"), chroot.has("/usr/lib/imagejobd")) == (False, False)
    assert (chroot.has(CONFIGURATION), chroot.has("/var/lib/imagejobd/imagejobd.db")) == (True, True)
    chroot.install(package)
    assert "build = 7" in chroot.run("imagejobd", "check-config")

    said = chroot.run("dpkg", "--purge", "imagejobd")
    assert "rm -r /var/lib/imagejobd" in said
    assert chroot.has("/var/lib/imagejobd/imagejobd.db")
    left = chroot.run("sh", "-c", "find /etc /usr /var/lib/systemd -name '*imagejobd*'").split()
    assert left == []


def test_its_configuration(installed: Chroot) -> None:
    """It changes no default, holds every key of the example, and is taken as it is."""
    installed.run("touch", "/tmp/empty.toml")
    defaults = installed.run("imagejobd", "check-config", "--config", "/tmp/empty.toml")
    assert installed.run("imagejobd", "check-config").replace(CONFIGURATION, "/tmp/empty.toml") == defaults
    every_key = re.sub(r"(?m)^#(?=\S|    )", "", installed.run("cat", CONFIGURATION))
    assert tomllib.loads(every_key) == tomllib.loads((SOURCE_ROOT / "config.example.toml").read_text())


def test_systemd_agrees_with_its_units(installed: Chroot) -> None:
    """`systemd-analyze verify` finds nothing wrong with them where they are installed."""
    units = [f"/usr/lib/systemd/system/{unit}" for unit in UNITS]
    said = installed.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units)
    assert [line for line in said.splitlines() if "imagejobd" in line] == []


def test_completion(installed: Chroot) -> None:
    """bash, zsh and fish find the completion that the command prints for them."""
    for shell, path in COMPLETIONS.items():
        assert (
            installed.run("cat", f"/usr/share/{path}").strip()
            == installed.run("imagejobd", "completion", shell).strip()
        )


def test_it_works_alone(installed: Chroot) -> None:
    """The daemon runs as its user on Debian's Python, with the package's libraries; its client asks it."""
    config = "/tmp/socket.toml"
    installed.run("sh", "-c", f"printf '[server]\\nlisten = [\"unix:%s\"]\\n' {SOCKET} >{config}")
    user = ("setpriv", "--reuid=imagejobd", "--regid=imagejobd", "--init-groups")
    installed.run(*user, "sh", "-c", SERVE, config, f"unix:{SOCKET}")
