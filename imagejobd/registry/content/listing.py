"""Lists that a registry gives page by page (`Link`): followed to their end, which has to be reached.

Refuses, rather than to give a part for the whole: pages elsewhere, pages in a circle, more than `PAGES_MAX` of them.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.registry.connection import Connection
from imagejobd.registry.content.link import next_link, page_target
from imagejobd.registry.http.transport import Answer

PAGES_MAX = 2_000


async def pages(
    connection: Connection, target: str, *, scopes: Sequence[str], headers: Mapping[str, str], body_max_bytes: int
) -> AsyncGenerator[Answer, None]:
    """The answers to GET `target` (path and query) and to what each links to as its next. Statuses are the caller's to
    judge; only a 200 is followed. Raises `Permanent(registry_unavailable)` for a list without an end."""
    seen = {target}
    while True:
        answer = await connection.ask("GET", target, scopes=scopes, headers=headers, body_max_bytes=body_max_bytes)
        yield answer
        reference = next_link(answer.headers.getall("Link", [])) if answer.status == 200 else None
        if reference is None:
            return
        page = page_target(reference, target)
        if page is None:
            raise _endless(connection, target, "its next page is said to be elsewhere")
        if page in seen or len(seen) >= PAGES_MAX:
            raise _endless(connection, target, f"its pages go in a circle, or are more than {PAGES_MAX}")
        seen.add(page)
        target = page


def _endless(connection: Connection, target: str, why: str) -> Permanent:
    path = target.partition("?")[0]
    return Permanent(
        ErrorCode.REGISTRY_UNAVAILABLE, f"registry {connection.site.host}: {path} cannot be read whole: {why}"
    )
