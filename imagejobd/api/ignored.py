"""Fields of a request that an older API takes and makes nothing of, named in a header: bodies are fixed by documents.

The header is `Warning` (RFC 7234 §5.5), of the kind for persons: `299 imagejobd "ignored: email, tarurl"`.
"""

import re
from collections.abc import Iterable

from aiohttp import hdrs, web

NAMES_MAX = 10
NAME_MAX_CHARS = 64

# What could end the quoted text, or the header, or is no ASCII.
_UNQUOTABLE = re.compile(r'[^\x20-\x7e]|["\\]')
_NAMES = web.RequestKey("ignored", tuple[str, ...])


def note_ignored(request: web.Request, names: Iterable[str]) -> None:
    """Have the answer name these fields of the request. They may be a stranger's."""
    request[_NAMES] = tuple(names)


async def add_warning(request: web.Request, response: web.StreamResponse) -> None:
    """The signal before an answer is sent."""
    distinct = list(dict.fromkeys(_UNQUOTABLE.sub("?", name[:NAME_MAX_CHARS]) for name in request.get(_NAMES, ())))
    if distinct:
        rest = f" and {len(distinct) - NAMES_MAX} more" if len(distinct) > NAMES_MAX else ""
        response.headers[hdrs.WARNING] = f'299 imagejobd "ignored: {", ".join(distinct[:NAMES_MAX])}{rest}"'
