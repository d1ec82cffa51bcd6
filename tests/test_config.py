"""Configuration: documented completely, refused clearly."""

from pathlib import Path

import pytest

from imagejobd.config import Config, ConfigError, Listener, check_listener, listeners, load, parse, render
from imagejobd.daemon import check, check_schedules

EXAMPLE = Path(__file__).parents[1] / "config.example.toml"


def test_example_shows_the_defaults() -> None:
    """Every value in config.example.toml is the default."""
    assert parse(EXAMPLE.read_text(), "example") == Config()


def test_example_documents_every_key() -> None:
    """No key exists that config.example.toml does not name."""
    text = EXAMPLE.read_text()

    def keys(struct: object) -> set[str]:
        found: set[str] = set()
        for name in getattr(struct, "__struct_fields__", ()):
            value = getattr(struct, name)
            found |= {name} | keys(value)
        return found

    from imagejobd.registry.hosts import RegistryHost
    from imagejobd.runner.schedules import ScheduleSettings
    from imagejobd.runner.webhooks import WebhookSettings

    others = (
        RegistryHost(),
        WebhookSettings(url="", secret_file=""),
        ScheduleSettings(name="", cron="", kind="", spec={}),
    )
    missing = [key for key in keys(Config()).union(*map(keys, others)) if key not in text]
    assert not missing


def test_the_example_of_a_registry_can_be_used() -> None:
    """The table that is only shown, because no registry is configured by default, reads well without its marks."""
    _, table = EXAMPLE.read_text().split('# [registry."registry.example:5000"]\n')
    lines = [line.removeprefix("# ") for line in table.partition("\n#\n")[0].splitlines()]
    assert parse("\n".join(['[registry."registry.example:5000"]', *lines]), "example").registry


def test_the_example_of_a_webhook_can_be_used() -> None:
    """So does the one that is shown at the end."""
    _, table = EXAMPLE.read_text().split("# [webhooks.ci]\n")
    lines = [line.removeprefix("# ") for line in table.splitlines()]
    (webhook,) = parse("\n".join(["[webhooks.ci]", *lines]), "example").webhooks.values()
    assert webhook.states == ("succeeded", "failed", "cancelled")


def example_of_schedules() -> str:
    """The tables that are shown before those of webhooks, without their marks."""
    _, tables = EXAMPLE.read_text().split('# [[schedule]]\n# name = "sync', 1)
    lines = [line.removeprefix("#").removeprefix(" ") for line in tables.partition("\n\n")[0].splitlines()]
    return "\n".join(["[[schedule]]", f'name = "sync{lines[0]}', *lines[1:]])


