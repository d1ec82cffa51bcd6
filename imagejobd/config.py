"""TOML to the frozen settings of each part of the daemon.

Every key is optional and every default works on a build host. An unknown key is refused with its file and a suggestion,
because a misspelt bound is a bound that does not hold.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec

from imagejobd.api.intake import Server
from imagejobd.api.keys import Auth
from imagejobd.dockerfile.policy import PolicySettings
from imagejobd.engine.settings import EngineSettings
from imagejobd.jobs.build import BuildSettings
from imagejobd.jobs.dispatch import DispatchSettings
from imagejobd.jobs.distribute.spec import DistributeSettings
from imagejobd.jobs.run import RunSettings
from imagejobd.model.egress import EgressSettings, is_loopback
from imagejobd.model.secrets import MASK
from imagejobd.registry.hosts import RegistryHost
from imagejobd.runner.schedules import ScheduleSettings
from imagejobd.runner.settings import Limits, Retention
from imagejobd.runner.webhooks import WebhookSettings

DEFAULT_PORT = 8080
CONFIG_MAX_BYTES = 1024 * 1024
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_URL_PASSWORD = re.compile(r"(://[^/@:]*:)[^/]+(?=@)")
_PORT_VARIABLE = re.compile(r"(?:(?P<host>[A-Za-z0-9.-]+|\[[A-Fa-f0-9:.]+\])?:)?(?P<port>[0-9]+)")
# Tables of tables, which have names of their own.
_NAMED_TABLES = (dict[str, RegistryHost], dict[str, WebhookSettings])
# Keys of earlier versions, and what takes their place.
REMOVED_KEYS = {
    "limits.max_attempts": "jobs are tried again by time, not by count; set limits.retry_for_s (seconds)",
    "kinds.distribute.copy_timeout_s": "a copy takes as long as it makes progress; remove the key",
}


class ConfigError(Exception):
    """The configuration cannot be used; the message names file and key."""


class Kinds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kinds.*]`."""

    build: BuildSettings = BuildSettings()
    run: RunSettings = RunSettings()
    dispatch: DispatchSettings = DispatchSettings()
    distribute: DistributeSettings = DistributeSettings()


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration, as `config.example.toml` documents it."""

    server: Server = Server()
    auth: Auth = Auth()
    limits: Limits = Limits()
    engine: EngineSettings = EngineSettings()
    policy: PolicySettings = PolicySettings()
    egress: EgressSettings = EgressSettings()
    registry: dict[str, RegistryHost] = {}
    kinds: Kinds = Kinds()
    retention: Retention = Retention()
    webhooks: dict[str, WebhookSettings] = {}
    schedule: tuple[ScheduleSettings, ...] = ()


class Listener(msgspec.Struct, frozen=True):
    """Where to listen: `path` for a unix socket, else `host` and `port`."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine's users can connect."""
        return bool(self.path) or is_loopback(self.host)


