"""The command line: what is wrong is said in one line, with an exit code, and without a traceback."""

import fcntl
import re
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import jwt
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from harness.daemon import SOURCE_ROOT, Config, Daemon, to_toml
from harness.process import free_port
from imagejobd.api.auth import Tokens
from imagejobd.api.intake import Caller, Server
from imagejobd.api.keys import load_keys
from imagejobd.cli import main
from imagejobd.config import Config as Settings
from imagejobd.config import parse, render
from imagejobd.dockerfile.policy import PolicySettings
from imagejobd.engine.settings import EngineSettings
from imagejobd.registry.hosts import RegistryHost

COMMAND_TIMEOUT_S = 30
SECRET = b"a shared secret of more than thirty-two bytes"
CANNOT_START, BAD_USAGE, BAD_CONFIGURATION = 1, 2, 78
# With click 8.5 and Python 3.11 there are about 110.
MODULES_MAX = 150


def in_process(*args: str, **env: str) -> Result:
    """A command that ends before the daemon would start; much quicker than a process."""
    return CliRunner().invoke(main, args, env=env)


def imagejobd(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imagejobd", *args],
        capture_output=True,
        check=False,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        env={"PYTHONPATH": str(SOURCE_ROOT)} | env,
    )


def written(folder: Path, config: Config) -> str:
    """The path of a configuration file; whatever it says, nothing outside `folder` is used."""
    server = {"state_dir": str(folder / "state"), "listen": [f"127.0.0.1:{free_port()}"]} | config.get("server", {})
    engine = {"host": f"unix://{folder}/no-engine.sock"} | config.get("engine", {})
    path = folder / "config.toml"
    path.write_text(to_toml({**config, "server": server, "engine": engine}))
    return str(path)


def test_check_config_shows_what_is_in_force(tmp_path: Path) -> None:
    """Exit 0, and every key with its value as TOML: the file's own, else the default."""
    done = in_process("check-config", "--config", written(tmp_path, {"limits": {"build": 7}}))
    assert (done.exit_code, done.stderr) == (0, "imagejobd: the configuration is valid\n")
    shown = tomllib.loads(done.stdout)
    assert shown["limits"]["build"] == 7
    assert shown["limits"]["queue_max"] == Settings().limits.queue_max
    assert shown["server"]["state_dir"] == str(tmp_path / "state")


def test_check_config_shows_what_the_environment_says(tmp_path: Path) -> None:
    """Where the configuration is silent: the port of $PORT, and the engine of $DOCKER_HOST."""
    path = tmp_path / "config.toml"
    path.write_text("")
    done = in_process("check-config", "--config", str(path), PORT=":9000", DOCKER_HOST="unix:///engine.sock")
    shown = tomllib.loads(done.stdout)
    assert (shown["server"]["listen"], shown["engine"]["host"]) == (["127.0.0.1:9000"], "unix:///engine.sock")


