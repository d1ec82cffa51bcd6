"""What a Dockerfile may do on this build host. The same rules hold for every kind of job that builds."""

from collections.abc import Iterable, Mapping
from functools import lru_cache

from imagejobd.model.dockerfile.bases import Base, bases
from imagejobd.model.dockerfile.frontend import check_build_args, check_frontend, check_mounts
from imagejobd.model.dockerfile.instruction import parse
from imagejobd.model.dockerfile.stages import platform_args
from imagejobd.model.errors import ErrorCode, Permanent

DOCKERFILE_MAX_BYTES = 1 << 20
# The same Dockerfile is built again and again, under other tags and with other args; reading it anew took longer than
# all else at the door. Only small ones are remembered.
REMEMBERED_MAX = 256
REMEMBERED_MAX_CHARS = 16 * 1024


class Policy:
    """The rules in force, and what they said of small Dockerfiles before."""

    def __init__(self) -> None:
        self._remembered = lru_cache(maxsize=REMEMBERED_MAX)(self._read)

    def read(
        self,
        text: str,
        *,
        build_args: Mapping[str, str] | None = None,
        target: str = "",
        platform: str = "",
        host_platform: str = "linux/amd64",
        all_stages: bool = False,
    ) -> tuple[Base, ...]:
        """Judge a Dockerfile; the images that a build of it starts from.

        `platform` is what the build is for ("" is the engine's own, `host_platform`); `all_stages` is for the classic
        builder, which skips none. Raises `Permanent(invalid | policy)` with the line, and `Permanent(too_large)`.
        """
        if len(text.encode()) > DOCKERFILE_MAX_BYTES:
            raise Permanent(
                ErrorCode.TOO_LARGE, f"the Dockerfile is larger than {DOCKERFILE_MAX_BYTES} bytes, the limit"
            )
        args = tuple((build_args or {}).items())
        read = self._remembered if len(text) <= REMEMBERED_MAX_CHARS else self._read
        return read(text, args, target, platform or host_platform, host_platform, all_stages)

    def check_build_args(self, names: Iterable[str]) -> None:
        """Judge the build args of a request. Raises `Permanent(policy)`."""
        check_build_args(names)

    def _read(
        self,
        text: str,
        build_args: tuple[tuple[str, str], ...],
        target: str,
        platform: str,
        host_platform: str,
        all_stages: bool,
    ) -> tuple[Base, ...]:
        check_frontend(text)
        self.check_build_args(name for name, _ in build_args)
        parsed = parse(text)
        check_mounts(parsed)
        automatic = platform_args(platform, host_platform)
        return bases(parsed, dict(build_args), automatic, target=target, skip_unused=not all_stages)
