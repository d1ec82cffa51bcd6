"""docker-registry on a free port, in all the ways that operators run it."""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness import tls
from harness.file_server import BlobStore
from harness.logins import HTPASSWD, PASSWORD, USERNAME
from harness.process import GOGC, Peer, Process, free_port
from harness.services import program
from harness.token_server import ISSUER, SERVICE, TokenServer

__all__ = ["PASSWORD", "USERNAME", "Registry"]

DATA_FOLDER = "data"
START_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 10.0
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
REPOSITORY_PATH = re.compile(r"/v2/(?P<name>.+)/(manifests|blobs|tags)/")
MANIFEST_TYPES = ", ".join(
    [
        MANIFEST_TYPE,
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
    ]
)


class Registry(Peer):
    """One docker-registry. `stop` and `start` again model an outage: address and content stay until `remove`.

    `tokens` guards it by tokens of that server; `relative_urls` makes its Locations relative; `storage` takes the
    reads of blobs by redirects; `proxy_of` makes it a pull-through cache of the one at that URL; `asks_certificates`
    lets in with TLS only who shows a certificate of its own authority, such as its own.
    """

    def __init__(
        self,
        *,
        htpasswd: bool = False,
        use_tls: bool = False,
        deletes: bool = True,
        read_only: bool = False,
        tokens: TokenServer | None = None,
        relative_urls: bool = False,
        storage: BlobStore | None = None,
        proxy_of: str | None = None,
        asks_certificates: bool = False,
        address: str = "127.0.0.1",
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="imagejobd-registry-"))
        self.port = free_port()
        self.address = address
        self.htpasswd = htpasswd
        self.tokens = tokens
        self.certificate = tls.issue(self.folder) if use_tls else None
        if storage is not None:
            storage.root = self.folder / DATA_FOLDER
        config = _configuration(
            self.folder,
            self.host,
            certificate=self.certificate,
            asks_certificates=asks_certificates,
            htpasswd=htpasswd,
            deletes=deletes,
            read_only=read_only,
            tokens=tokens,
            relative_urls=relative_urls,
            redirect_to=storage.url if storage else None,
            proxy_of=proxy_of,
        )
        config_file = self.folder / "config.yml"
        config_file.write_text(json.dumps(config))  # JSON is YAML
        self._process = Process(
            [str(program("docker-registry")), "serve", str(config_file)],
            log_file=self.folder / "registry.log",
            env=os.environ | {"OTEL_TRACES_EXPORTER": "none", "GOGC": GOGC},
        )

    @property
    def host(self) -> str:
        """`address:port`, as image references have it."""
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{self.host}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ca_file(self) -> Path:
        """The authority to trust; only with `use_tls`."""
        if self.certificate is None:
            raise RuntimeError("this registry speaks plain HTTP")
        return self.certificate.ca_file

    def start(self) -> None:
        self._process.start(self._answers, timeout_s=START_TIMEOUT_S)

    def stop(self) -> None:
        """Go down; the content stays for the next `start`."""
        if self._process.is_running:
            self._process.terminate()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """As one that hangs: it takes connections and answers nothing, until the block is left."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def remove(self) -> None:
        """Go down for good and remove the content."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def is_private(self) -> bool:
        """Whether it lets in only `USERNAME` with `PASSWORD`."""
        return self.htpasswd or self.tokens is not None

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether `repository` has a blob."""
        try:
            self.request("HEAD", f"/v2/{repository}/blobs/{digest}").close()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        return True

    def manifest(self, repository: str, name: str) -> bytes:
        """The raw bytes of a manifest, by tag or digest."""
        with self.request("GET", f"/v2/{repository}/manifests/{name}") as response:
            return response.read()

    def plant_manifest(self, repository: str, body: bytes) -> None:
        """Lay a manifest into the registry's own files, unchecked (distribution, registry/storage/paths.go)."""
        digest = hashlib.sha256(body).hexdigest()
        root = self.folder / DATA_FOLDER / "docker/registry/v2"
        files = {
            root / f"blobs/sha256/{digest[:2]}/{digest}/data": body,
            root / f"repositories/{repository}/_manifests/revisions/sha256/{digest}/link": f"sha256:{digest}".encode(),
        }
        for file, content in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

    def delete_manifest(self, repository: str, digest: str) -> None:
        """Remove a manifest and all tags that point at it."""
        self.request("DELETE", f"/v2/{repository}/manifests/{digest}").close()

    def digest(self, repository: str, tag: str) -> str | None:
        """The digest that `tag` points at, or None where there is no such tag."""
        try:
            with self.request("HEAD", f"/v2/{repository}/manifests/{tag}") as response:
                return response.headers["Docker-Content-Digest"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def tags(self, repository: str) -> list[str]:
        """The tags of a repository, sorted; none for an unknown repository."""
        try:
            with self.request("GET", f"/v2/{repository}/tags/list") as response:
                return sorted(json.load(response)["tags"] or [])
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return []
            raise

    def put_image(self, repository: str, tag: str) -> str:
        """Put an image without layers under `tag`, without any tool; returns its digest. Different for each name."""
        config = json.dumps({"config": {"Labels": {"name": f"{repository}:{tag}"}}}).encode()
        config_digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
        with self.request("POST", f"/v2/{repository}/blobs/uploads/") as response:
            upload = urlsplit(response.headers["Location"])
        path = f"{upload.path}?{upload.query}&digest={config_digest}"
        self.request("PUT", path, config, "application/octet-stream").close()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "size": len(config), "digest": config_digest},
            "layers": [],
        }
        body = json.dumps(manifest).encode()
        self.request("PUT", f"/v2/{repository}/manifests/{tag}", body, MANIFEST_TYPE).close()
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def request(self, method: str, path: str, body: bytes | None = None, content_type: str = "") -> HTTPResponse:
        """One authenticated request straight to the registry. Raises `urllib.error.HTTPError` for 4xx and 5xx."""
        request = urllib.request.Request(self.url + path, data=body, method=method)
        request.add_header("Accept", MANIFEST_TYPES)
        if content_type:
            request.add_header("Content-Type", content_type)
        if authorization := self._authorization(path):
            request.add_header("Authorization", authorization)
        context = None
        if self.certificate:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.load_cert_chain(self.certificate.certificate_file, self.certificate.key_file)
        response: HTTPResponse = urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S, context=context)
        return response

    def log_text(self) -> str:
        return self._process.log_text()

    def _answers(self) -> bool:
        try:
            self.request("GET", "/v2/").close()
        except OSError:
            return False
        return True

    def _authorization(self, path: str) -> str:
        if self.tokens is not None:
            match = REPOSITORY_PATH.match(path)
            scopes = (f"repository:{match['name']}:pull,push,delete",) if match else ()
            return f"Bearer {self.tokens.issue(USERNAME, scopes)}"
        return f"Basic {base64.b64encode(f'{USERNAME}:{PASSWORD}'.encode()).decode()}" if self.htpasswd else ""