def test_the_default_file_is_not_passed_over_where_it_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cannot even look for it hears that, instead of getting the defaults."""
    monkeypatch.setattr("imagejobd.cli.service.DEFAULT_PATH", Path("/" + 300 * "x"))
    done = in_process("check-config")
    assert done.exit_code == 78
    assert "cannot read the configuration" in done.stderr


def test_what_check_config_shows_is_a_configuration(tmp_path: Path) -> None:
    """What is printed reads as the same configuration, and what that is checked to as the same once more."""
    config: Config = {
        "registry": {"registry.example:5000": {"plain_http": True, "tenants": ["1"]}, "docker.io": {"insecure": True}},
        "limits": {"build": 7, "per_tenant": {"queue_max": 3}},
    }
    first = in_process("check-config", "--config", written(tmp_path, config))
    assert parse(first.stdout, "again") == parse((tmp_path / "config.toml").read_text(), "first")
    (tmp_path / "again.toml").write_text(first.stdout)
    second = in_process("check-config", "--config", str(tmp_path / "again.toml"))
    assert (second.exit_code, second.stdout) == (0, first.stdout)


def test_check_config_says_when_schedules_run(tmp_path: Path) -> None:
    """The next run of each, on stderr; what is shown has the schedule, and reads as the same once more."""
    path = Path(written(tmp_path, {}))
    schedule = 'name = "yearly"\ncron = "0 0 1 1 *"\nkind = "run"\nspec = { dockerfile = "FROM scratch" }'
    path.write_text(f"{path.read_text()}\n[[schedule]]\n{schedule}\n")
    done = in_process("check-config", "--config", str(path))
    assert done.exit_code == 0
    assert re.search(r"^imagejobd: schedule yearly: next run 2\d\d\d-01-01T00:00:00Z$", done.stderr, re.MULTILINE)
    assert "\n[[schedule]]\n" in done.stdout
    assert parse(done.stdout, "again") == parse(path.read_text(), "first")


def test_any_configuration_can_be_shown() -> None:
    """Whatever strings and numbers hold, they are read back as they were."""
    hosts = ('a"b', "back\\slash", "tab\t", "del\x7f", "ünïcode 🐋", "line\nbreak", "'", "#", "")
    settings = Settings(
        server=Server(hosts=hosts, drain_timeout_s=1e300, body_idle_s=float("inf"), upload_timeout_s=1e-9),
        registry={"r.example:5000": RegistryHost(insecure=True), 'o"dd': RegistryHost(mirrors=hosts)},
    )
    assert parse(render(settings), "shown") == settings


def test_check_config_shows_no_secret(tmp_path: Path) -> None:
    """The configuration names files with secrets, and is shown without them; a password in a URL is masked."""
    for name in ("password", "jwt"):
        (tmp_path / name).write_text(f"{name}-of-more-than-thirty-two-bytes-s3cret")
    config: Config = {
        "auth": {"jwt_secret_file": str(tmp_path / "jwt")},
        "registry": {"r.example": {"username": "me", "password_file": str(tmp_path / "password")}},
    }
    done = in_process("check-config", "--config", written(tmp_path, config))
    assert done.exit_code == 0
    assert "s3cret" not in done.output
    assert str(tmp_path / "password") in done.stdout
    shown = render(Settings(engine=EngineSettings(host="tcp://me:s3cret@engine:2376")))
    assert "s3cret" not in shown
    assert parse(shown, "masked").engine.host == "tcp://me:********@engine:2376"
    for password in ("a@b", 'a"b', "a:b@c"):
        shown = render(Settings(engine=EngineSettings(host=f"tcp://me:{password}@engine:2376")))
        assert parse(shown, "masked").engine.host == "tcp://me:********@engine:2376"
    policy = PolicySettings(add_urls=("ssh://git@r.example/*", "http://r.example:80/@x", "https://*@*"))
    assert parse(render(Settings(policy=policy)), "plain").policy == policy


def test_check_config_tells_all_that_is_wrong(tmp_path: Path) -> None:
    """Bad values and misspelt keys are a line each, and so is what only a start would find; the verdict comes last."""
    bad: Config = {
        "limits": {"build": 0, "run": "two", "biuld": 1, "per_tenant": {"queue_max": 0}},
        "registry": {"r.example": {"insecure": 1, "mirrors": [1]}},
    }
    lines = in_process("check-config", "--config", written(tmp_path, bad)).stderr.splitlines()
    assert all(line.startswith("imagejobd: ") for line in lines)
    for key in ("limits.build", "limits.run", "limits.biuld", "limits.per_tenant.queue_max"):
        assert sum(f" {key}" in line and str(tmp_path) in line for line in lines) >= 1
    for key in ("insecure", "mirrors[0]"):
        assert sum(f'registry."r.example".{key}: ' in line for line in lines) == 1
    assert lines[-1] == f"imagejobd: the configuration cannot be used ({len(lines) - 1} problems)"
    late: Config = {
        "server": {"listen": ["0.0.0.0:80"]},
        "egress": {"deny": ["everything"]},
        "auth": {"jwks_file": "/nowhere"},
    }
    done = in_process("check-config", "--config", written(tmp_path, late))
    assert (done.exit_code, done.stdout) == (BAD_CONFIGURATION, "")
    assert len(done.stderr.splitlines()) == 4
    for word in ("server.listen", "[egress] deny", "auth.jwks_file"):
        assert word in done.stderr


def test_check_config_touches_nothing(tmp_path: Path) -> None:
    """Checking makes no state folder and needs no engine."""
    assert in_process("check-config", "--config", written(tmp_path, {})).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


@pytest.mark.parametrize("command", ["check-config", "serve"])
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"limits": {"biuld": 1}}, ["config.toml", "limits.biuld", "did you mean limits.build"]),
        ({"server": {"listen": ["0.0.0.0:80"]}}, ["server.listen", "allow_anonymous"]),
        ({"server": {"listen": ["nowhere"]}}, ["server.listen", "'nowhere'"]),
        ({"egress": {"deny": ["everything"]}}, ["[egress] deny", "'everything'"]),
        ({"engine": {"host": "ftp://engine"}}, ["engine", "ftp://engine", "unix://"]),
        ({"engine": {"builder": "kaniko"}}, ["engine.builder", "kaniko", "buildkit, classic"]),
        (
            {"registry": {"r.example": {"username": "me", "password_file": "/nowhere"}}},
            ['[registry."r.example"]', "password_file", "/nowhere"],
        ),
        ({"registry": {"r.example": {"username": "me"}}}, ['[registry."r.example"]', "password_file"]),
        ({"auth": {"required": True}}, ["auth.required", "jwt_secret_file"]),
        ({"auth": {"algorithms": ["HS265"]}}, ["auth.algorithms", "'HS265'", "HS256"]),
        ({"auth": {"jwt_secret_file": "/nowhere"}}, ["auth.jwt_secret_file", "/nowhere"]),
        ({"auth": {"jwt_public_key_files": ["/nowhere"]}}, ["auth.jwt_public_key_files", "/nowhere"]),
        ({"auth": {"jwks_file": "/nowhere"}}, ["auth.jwks_file", "/nowhere"]),
        ({"auth": {"leeway_s": -1.0}}, ["auth.leeway_s"]),
        ({"registry": {"r.example": {"ca_file": "/nowhere"}}}, ['[registry."r.example"]', "ca_file", "/nowhere"]),
    ],
    ids=str,
)
def test_bad_configuration(tmp_path: Path, command: str, config: Config, words: list[str]) -> None:
    """Exit 78 from both commands, with one line that names the key and what is wrong; a check adds its verdict."""
    done = in_process(command, "--config", written(tmp_path, config))
    assert done.exit_code == BAD_CONFIGURATION
    line, *verdict = done.stderr.splitlines()
    cannot = "imagejobd: the configuration cannot be used (1 problem)"
    assert verdict == ([cannot] if command == "check-config" else [])
    for word in ["imagejobd: ", *words]:
        assert word in line


def test_bad_configuration_files(tmp_path: Path) -> None:
    """A file that is absent, a folder, or no TOML is named, with exit 78."""
    no_toml = tmp_path / "bad.toml"
    no_toml.write_text("x = ")
    for path in (tmp_path / "absent.toml", tmp_path, no_toml):
        done = in_process("check-config", "--config", str(path))
        assert done.exit_code == BAD_CONFIGURATION
        assert str(path) in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("port", ["http", "tcp://127.0.0.1:8080", "65536"])
def test_bad_port_variable(tmp_path: Path, port: str) -> None:
    """$PORT that is no port is refused by its name, where the configuration is silent about it."""
    path = tmp_path / "config.toml"
    path.write_text("")
    done = in_process("check-config", "--config", str(path), PORT=port)
    assert done.exit_code == BAD_CONFIGURATION
    assert f"$PORT is '{port}'" in done.stderr
    assert "server.listen" in done.stderr


def refused_start(config: str) -> str:
    """The one line, after that which says what is started, in which `serve` says why it cannot start."""
    daemon = Daemon()
    try:
        daemon.config_file.write_text(Path(config).read_text())
        daemon.spawn()
        assert daemon.wait() == CANNOT_START
        starting, line = daemon.log_text().splitlines()
    finally:
        daemon.remove()
    assert " event=starting version=" in starting
    assert "cannot start" in line
    return line


def test_busy_port(tmp_path: Path) -> None:
    """A port that another process listens on is named."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        line = refused_start(written(tmp_path, {"server": {"listen": [listen]}}))
    assert "server.listen" in line
    assert listen in line


