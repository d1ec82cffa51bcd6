"""The configuration of a docker-registry (its own document: "Configuring a registry")."""

from pathlib import Path
from typing import Any

from harness.logins import HTPASSWD
from harness.tls import Certificate
from harness.token_server import ISSUER, SERVICE, TokenServer

DATA_FOLDER = "data"


def configuration(
    folder: Path,
    host: str,
    *,
    certificate: Certificate | None,
    asks_certificates: bool,
    htpasswd: bool,
    deletes: bool,
    read_only: bool,
    tokens: TokenServer | None,
    relative_urls: bool,
    redirect_to: str | None,
    proxy_of: str | None,
) -> dict[str, Any]:
    """The document, ready for JSON; files that it refers to are written to `folder`."""
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
