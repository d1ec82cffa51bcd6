"""Fields of a request that an older API takes and makes nothing of, named in a header: bodies are fixed by documents.

The header is `Warning` (RFC 7234 §5.5), of the kind for persons: `299 imagejobd "ignored: email, tarurl"`.
"""

import re
from collections.abc import Iterable

from aiohttp import hdrs

NAMES_MAX = 10
NAME_MAX_CHARS = 64

# What could end the quoted text, or the header, or is no ASCII.
_UNQUOTABLE = re.compile(r'[^\x20-\x7e]|["\\]')


def warning(names: Iterable[str]) -> dict[str, str]:
    """The header that names what was ignored; none where nothing was. Names may be a stranger's."""
    distinct = list(dict.fromkeys(_UNQUOTABLE.sub("?", name[:NAME_MAX_CHARS]) for name in names))
    if not distinct:
        return {}
    rest = f" and {len(distinct) - NAMES_MAX} more" if len(distinct) > NAMES_MAX else ""
    return {hdrs.WARNING: f'299 imagejobd "ignored: {", ".join(distinct[:NAMES_MAX])}{rest}"'}
