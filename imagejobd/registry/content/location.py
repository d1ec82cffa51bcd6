"""Where an upload goes on: the `Location` of its session, kept to the letter but for the digest added at its end.

Registries write it relative or absolute, with a signed query (`_state=…`), with another port or host, and as http
behind a proxy that speaks TLS for them. What names the registry itself is reduced to its path and query, so that it
goes the way of every other request there: same scheme, same trust, same login.
"""

from yarl import URL

from imagejobd.model.reference import HUB_HOST
from imagejobd.registry.http.address import HUB_API_HOST, exact_url, http_url

LOCATION_MAX_CHARS = 16 * 1024

_BASE = URL("http://registry.invalid")
_DEFAULT_PORTS = (80, 443)


def resolve_location(location: str, asked: str | URL, host: str) -> str | URL | None:
    """Where `location`, in the answer to a request to `asked` at the registry `host` (`name[:port]`), points.

    Path and query where that is the registry itself, else an absolute URL; None where it is no usable URL.
    """
    if not location or len(location) > LOCATION_MAX_CHARS:
        return None
    base = asked if isinstance(asked, URL) else _BASE.join(URL(asked, encoded=True))
    try:
        url = http_url(str(base.join(exact_url(location)).with_fragment(None)))
    except ValueError:
        return None
    if url is None or url.user is not None:
        return None
    if _is_at(url, _BASE.host or "") or _is_at(url, HUB_API_HOST if host == HUB_HOST else host):
        return url.raw_path_qs
    return url


def with_digest(target: str | URL, digest: str) -> str | URL:
    """`target` with `digest` behind whatever its query says."""
    text = str(target)
    text += f"{'&' if '?' in text else '?'}digest={digest}"
    return URL(text, encoded=True) if isinstance(target, URL) else text


def _is_at(url: URL, host: str) -> bool:
    """Whether `url` names `host`; the scheme is of no account, nor is a port that is the scheme's own."""
    name, port = (url.host_subcomponent or "").lower(), url.port
    return f"{name}:{port}" == host.lower() or (name == host.lower() and port in _DEFAULT_PORTS)