def load(
    path: Path | None,
    environ: Mapping[str, str] = os.environ,
    *,
    check: Callable[[Config], Iterable[str]] = lambda config: (),
) -> Config:
    """Read `path`, or take the defaults where there is none. `check` may have complaints of its own.

    Raises `ConfigError` with all that is wrong, a line each.
    """
    config = Config() if path is None else parse(_read(path), str(path))
    problems = [*_bad_listeners(config, environ), *check(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def parse(text: str, name: str) -> Config:
    """Configuration text to settings; `name` is the file that errors speak of."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from None
    problems = [*_unknown_keys(values, Config, ""), *_wrong_values(values, Config, "")]
    if problems:
        raise ConfigError("\n".join(f"{name}: {problem}" for problem in problems))
    return msgspec.convert(values, Config)


def resolved(config: Config, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration with the environment's answer, else the default, where it is silent."""
    server = msgspec.structs.replace(config.server, listen=_listen(config, environ))
    engine = msgspec.structs.replace(config.engine, host=config.engine.resolved_host())
    return msgspec.structs.replace(config, server=server, engine=engine)


def render(config: Config) -> str:
    """The configuration as TOML that reads as the same one; keys without a value are left out. A password in a URL is
    masked."""
    return "\n".join(_tables("", msgspec.to_builtins(config))).lstrip()


def listeners(config: Config, environ: Mapping[str, str] = os.environ) -> list[Listener]:
    """The configured listeners; without any `PORT`, as the older builder had it: a port, `:port`, or `host:port`."""
    listen = _listen(config, environ)
    if not listen:
        raise ConfigError("server.listen is empty: name at least one host:port or unix:/path")
    return [_listener(text) for text in listen]


def check_listener(config: Config, listener: Listener) -> None:
    """Refuse to offer an API without authentication to other machines, unless that is asked for; raises
    `ConfigError`. What `auth.dispatch_reads_anonymous` opens is never offered to them."""
    auth = config.auth
    if not (listener.is_local or auth.allow_anonymous or (auth.required and auth.has_keys)):
        raise ConfigError(
            f"server.listen: {listener} can be reached from other machines, and callers need no "
            "token; listen on loopback or a unix socket, or set auth.required = true with a key for tokens, or "
            "auth.allow_anonymous = true"
        )
    if auth.dispatch_reads_anonymous and not listener.is_local:
        raise ConfigError(
            f"auth.dispatch_reads_anonymous: {listener} can be reached from other machines, and whoever counts through "
            "the ids there could read of every tenant's jobs; listen on loopback or a unix socket, or leave the key out"
        )


def _bad_listeners(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    try:
        for listener in listeners(config, environ):
            check_listener(config, listener)
    except ConfigError as error:
        yield str(error)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > CONFIG_MAX_BYTES:
            raise ConfigError(f"{path}: larger than {CONFIG_MAX_BYTES} bytes; is this the right file?")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error}") from None


def _listen(config: Config, environ: Mapping[str, str]) -> tuple[str, ...]:
    if config.server.listen is not None:
        return config.server.listen
    text = environ.get("PORT", "") or str(DEFAULT_PORT)
    match = _PORT_VARIABLE.fullmatch(text)
    if match is None or not _is_port(match["port"]):
        forms = "8080, :8080, 127.0.0.1:8080 or [::1]:8080"
        raise ConfigError(f"$PORT is {text!r}, which is not one of {forms}; set it so, or set server.listen instead")
    return (f"{match['host'] or '127.0.0.1'}:{match['port']}",)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < int(text) < 65536


def _listener(text: str) -> Listener:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise ConfigError(f"server.listen: {text!r}: a unix socket needs an absolute path, unix:/run/…")
        return Listener(path=path)
    host, _, port = text.rpartition(":")
    if not host or not _is_port(port):
        raise ConfigError(f"server.listen: {text!r} is neither host:port (port 1 to 65535) nor unix:/path")
    return Listener(host=host.strip("[]"), port=int(port))


def _unknown_keys(values: Mapping[str, Any], struct: type[msgspec.Struct], prefix: str) -> Iterator[str]:
    """Complaints about keys that no struct has, with the nearest known key."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in values.items():
        kind = fields.get(key)
        if kind is None:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys here: {', '.join(sorted(fields))}"
            hint = REMOVED_KEYS.get(f"{prefix}{key}", hint)
            yield f"unknown key {prefix}{key}; {hint}"
        elif not isinstance(value, Mapping):
            continue
        elif kind in _NAMED_TABLES:
            for name, entry in value.items():
                if isinstance(entry, Mapping):
                    yield from _unknown_keys(entry, get_args(kind)[1], f'{prefix}{key}."{name}".')
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield from _unknown_keys(value, kind, f"{prefix}{key}.")


def _wrong_values(values: Mapping[str, Any], struct: type[msgspec.Struct], prefix: str) -> Iterator[str]:
    """Complaints about the values of known keys."""
    for field in msgspec.structs.fields(struct):
        key, value = f"{prefix}{field.encode_name}", values.get(field.encode_name)
        if value is None:
            continue
        if isinstance(value, Mapping) and field.type in _NAMED_TABLES:
            for name, entry in value.items():
                yield from _wrong_value(f'{key}."{name}"', entry, get_args(field.type)[1])
        else:
            yield from _wrong_value(key, value, field.type)


def _wrong_value(key: str, value: Any, kind: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield from _wrong_values(value, kind, f"{key}.")
        return
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        if what.startswith("Invalid enum value"):
            choices = [choice for one in (kind, *get_args(kind)) for choice in get_args(one) if isinstance(choice, str)]
            what = f"{what}; it is one of {', '.join(choices)}"
        yield f"key {key}{where.rstrip('`')}: {what}"


def _tables(path: str, values: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a table and of those in it. What is in an array of tables is written inline."""
    lines = [
        f"{_key(name)} = {_toml(value)}"
        for name, value in values.items()
        if not (value is None or isinstance(value, dict) or _is_of_tables(value))
    ]
    if lines and path:  # a configuration's own keys are tables
        yield from ("", f"[{path}]", *lines)
    for name, value in values.items():
        where = f"{path}.{_key(name)}" if path else _key(name)
        if isinstance(value, dict):
            yield from _tables(where, value)
        elif _is_of_tables(value):
            for table in value:
                yield from ("", f"[[{where}]]", *(f"{_key(name)} = {_toml(value)}" for name, value in table.items()))


def _is_of_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(entry, dict) for entry in value)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml(name)


def _toml(value: Any) -> str:
    """A value as TOML: as JSON, but for infinity and a character that has to be escaped."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(name)} = {_toml(entry)}' for name, entry in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        value = _URL_PASSWORD.sub(rf"\1{MASK}", value)
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