def test_unix_socket_without_folder(tmp_path: Path) -> None:
    """A unix socket in a folder that does not exist is named."""
    listen = f"unix:{tmp_path}/absent/api.sock"
    assert listen in refused_start(written(tmp_path, {"server": {"listen": [listen]}}))


def test_state_folder_in_use(tmp_path: Path) -> None:
    """A second daemon on the same folder is refused and told which process holds it."""
    state = tmp_path / "state"
    state.mkdir()
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        line = refused_start(written(tmp_path, {}))
    assert "process 4711" in line
    assert str(state) in line


@pytest.mark.parametrize("folder", ["/proc/imagejobd", "/sys", "/dev/null"])
def test_unusable_state_folder(tmp_path: Path, folder: str) -> None:
    """A folder that cannot be made or written to is named with the reason, for root too."""
    line = refused_start(written(tmp_path, {"server": {"state_dir": folder}}))
    assert "server.state_dir" in line
    assert folder in line


def test_file_in_the_way(tmp_path: Path) -> None:
    """A file where the state folder needs a folder of its own is named."""
    state = tmp_path / "state"
    state.mkdir()
    (state / "blobs").write_text("")
    assert str(state / "blobs") in refused_start(written(tmp_path, {}))


def test_foreign_database(tmp_path: Path) -> None:
    """A file that is no job database is refused and left as it is."""
    state = tmp_path / "state"
    state.mkdir()
    database = state / "imagejobd.db"
    database.write_text("the diary of somebody\n" * 100)
    assert str(database) in refused_start(written(tmp_path, {}))
    assert database.read_text() == "the diary of somebody\n" * 100