def test_the_example_of_schedules_can_be_used() -> None:
    """Their kinds take the specs, and check-config shows them as they are."""
    config = parse(example_of_schedules(), "example")
    sync, weekly = check_schedules(config)
    assert (sync.job.kind, weekly.job.kind) == ("distribute", "build")
    assert sync.job.spec["source"]["tags"] == {"semver": ">=1.0", "newest": 5}
    assert sync.job.labels == {"team": "base", "schedule": "sync-tools"}
    assert parse(render(config), "shown") == config


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('cron = "30', 'crom = "30', ["key schedule[0]", "crom"]),
        ("priority = -10", "priority = 101", ["schedule[0].priority", "<= 100"]),
        ("newest = 5", "newest = 0", ["schedule[sync-tools].spec.source.tags.newest"]),
        ('"https://one.example"', '"ftp://one.example"', ["schedule[sync-tools].spec.targets[0].endpoint"]),
        (
            '"https://one.example"',
            '"https://one.example", auth = { basicauth = { user = "u", password = "hidden" } }',
            ["schedule[sync-tools].spec: ", "password_file"],
        ),
        ("main.tar.gz", "main.tar.gz?token=hidden", ["schedule[weekly-app].spec: ", "query"]),
        ('image = "registry.example/team/app:weekly"', "", ["schedule[weekly-app].spec: ", "image"]),
        ('kind = "build"', 'kind = "dispatch"', ["schedule[weekly-app].spec.image"]),
    ],
)
def test_what_is_wrong_with_a_schedule_is_named(before: str, after: str, words: list[str], tmp_path: Path) -> None:
    """With the schedule's name and the field, and without a password."""
    text = example_of_schedules()
    assert before in text
    path = tmp_path / "config.toml"
    path.write_text(text.replace(before, after))
    with pytest.raises(ConfigError) as refused:
        load(path, {}, check=check)
    assert "hidden" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[limits]\nbiuld = 3", ["config.toml", "limits.biuld", "did you mean limits.build"]),
        ("[limts]", ["limts", "did you mean limits"]),
        ("[limits]\nmax_attempts = 5", ["limits.max_attempts", "limits.retry_for_s"]),
        ("[limits]\nbuild = 'two'", ["limits.build", "int"]),
        ("[limits]\nbuild = 0", ["limits.build", ">= 1"]),
        ("[kinds.distribute]\ncopy_timeout_s = 5", ["kinds.distribute.copy_timeout_s", "remove the key"]),
        ("[webhooks.ci]\nurl = 'https://x'\nsecrets = 'y'", ['webhooks."ci".secrets', "secret_file"]),
        ("[webhooks.ci]\nurl = 'https://x'\nsecret_file = 'y'\nstates = ['queued']", ['webhooks."ci"', "succeeded"]),
        ("[kinds.distribute]\nstreams = 3", ["kinds.distribute.streams", "streams_max"]),
        ("[kinds.distribute]\nwindow_bytes = 0", ["kinds.distribute.window_bytes", ">= 1"]),
        ("[limits]\ndistribute = 0", ["limits.distribute", ">= 1"]),
        ("[kinds.build]\nfetch_timeout = 3", ["kinds.build.fetch_timeout", "fetch_timeout_s"]),
        ('[registry."r.example"]\npasword_file = "x"', ['registry."r.example".pasword_file', "password_file"]),
        ("[auth]\nleeway_s = inf", ["auth.leeway_s", "<= 3600"]),
        ("[auth]\nleeway_s = nan", ["auth.leeway_s"]),
        ("[auth]\nleeway_s = 1e12", ["auth.leeway_s", "<= 3600"]),
        ("[auth]\nleeway_s = -1", ["auth.leeway_s", ">= 0"]),
        ('[auth]\naudience = ""', ["auth.audience", "length >= 1"]),
        ("[auth]\nalgorithms = []", ["auth.algorithms", "length >= 1"]),
        ("limits = 3", ["limits"]),
        ("x = ", ["not valid TOML"]),
    ],
)
def test_what_is_wrong_is_named(text: str, words: list[str]) -> None:
    """A bad configuration is refused with file, key and what would be right."""
    with pytest.raises(ConfigError) as refused:
        parse(text, "config.toml")
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("text", ["[limits]\na = 1\nb = 2", "[limits]\nbuild = 0\n[server]\nuploads_max = 0"])
def test_several_errors_are_reported_at_once(text: str) -> None:
    """Two misspelt keys, or bad values in two tables, are two lines of one message."""
    with pytest.raises(ConfigError) as refused:
        parse(text, "c")
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:1", Listener("127.0.0.1", 1)),
        ("[::1]:8080", Listener("::1", 8080)),
        ("unix:/run/x.sock", Listener(path="/run/x.sock")),
        ("localhost:80", Listener("localhost", 80)),
    ],
)
def test_listeners(listen: str, expected: Listener) -> None:
    """host:port, [v6]:port and unix:/path are understood."""
    config = parse(f'[server]\nlisten = ["{listen}"]', "c")
    assert listeners(config, {}) == [expected]
    assert expected.is_local


