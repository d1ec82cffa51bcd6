"""A base image without a network: the machine's static busybox with all its applets."""

import io
import subprocess
import tarfile

from harness.engine import PrivateEngine
from harness.registry import PASSWORD, USERNAME, Registry
from harness.services import program

BUSYBOX = "imagejobd-test/busybox:1"
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
GROUP = b"root:x:0:\nnogroup:x:65534:\n"


def load_busybox(engine: PrivateEngine, tag: str = BUSYBOX) -> str:
    """Put the base image into `engine` under `tag`; returns the tag."""
    engine.docker(
        "import",
        *("--change", 'CMD ["/bin/sh"]'),
        *("--change", "ENV PATH=/bin"),
        "-",
        tag,
        input=busybox_root(),
    )
    return tag


def publish_busybox(engine: PrivateEngine, registry: Registry, repository: str, tag: str) -> str:
    """Put the base image into `registry`, and not into the engine; returns its name there. No login is left behind."""
    name = f"{registry.host}/{repository}:{tag}"
    engine.docker("tag", BUSYBOX, name)
    if registry.is_private:
        engine.docker("login", "-u", USERNAME, "--password-stdin", registry.host, input=PASSWORD.encode())
    engine.docker("push", name)
    if registry.is_private:
        engine.docker("logout", registry.host)
    engine.docker("rmi", name)
    return name


def busybox_root() -> bytes:
    """The root file system as a tar; the same bytes each time."""
    busybox = program("busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, check=True, text=True).stdout.split()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for folder, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777)):
            tar.addfile(_member(folder, type=tarfile.DIRTYPE, mode=mode))
        for name, content, mode in (
            ("bin/busybox", busybox.read_bytes(), 0o755),
            ("etc/passwd", PASSWD, 0o644),
            ("etc/group", GROUP, 0o644),
        ):
            tar.addfile(_member(name, size=len(content), mode=mode), io.BytesIO(content))
        for applet in sorted(set(applets) - {"busybox"}):
            tar.addfile(_member(f"bin/{applet}", type=tarfile.SYMTYPE, linkname="busybox"))
    return archive.getvalue()


def _member(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member