def test_bad_configuration_of_a_process(tmp_path: Path) -> None:
    """As a process too: one line on stderr, exit 78, and no state folder."""
    done = imagejobd("serve", "--config", written(tmp_path, {"limits": {"build": 0}}))
    assert done.returncode == BAD_CONFIGURATION
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "state").exists()


def test_variables_of_the_earlier_builder(tmp_path: Path) -> None:
    """They have no effect; one line of the log names them and says what replaces Redis."""
    config = written(tmp_path, {"server": {"state_dir": "/dev/null"}})
    done = imagejobd("serve", "--config", config, CACHE_1_HOST="registry.example")
    assert done.stderr.count("Redis are ignored: the queue in state_dir replaces it") == 1
    assert "names=CACHE_1_HOST" in done.stderr


def minted(*args: str) -> tuple[dict[str, Any], str]:
    """The claims of a token that was printed, and nothing beside it; and the token."""
    done = in_process("token", *args)
    assert (done.exit_code, done.stderr) == (0, "")
    [text] = done.stdout.splitlines()
    claims: dict[str, Any] = jwt.decode(text, options={"verify_signature": False})
    return claims, text


def with_secret(folder: Path, secret: bytes = SECRET, **auth: Any) -> str:
    """The path of a configuration with a shared secret."""
    (folder / "jwt.secret").write_bytes(secret)
    return written(folder, {"auth": {"jwt_secret_file": str(folder / "jwt.secret"), **auth}})


def caller_of(config: str, text: str) -> Caller:
    """Whom the daemon of that configuration takes a token's bearer for."""
    auth = parse(Path(config).read_text(), "c").auth
    return Tokens(load_keys(auth), auth).caller(text, time.time())


def test_a_token_that_the_daemon_takes(tmp_path: Path) -> None:
    """The token alone is printed; it names tenant and client and is good for an hour."""
    config = with_secret(tmp_path)
    claims, text = minted("--tenant", "1", "--client", "2", "--config", config)
    assert (claims["tid"], claims["oid"], claims["aud"]) == (1, 2, Settings().auth.audience)
    assert claims["exp"] - claims["iat"] == 3600
    assert set(claims) == {"tid", "oid", "aud", "iat", "exp"}
    caller = caller_of(config, text)
    assert (caller.tenant, caller.client, caller.submitter) == ("1", "2", {})


