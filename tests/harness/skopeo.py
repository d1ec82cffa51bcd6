"""skopeo as the oracle: what a tool that others trust reads from a registry."""

import subprocess
import tempfile
from pathlib import Path

from harness.logins import PASSWORD, USERNAME
from harness.registry import Registry
from harness.services import program

COMMAND_TIMEOUT_S = 60.0


def raw_manifest(registry: Registry, repository: str, name: str) -> bytes:
    """The bytes of a manifest by tag or digest. Raises `RuntimeError` with skopeo's words."""
    return _run("inspect", "--raw", "--tls-verify=false", *_login("", registry), _reference(registry, repository, name))


def copy(source: tuple[Registry, str, str], target: tuple[Registry, str, str]) -> None:
    """Copy an image with all its children between registries."""
    _run(
        *("--insecure-policy", "copy", "--all", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"),
        *_login("src-", source[0]),
        *_login("dest-", target[0]),
        _reference(*source),
        _reference(*target),
    )


def pull(registry: Registry, repository: str, name: str) -> set[str]:
    """Read an image with all its children to the last byte, all digests checked; the digests of its blobs."""
    with tempfile.TemporaryDirectory(prefix="imagejobd-skopeo-") as folder:
        _run(
            *("--insecure-policy", "copy", "--all", "--quiet", "--src-tls-verify=false"),
            *_login("src-", registry),
            _reference(registry, repository, name),
            f"dir:{folder}",
        )
        # All that the `dir` transport writes besides are manifests, a version and signatures.
        return {f"sha256:{file.name}" for file in Path(folder).iterdir() if len(file.name) == 64}


def _reference(registry: Registry, repository: str, name: str) -> str:
    return f"docker://{registry.host}/{repository}{'@' if ':' in name else ':'}{name}"


def _login(prefix: str, registry: Registry) -> list[str]:
    return [f"--{prefix}creds={USERNAME}:{PASSWORD}"] if registry.is_private else []


def _run(*arguments: str) -> bytes:
    """Its standard output."""
    done = subprocess.run([str(program("skopeo")), *arguments], capture_output=True, timeout=COMMAND_TIMEOUT_S)
    if done.returncode:
        raise RuntimeError(f"skopeo {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
