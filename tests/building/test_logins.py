"""Which login a registry is given, and that no log shows it."""

from pathlib import Path
from typing import Any, cast

from imagejobd.building.tools import BuildTools
from imagejobd.model.dockerfile.policy import Policy
from imagejobd.model.secret import Secret
from imagejobd.model.work import Work
from imagejobd.registry.settings import RegistryHost, RegistryHosts


class Listener:
    """The part of a job's work that logins concern."""

    def __init__(self, **secrets: Secret) -> None:
        self.secrets = secrets
        self.concealed: list[Secret] = []

    def conceal(self, secret: Secret) -> None:
        self.concealed.append(secret)


def test_configured_logins_are_concealed(tmp_path: Path) -> None:
    """A password of the configuration is hidden from the job's log before anybody sends it."""
    (tmp_path / "password").write_text("configured-password")
    login = RegistryHost(username="builder", password_file=str(tmp_path / "password"))
    nothing: Any = None
    hosts: Any = RegistryHosts({"registry.example": login})
    tools = BuildTools(engine=nothing, bases=nothing, registry=hosts, blobs=nothing, policy=Policy())
    work = Listener()
    lookup = tools.credentials_for(cast(Work, work))
    assert lookup("other.example") is None
    assert work.concealed == []
    found = lookup("registry.example")
    assert found is not None
    assert work.concealed == [found.password]
    assert found.password.reveal() == "configured-password"