def test_a_token_with_a_person(tmp_path: Path) -> None:
    """Subject, name, e-mail address, audience and time are as they are given."""
    config = with_secret(tmp_path, admin_subjects=["jane"], audience="other")
    person = ("--subject", "jane", "--name", "Jane Doe", "--email", "jane@company.example")
    claims, text = minted("--tenant", "-1", "--client", "2", *person, "--expires-in-s", "60", "--config", config)
    assert claims["exp"] - claims["iat"] == 60
    caller = caller_of(config, text)
    assert caller.is_admin
    assert caller.submitter == {"sub": "jane", "name": "Jane Doe", "email": "jane@company.example"}
    claims, _ = minted("--tenant", "1", "--client", "2", "--audience", "third", "--config", config)
    assert claims["aud"] == "third"


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_a_token_by_the_documents_secret(tmp_path: Path) -> None:
    """A short secret mints without a word beside the token; the algorithm is one that is configured."""
    config = with_secret(tmp_path, b"your-256-bit-secret\n", algorithms=["HS512", "RS256"])
    _, text = minted("--tenant", "1", "--client", "2", "--config", config)
    assert jwt.get_unverified_header(text) == {"alg": "HS512", "typ": "JWT"}
    assert caller_of(config, text).tenant == "1"


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (rsa.generate_private_key(65537, 2048), "RS256"),
        (ec.generate_private_key(ec.SECP256R1()), "ES256"),
        (ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
    ],
    ids=["rsa", "ec", "ed25519"],
)
def test_a_token_by_a_private_key(tmp_path: Path, key: Any, algorithm: str) -> None:
    """With --private-key a token is signed by the first allowed algorithm of the key's sort, under the --key-id."""
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    config = written(tmp_path, {"auth": {"jwt_public_key_files": [str(public)]}})
    args = ("--tenant", "1", "--client", "2", "--private-key", str(private), "--key-id", "k1", "--config", config)
    _, text = minted(*args)
    assert jwt.get_unverified_header(text) == {"alg": algorithm, "typ": "JWT", "kid": "k1"}
    assert caller_of(config, text).tenant == "1"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["jwt_secret_file", "--private-key"]),
        (["--private-key", "/nowhere"], ["--private-key", "/nowhere"]),
        (["--private-key", "{folder}/config.toml"], ["config.toml", "not a private key in PEM"]),
        (["--private-key", "{folder}/locked.pem"], ["locked.pem", "passphrase"]),
        (["--private-key", "{folder}/small.pem"], ["small.pem", "1024 bits"]),
        (["--private-key", "{folder}/p384.pem"], ["p384.pem", "ES384", "auth.algorithms"]),
        (["--private-key", "{folder}/x25519.pem"], ["x25519.pem", "signs no tokens"]),
        (["--tenant", "one"], ["--tenant", "integer"]),
        (["--client", str(2**63)], ["--client", "range"]),
        (["--expires-in-s", "0"], ["--expires-in-s", "range"]),
        (["--audience", ""], ["--audience", "empty"]),
        (["--key-id", ""], ["--key-id", "empty"]),
    ],
)
def test_tokens_that_cannot_be_minted(tmp_path: Path, args: list[str], words: list[str]) -> None:
    """Exit 2 with the option or file that is wrong, and nothing on stdout."""
    locked = BestAvailableEncryption(b"passphrase")
    for name, key, encryption in (
        ("locked", ec.generate_private_key(ec.SECP256R1()), locked),
        ("small", rsa.generate_private_key(65537, 1024), NoEncryption()),
        ("p384", ec.generate_private_key(ec.SECP384R1()), NoEncryption()),
        ("x25519", x25519.X25519PrivateKey.generate(), NoEncryption()),
    ):
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        (tmp_path / f"{name}.pem").write_bytes(pem)
    config = written(tmp_path, {})
    given = [arg.replace("{folder}", str(tmp_path)) for arg in args]
    done = in_process("token", "--config", config, "--tenant", "1", "--client", "2", *given)
    assert (done.exit_code, done.stdout) == (BAD_USAGE, "")
    for word in words:
        assert word in done.stderr


def test_help_and_version() -> None:
    """All commands are in the help, in whole sentences; no option shows its 64 bits."""
    text = in_process("--help").stdout
    for words in ("serve", "check-config", "token", "build", "completion"):
        assert words in text
    assert re.search(r"\w\.\.\.", text) is None
    assert str(2**63 - 1) not in in_process("token", "--help").stdout
    assert in_process("--version").exit_code == 0
    assert in_process("sevre").exit_code == BAD_USAGE


def test_help_needs_no_daemon() -> None:
    """Nothing but click is imported for the help, nor for a completion at each press of a key."""
    show = "import sys, imagejobd.cli; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", show],
        capture_output=True,
        check=True,
        text=True,
        env={"PYTHONPATH": str(SOURCE_ROOT)},
    )
    modules = done.stdout.split()
    assert [name for name in modules if name.startswith("imagejobd")] == ["imagejobd", "imagejobd.cli"]
    assert not {"asyncio", "aiohttp", "http.client", "msgspec", "rich", "sqlite3", "ssl"} & set(modules)
    # click, and what of the standard library comes with it.
    assert len(modules) < MODULES_MAX, len(modules)
