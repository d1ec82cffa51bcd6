"""The `Link` header (RFC 8288), by which registries name the next page of a list.

Only the path and the query of a link are ever used, and only where the path is the list's own: a registry cannot send
a client and its credentials elsewhere. Nothing here raises, because the header is whatever the peer made of it.
"""

import re
from collections.abc import Iterable

from yarl import URL

LINK_MAX_CHARS = 8_192

# RFC 8288 §3: `<URI-Reference>`, then parameters whose values are tokens or quoted strings. Nothing is given back, so
# that no header costs more than one pass.
_PARAMETER = r"""\s*+;\s*+([^\s=;,"<>]++)\s*+(?:=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s;,"]*+)))?+"""
_PARAMETERS = re.compile(_PARAMETER)
_LINK = re.compile(rf"<([^<>]*+)>((?:{_PARAMETER})*+)")
_BASE = URL("http://registry.invalid")


def next_link(values: Iterable[str]) -> str | None:
    """The reference that `rel=next` marks in one or more `Link` headers; None without one."""
    for value in values:
        for link in _LINK.finditer(value[:LINK_MAX_CHARS]):
            if any(_is_next(parameter) for parameter in _PARAMETERS.finditer(link[2])):
                return link[1]
    return None


def page_target(reference: str, target: str) -> str | None:
    """Where a page that `target` (path and query) links to as `reference` is, again as path and query.

    None for another path, and for what is no URL. The host that an absolute reference names is of no account: behind a
    proxy it is often an inner one, and it is not asked.
    """
    if not reference.isascii() or not reference.isprintable() or " " in reference:
        return None
    try:
        base = _BASE.join(URL(target, encoded=True))
        page = base.join(URL(reference, encoded=True))
        path, query = page.raw_path, page.raw_query_string
    except ValueError:
        return None
    if page.scheme not in ("http", "https") or path != base.raw_path or not query:
        return None
    return f"{path}?{query}"


def _is_next(parameter: re.Match[str]) -> bool:
    name, quoted, token = parameter.groups()
    return name.lower() == "rel" and "next" in (quoted or token or "").lower().split()
