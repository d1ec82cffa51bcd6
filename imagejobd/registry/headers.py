"""What registries write into headers: `Link`, `Location`, `Range`, lengths. Read to the letter of the standards where
bytes or logins depend on it, and generously where only the next request does."""

import re
from collections.abc import Iterable, Mapping, Sequence

from yarl import URL

from imagejobd.model.reference import HUB_HOST
from imagejobd.registry.address import HUB_API_HOST, exact_url, http_url

LOCATION_MAX_CHARS = 16 * 1024
PAGES_MAX = 2_000

# 2**53 has 16 digits; no blob needs more.
_LENGTH = re.compile(r"[0-9]{1,16}", re.ASCII)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,16})-([0-9]{1,16})/([0-9]{1,16})", re.IGNORECASE | re.ASCII)
# Of an upload's answers, which have no unit in it (distribution spec, "Pushing a blob in chunks"); some write one.
_UPLOAD_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,16})", re.ASCII)
# RFC 8288 §3, and what is written instead: without `<>`, without quotes, without a relation.
_LINKS = re.compile(r",(?=\s*<)")
_LINK = re.compile(r"\s*<([^<>]*)>(.*)|\s*([^\s;]+)(.*)", re.DOTALL)
_RELATION = re.compile(r""";\s*rel\s*=\s*(?:"([^"]*)"|([^\s;,"]*))""", re.IGNORECASE)
_BASE = URL("http://registry.invalid")
_DEFAULT_PORTS = (80, 443)


def parse_length(headers: Mapping[str, str], name: str = "Content-Length") -> int | None:
    """A number of bytes; None where the header is missing or no such number."""
    value = headers.get(name, "")
    return int(value) if _LENGTH.fullmatch(value) else None


def parse_content_range(value: str | None) -> tuple[int, int, int] | None:
    """First byte, last byte and full length in `Content-Range` (RFC 9110 §14.4); None where there is none, it
    contradicts itself, or does not say the full length."""
    match = _CONTENT_RANGE.fullmatch((value or "").strip())
    if match is None:
        return None
    start, end, total = (int(part) for part in match.groups())
    return (start, end, total) if start <= end < total else None


def parse_upload_range(value: str | None) -> int | None:
    """The last byte of an upload that the registry says it has."""
    match = _UPLOAD_RANGE.fullmatch(value or "")
    return int(match[1]) if match else None


def next_page(values: Iterable[str], pages: Sequence[str]) -> str | None:
    """Path and query of the page that `Link` headers of the last of `pages` name as the next; None where that was all.

    A link without a relation is taken for the next page. Only path and query of a link are used, and the path must be
    the list's own: a registry cannot send a client and its credentials elsewhere, and the host of an absolute link is
    often an inner one. Raises `ValueError` for a page that cannot be asked for, was read already, or is one too many.
    """
    next_links, plain_links = [], []
    for link in (link for value in values for link in _LINKS.split(value)):
        match = _LINK.match(link)
        if match is None:
            continue  # an empty header
        reference, parameters = match[1] or match[3] or "", match[2] or match[4] or ""
        relation = _RELATION.search(parameters)
        if relation is None:
            plain_links.append(reference)
        elif "next" in (relation[1] or relation[2] or "").lower().split():
            next_links.append(reference)
    if not next_links and not plain_links:
        return None
    reference = (next_links or plain_links)[0]
    if not reference.isascii() or not reference.isprintable() or " " in reference:
        raise ValueError("its next page has no usable address")
    base = _BASE.join(URL(pages[-1], encoded=True))
    page = base.join(URL(reference, encoded=True))
    if page.scheme not in ("http", "https") or page.raw_path != base.raw_path or not page.raw_query_string:
        raise ValueError("its next page is said to be elsewhere")
    if page.raw_path_qs in pages or len(pages) >= PAGES_MAX:
        raise ValueError(f"its pages go in a circle, or are more than {PAGES_MAX}")
    return page.raw_path_qs


def resolve_location(location: str, responder: URL, host: str) -> str | URL | None:
    """Where `location`, in an answer by `responder` to a request to the registry `host` (`name[:port]`), points:
    relative or absolute, with a signed query, at another port or host, kept to the letter.

    Path and query where that is the registry itself (http behind a proxy that speaks TLS for it included), so that it
    goes the way of every other request there; else an absolute URL; None where it is no usable URL.
    """
    if not location or len(location) > LOCATION_MAX_CHARS:
        return None
    try:
        url = http_url(str(responder.join(exact_url(location)).with_fragment(None)))
    except ValueError:
        return None
    if url is None or url.user is not None:
        return None
    return url.raw_path_qs if _is_at(url, HUB_API_HOST if host == HUB_HOST else host) else url


def with_digest(target: str | URL, digest: str) -> str | URL:
    """`target` with `digest` behind whatever its query says."""
    text = str(target)
    text += f"{'&' if '?' in text else '?'}digest={digest}"
    return URL(text, encoded=True) if isinstance(target, URL) else text


def _is_at(url: URL, host: str) -> bool:
    """Whether `url` names `host`; the scheme is of no account, nor is a port that is the scheme's own."""
    name, port = (url.host_subcomponent or "").lower(), url.port
    return f"{name}:{port}" == host.lower() or (name == host.lower() and port in _DEFAULT_PORTS)