def _configuration(
    folder: Path,
    host: str,
    *,
    certificate: tls.Certificate | None,
    asks_certificates: bool,
    htpasswd: bool,
    deletes: bool,
    read_only: bool,
    tokens: TokenServer | None,
    relative_urls: bool,
    redirect_to: str | None,
    proxy_of: str | None,
) -> dict[str, Any]:
    """The configuration file (docker-registry's own document: "Configuring a registry"), ready for JSON; files that it
    refers to are written to `folder`."""
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "info", "formatter": "text"},
        "storage": {
            "filesystem": {"rootdirectory": str(folder / DATA_FOLDER)},
            "cache": {"blobdescriptor": "inmemory"},
            "delete": {"enabled": deletes},
            "maintenance": {"readonly": {"enabled": read_only}, "uploadpurging": {"enabled": False}},
        },
        "http": {"addr": host, "secret": "one-secret-for-all-lives", "relativeurls": relative_urls},
        # Without it every manifest with a foreign layer is refused.
        "validation": {"manifests": {"urls": {"allow": ["^https?://"]}}},
    }
    if certificate:
        config["http"]["tls"] = {"certificate": str(certificate.certificate_file), "key": str(certificate.key_file)}
        if asks_certificates:
            config["http"]["tls"]["clientcas"] = [str(certificate.ca_file)]
    if redirect_to:
        config["middleware"] = {"storage": [{"name": "redirect", "options": {"baseurl": redirect_to}}]}
    if proxy_of:
        config["proxy"] = {"remoteurl": proxy_of}
    return config | _auth(folder, htpasswd=htpasswd, tokens=tokens)


def _auth(folder: Path, *, htpasswd: bool, tokens: TokenServer | None) -> dict[str, Any]:
    if tokens is not None:
        tokens.write_certificate(folder / "issuer.pem")
        names = {"realm": tokens.realm, "service": SERVICE, "issuer": ISSUER}
        return {"auth": {"token": names | {"rootcertbundle": str(folder / "issuer.pem")}}}
    if htpasswd:
        (folder / "htpasswd").write_text(HTPASSWD)
        return {"auth": {"htpasswd": {"realm": "imagejobd test", "path": str(folder / "htpasswd")}}}
    return {}
