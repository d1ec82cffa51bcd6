"""What the daemon sends of its page: to whom, how much of it, and under which policy."""

import gzip
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import aiohttp
import pytest
from bare_app import BareApp, bare_app
from signing import SECRET, written

import imagejobd
from harness.daemon import SOURCE_ROOT
from imagejobd.api.keys import Auth
from imagejobd.api.page import page
from imagejobd.model.errors import ErrorCode

FOLDER = Path(page.__file__).parent
FILES = sorted(file for file in FOLDER.iterdir() if file.suffix in page.MEDIA_TYPES)
SCRIPTS = [file for file in FILES if file.suffix == ".js"]
WEIGHT_MAX_BYTES = 150_000
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_a_browser_gets_the_page_and_a_program_what_there_is(app: BareApp) -> None:
    """`GET /` by its Accept; each link of the JSON is there."""
    async with app.client.get("/", headers=HTML) as response:
        assert (response.status, response.content_type) == (200, "text/html")
        assert response.headers["Vary"] == "Accept, Accept-Encoding"
    async with app.client.get("/") as response:
        answer = await response.json()
    assert answer | {"links": {}} == {"name": "imagejobd", "version": imagejobd.__version__, "links": {}}
    assert answer["links"]["jobs"] == "/api/v2/jobs"
    for path in answer["links"].values():
        async with app.client.get(path) as response:
            assert response.status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_the_page_is_only_read(app: BareApp, method: str) -> None:
    """405 as a problem, with what is allowed."""
    async with app.client.request(method, "/") as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET,HEAD"
        assert response.content_type == "application/problem+json"


async def test_the_page_is_light_and_whole(app: BareApp) -> None:
    """All that it loads is here, is of its own type, and is no more than it may weigh."""
    names = re.findall(r'(?:src|href)="(page/[^"]+)"', (FOLDER / "index.html").read_text())
    assert sorted(names) == sorted(f"page/{file.name}" for file in FILES if file.name != "index.html")
    for name in names:
        async with app.client.get(f"/{name}") as response:
            assert response.status == 200
            assert response.content_type == page.MEDIA_TYPES[Path(name).suffix]
            assert await response.read() == (FOLDER / Path(name).name).read_bytes()
    assert sum(file.stat().st_size for file in FILES) <= WEIGHT_MAX_BYTES


@pytest.mark.parametrize("path", ["/", "/page/page.js"])
async def test_what_has_not_changed_is_not_sent_again(app: BareApp, path: str) -> None:
    """304 for its ETag, which is another one where it is packed; browsers have to ask each time."""
    etags = []
    for encoding in ("gzip;q=0", "gzip"):
        headers = HTML | {"Accept-Encoding": encoding}
        async with app.client.get(path, headers=headers) as response:
            assert response.headers["Cache-Control"] == "no-cache"
            assert response.headers.get("Content-Encoding", "gzip;q=0") == encoding
            assert response.headers["Vary"] == "Accept, Accept-Encoding"
            etags.append(response.headers["ETag"])
        async with app.client.get(path, headers=headers | {"If-None-Match": f'"other", {etags[-1]}'}) as response:
            assert (response.status, await response.read()) == (304, b"")
            assert response.headers["ETag"] == etags[-1]
    assert etags[0] != etags[1]


async def test_packed_files_unpack_to_themselves(app: BareApp) -> None:
    """For clients that ask for gzip."""
    async with aiohttp.ClientSession(auto_decompress=False) as client:
        url = f"http://127.0.0.1:{app.port}/page/page.css"
        async with client.get(url, headers={"Accept-Encoding": "br, gzip"}) as response:
            body = await response.read()
    assert gzip.decompress(body) == (FOLDER / "page.css").read_bytes()


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/page/page.css"])
async def test_the_policy_allows_the_daemon_only(app: BareApp, path: str) -> None:
    """Nothing inline, nothing from elsewhere, no frame around it, no address told to others."""
    async with app.client.get(path, headers=HTML) as response:
        policy = dict(part.partition(" ")[::2] for part in response.headers["Content-Security-Policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "connect-src": "'self'",
            "img-src": "'self' data:",
            "frame-ancestors": "'none'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "require-trusted-types-for": "'script'",
        }
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"


async def test_who_has_no_token_yet_gets_the_page_and_nothing_else(tmp_path: Path) -> None:
    """The page has to come before it can ask for a token; what it shows does not."""
    auth = Auth(required=True, jwt_secret_file=written(tmp_path, "jwt.secret", SECRET))
    async with bare_app(tmp_path, auth=auth) as app:
        for path, status in (("/", 200), ("/page/page.js", 200), ("/page/other.js", 401), ("/api/v2/jobs", 401)):
            async with app.client.get(path, headers=HTML) as response:
                assert (path, response.status) == (path, status)


async def test_a_link_to_a_job_from_elsewhere_leads_to_the_page(app: BareApp) -> None:
    """As browsers send it when their user follows it; a frame of another site is refused."""
    elsewhere = HTML | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    for destination, status in (("document", 200), ("iframe", 403)):
        async with app.client.get("/", headers=elsewhere | {"Sec-Fetch-Dest": destination}) as response:
            assert response.status == status


def test_every_file_is_packaged() -> None:
    """A wheel has what a checkout has."""
    pyproject = tomllib.loads((SOURCE_ROOT / "pyproject.toml").read_text())
    patterns = pyproject["tool"]["setuptools"]["package-data"]["imagejobd"]
    root = Path(imagejobd.__file__).parent
    for file in FILES:
        assert any(fnmatch(str(file.relative_to(root)), pattern) for pattern in patterns), file


def test_every_error_has_advice() -> None:
    """For each code that a job may fail with, the page says what to do."""
    text = (FOLDER / "parts.js").read_text()
    advice = re.search(r"ADVICE = \{(.*?)\n\};", text, re.DOTALL)
    assert advice is not None
    assert set(re.findall(r"^  (\w+): '.+',$", advice[1], re.MULTILINE)) == set(ErrorCode)


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_make_no_markup_of_text(file: Path) -> None:
    """What a job holds is a stranger's: there is no way from a string to markup or to code."""
    words = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc|localStorage|cookie"
    assert re.findall(words, file.read_text()) == []
