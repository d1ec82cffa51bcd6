"""Who sends a request: an anonymous caller, or the one whom its token names. Asked before any body is read.

A token that is not good is refused even where anonymous callers are welcome: nobody's job is to end up in another
tenant because a token had expired.
"""

import asyncio
import time
from collections.abc import Callable

import structlog
from aiohttp import hdrs, web

from imagejobd.api.door import ANONYMOUS, NO_TOKEN, Caller
from imagejobd.api.keys import KEYS_HINT, KeyRing, load_keys
from imagejobd.api.settings import Auth
from imagejobd.api.tokens import Tokens, refused
from imagejobd.model.errors import Fault

# For load balancers and monitors, who have no token.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/ping"})

log = structlog.get_logger("imagejobd.auth")


class Authentication:
    """`[auth]` at work, with its key files read."""

    def __init__(self, settings: Auth, clock: Callable[[], float] = time.time) -> None:
        """Raises `Permanent(invalid)` that names the file which cannot be used."""
        self._settings = settings
        self._clock = clock
        self._use(load_keys(settings))

    def caller(self, request: web.Request) -> Caller:
        """Who sent the request. Raises `Permanent(unauthenticated)`."""
        if request.path in OPEN_PATHS:
            return ANONYMOUS
        if hdrs.AUTHORIZATION in request.headers:
            return self._bearer(request.headers.getall(hdrs.AUTHORIZATION))
        if self._settings.required:
            raise refused(NO_TOKEN)
        return ANONYMOUS

    async def reload(self) -> None:
        """Read the key files again: new keys count at once, old ones no longer. Bad files change nothing."""
        try:
            ring = await asyncio.to_thread(load_keys, self._settings)
        except Fault as fault:
            log.error("the keys for tokens stay as they were", error=fault.message)
            return
        self._use(ring)
        log.info("read the keys for tokens again", keys=len(ring.keys))

    def _use(self, ring: KeyRing) -> None:
        self._tokens = Tokens(ring, self._settings)
        self._is_keyless = not ring.keys
        for weakness in ring.weaknesses:
            log.warning(weakness)

    def _bearer(self, headers: list[str]) -> Caller:
        if len(headers) > 1:
            raise refused("the request carries more than one Authorization header")
        scheme, _, token = headers[0].partition(" ")
        if scheme.lower() != "bearer":
            raise refused("Authorization must be Bearer <JWT>")
        if self._is_keyless:
            self._is_keyless = False  # once is enough: strangers must not fill the log
            log.warning(f"a token came, and was refused because there is no key to check it with. {KEYS_HINT}")
        return self._tokens.caller(token.lstrip(" "), self._clock())