@pytest.mark.parametrize("listen", ["8080", "host:", "host:0", "host:65536", "unix:relative", ""])
def test_bad_listeners_are_refused(listen: str) -> None:
    """What is no address is refused by name."""
    with pytest.raises(ConfigError, match=r"server\.listen"):
        listeners(parse(f'[server]\nlisten = ["{listen}"]', "c"), {})


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        ("", Listener("127.0.0.1", 8080)),
        ("9000", Listener("127.0.0.1", 9000)),
        (":9001", Listener("127.0.0.1", 9001)),
        ("127.0.0.2:9002", Listener("127.0.0.2", 9002)),
        ("[::1]:9003", Listener("::1", 9003)),
        ("localhost:9004", Listener("localhost", 9004)),
    ],
)
def test_port_variable_is_honoured_when_silent(port: str, expected: Listener) -> None:
    """$PORT, with a host or without, says where to listen; the configuration comes first."""
    assert listeners(Config(), {"PORT": port}) == [expected]
    configured = parse('[server]\nlisten = ["127.0.0.1:1"]', "c")
    assert listeners(configured, {"PORT": port}) == [Listener("127.0.0.1", 1)]


@pytest.mark.parametrize(
    "port",
    ["0", "65536", "http", "127.0.0.1:", "127.0.0.1", "::1:80", "tcp://10.0.0.1:80", ":", "80 ", "[::1]", "[x]:80"],
)
def test_bad_port_variables_are_refused(port: str) -> None:
    """A $PORT that is none is refused by its name, with what it may look like."""
    with pytest.raises(ConfigError, match=r"\$PORT is .*127\.0\.0\.1:8080.*server\.listen"):
        listeners(Config(), {"PORT": port})


def test_port_variable_opens_nothing() -> None:
    """An address that others can reach needs the same word as in the configuration."""
    with pytest.raises(ConfigError, match="other machines"):
        load(None, {"PORT": "0.0.0.0:8080"})


def test_open_listener_needs_a_word(tmp_path: Path) -> None:
    """A listener that others can reach is refused, unless callers need a token or may be anonymous there."""
    file = tmp_path / "config.toml"
    for auth in ("", "required = true", 'jwt_secret_file = "/secret"', 'required = true\njwt_secret_file = ""'):
        file.write_text(f'[server]\nlisten = ["0.0.0.0:8080"]\n[auth]\n{auth}')
        with pytest.raises(ConfigError, match=r"auth\.required = true with a key.*auth\.allow_anonymous = true"):
            load(file, {})
    for key in ('jwt_secret_file = "/secret"', 'jwt_public_key_files = ["/key.pem"]', 'jwks_file = "/jwks.json"'):
        file.write_text(f'[server]\nlisten = ["0.0.0.0:8080"]\n[auth]\nrequired = true\n{key}')
        check_listener(load(file, {}), Listener("0.0.0.0", 8080))
    file.write_text('[server]\nlisten = ["0.0.0.0:8080"]\n[auth]\nallow_anonymous = true')
    check_listener(load(file, {}), Listener("0.0.0.0", 8080))


@pytest.mark.parametrize("auth", ["allow_anonymous = true", 'required = true\njwt_secret_file = "/secret"'])
def test_pollers_without_a_token_are_local(tmp_path: Path, auth: str) -> None:
    """A listener that others can reach is refused where the dispatcher's jobs can be read without a token."""
    file = tmp_path / "config.toml"
    for listen in ("0.0.0.0:8080", "192.0.2.1:80"):
        file.write_text(f'[server]\nlisten = ["{listen}"]\n[auth]\ndispatch_reads_anonymous = true\n{auth}')
        with pytest.raises(ConfigError, match=r"auth\.dispatch_reads_anonymous: .*other machines"):
            load(file, {})
    local = '["127.0.0.1:1", "[::1]:1", "unix:/run/x.sock"]'
    file.write_text(f"[server]\nlisten = {local}\n[auth]\ndispatch_reads_anonymous = true\n{auth}")
    assert load(file, {}).auth.dispatch_reads_anonymous


def test_absent_file_is_named(tmp_path: Path) -> None:
    """A configuration that was asked for and is not there is an error, not a default."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load(tmp_path / "nowhere.toml", {})
