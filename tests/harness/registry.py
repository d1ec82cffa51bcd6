"""docker-registry on a free port: plain, behind htpasswd, with TLS of our own authority, read-only, without deletes."""

import base64
import hashlib
import json
import os
import shutil
import ssl
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness import tls
from harness.process import Peer, Process, free_port
from harness.services import program

USERNAME = "builder"
PASSWORD = "correct-horse"
# docker-registry takes bcrypt only, which Python has no module for: the hash of PASSWORD, at the lowest cost.
HTPASSWD = "builder:$2y$05$abcdefghijklmnopqrstuuZ0Fx87Pb/Aqb0E90lfvCwzXnaFKUHpS\n"
START_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 10.0
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
MANIFEST_TYPES = ", ".join(
    [
        MANIFEST_TYPE,
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
    ]
)


class Registry(Peer):
    """One docker-registry. `stop` and `start` again model an outage: address and content stay until `remove`."""

    def __init__(
        self, *, htpasswd: bool = False, use_tls: bool = False, deletes: bool = True, read_only: bool = False
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="imagejobd-registry-"))
        self.port = free_port()
        self.htpasswd = htpasswd
        self.certificate = tls.issue(self.folder) if use_tls else None
        config = self.folder / "config.yml"
        config.write_text(json.dumps(self._config(deletes=deletes, read_only=read_only)))  # JSON is YAML
        self._process = Process(
            [str(program("docker-registry")), "serve", str(config)],
            log_file=self.folder / "registry.log",
            env=os.environ | {"OTEL_TRACES_EXPORTER": "none"},
        )

    @property
    def host(self) -> str:
        """`127.0.0.1:port`, as image references have it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{self.host}"

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

    def remove(self) -> None:
        """Go down for good and remove the content."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

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
        if self.htpasswd:
            basic = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
            request.add_header("Authorization", f"Basic {basic}")
        context = ssl.create_default_context(cafile=self.ca_file) if self.certificate else None
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

    def _config(self, *, deletes: bool, read_only: bool) -> dict[str, Any]:
        http: dict[str, Any] = {"addr": self.host, "secret": "one-secret-for-all-lives"}
        if self.certificate:
            http["tls"] = {
                "certificate": str(self.certificate.certificate_file),
                "key": str(self.certificate.key_file),
            }
        config: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info", "formatter": "text"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "data")},
                "cache": {"blobdescriptor": "inmemory"},
                "delete": {"enabled": deletes},
                "maintenance": {"readonly": {"enabled": read_only}, "uploadpurging": {"enabled": False}},
            },
            "http": http,
        }
        if self.htpasswd:
            (self.folder / "htpasswd").write_text(HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "imagejobd test", "path": str(self.folder / "htpasswd")}}
        return config
