"""The rule over addresses for what the engine connects to. It does so itself, so that only names can be asked about, a
moment before.

What the engine is led to later cannot be seen: redirects, the token server and the storage that a registry names,
submodules of a git repository, a name that means something else by then, the engine's own mirrors and proxies.
"""

import asyncio
from collections.abc import Iterable

from yarl import URL

from imagejobd.model.dockerfile.instruction import parse, parse_trigger
from imagejobd.model.dockerfile.remotes import Remote, remotes
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.together import together
from imagejobd.registry.http.address import numeric_address
from imagejobd.registry.http.names import Names
from imagejobd.registry.settings import origin

# Of all ADDs of a build.
HOSTS_MAX = 100


class EngineEgress:
    """`[egress]` over what the engine is about to fetch or push to.

    All methods raise `Permanent(egress)` for what may not be connected to. A name that does not resolve here is left to
    the engine, which may know it by its proxy; where private networks are off limits it is `Temporary`, for it may be
    one of theirs.
    """

    def __init__(self, egress: Egress, names: Names) -> None:
        self._egress = egress
        self._names = names

    async def check_registry(self, host: str) -> None:
        """Ask about a registry, named as image references have it."""
        await self._check(URL(origin("https", host)).host or "", f"registry {host}", ErrorCode.REGISTRY_UNAVAILABLE)

    async def check_dockerfile(self, text: str) -> None:
        """Ask about what the ADDs of a Dockerfile, which was judged, would fetch."""
        found = await asyncio.to_thread(lambda: list(remotes(parse(text).instructions)))
        await self._check_remotes(found, "Dockerfile")

    async def check_triggers(self, image: str, triggers: Iterable[str]) -> None:
        """Ask about what the ONBUILD triggers of a base, which were judged, would fetch."""
        await self._check_remotes(list(remotes(map(parse_trigger, triggers))), f"ONBUILD of {image}")

    async def _check_remotes(self, found: list[Remote], where: str) -> None:
        hosts: dict[str, str] = {}
        for remote in found:
            subject = f"{where} line {remote.line}: ADD"
            if remote.host is not None:
                hosts.setdefault(remote.host.lower(), f"{subject} from {remote.host}")
            elif remote.is_url or not self._egress.allows_private:
                raise Permanent(ErrorCode.EGRESS, f"{subject}: {_untold(remote)}")
        if len(hosts) > HOSTS_MAX:
            raise Permanent(ErrorCode.EGRESS, f"{where}: its ADDs name more than {HOSTS_MAX} hosts, the limit")
        await together(self._check(host, subject, ErrorCode.FETCH_FAILED) for host, subject in hosts.items())

    async def _check(self, host: str, subject: str, otherwise: ErrorCode) -> None:
        try:
            for address in await self._addresses(host):
                self._egress.check(address)
        except OSError:
            if self._egress.allows_private:
                return
            why = f"{host} does not resolve here, so that nobody can tell whether [egress] allows it"
            raise Temporary(otherwise, f"{subject}: {why}") from None
        except Permanent as fault:
            raise Permanent(fault.code, f"{subject}: {fault.message}") from None

    async def _addresses(self, host: str) -> list[str]:
        """All that `host` means: which of them the engine takes is its own affair. Raises `OSError`."""
        if address := numeric_address(host.rstrip(".")):
            return [address]
        return [found["host"] for found in await self._names.resolve(host)]


def _untold(remote: Remote) -> str:
    if remote.is_url:
        return "its host cannot be told for sure; write the URL as scheme://host[:port]/… in plain letters and digits"
    return (
        "what it fetches cannot be checked, and [egress] allow_private is false; write the host of a URL without "
        "variables and quotes, and begin what is in the context with ./"
    )
