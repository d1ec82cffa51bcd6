"""`imagejobd doctor`: what on this machine keeps the daemon from working, or will.

Everything is looked at from outside, so a daemon need not run, and one that does is not disturbed.
"""

import asyncio
import email.utils
import os
import shutil
import socket
import stat
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import click
import msgspec

from imagejobd import __version__
from imagejobd.cli import text
from imagejobd.cli.errors import CommandError, Exit
from imagejobd.cli.service import config_option, read
from imagejobd.cli.session import Session, connected
from imagejobd.config import Config, ConfigError
from imagejobd.engine.client import Engine
from imagejobd.model.bounds import GIB
from imagejobd.model.egress import Egress
from imagejobd.model.errors import Fault
from imagejobd.model.job import OPERATOR
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.hosts import RegistryTarget
from imagejobd.store.lock import LOCK_FILE_NAME
from imagejobd.store.vault import KEY_FILE_NAME

Verdict = Literal["ok", "warn", "fail"]
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}

DISK_WARN_BYTES, DISK_FAIL_BYTES = 10 * GIB, GIB
INODES_WARN_SHARE = 0.05
CLOCK_WARN_S = 5.0
# Before this version nobody can have installed it: 2026-01-01.
CLOCK_MIN_S = 1_767_225_600
ANSWER_TIMEOUT_S = 10.0
LOG_VARIABLES = ("BUILDKIT_STEP_LOG_MAX_SIZE", "BUILDKIT_STEP_LOG_MAX_SPEED")
_UNIX = "unix://"


class Finding(msgspec.Struct, frozen=True):
    """One line of the report; `advice` is what to do about it."""

    subject: str
    verdict: Verdict
    message: str
    advice: str = ""


@click.command()
@config_option
@connected
def doctor(session: Session, path: Path | None) -> None:
    """Look over daemon, engine, builder, registries, disk, rights and clock of this machine; say what to do.

    Exit 1 where something fails.

    \b
    Example:
      imagejobd doctor
    """
    findings = asyncio.run(_collected(session, path))
    if session.as_json:
        click.echo(msgspec.json.encode({"findings": findings}))
    else:
        for finding in findings:
            mark = text.styled(f"{finding.verdict:<5}", fg=COLOURS[finding.verdict])
            click.echo(f"{mark} {finding.subject:<14} {text.line(finding.message)}")
            if finding.advice:
                click.echo(f"{'':<21}{text.line(finding.advice)}")
    sys.exit(Exit.FAILED if any(finding.verdict == "fail" for finding in findings) else Exit.SUCCEEDED)


async def _collected(session: Session, path: Path | None) -> list[Finding]:
    try:
        config = read(path)
        findings = [Finding("configuration", "ok", "it can be used")]
    except ConfigError as error:
        config = Config()
        advice = "mend it: imagejobd check-config; what follows is of the defaults"
        findings = [Finding("configuration", "fail", str(error), advice)]
    findings += daemon_findings(session, config)
    findings += [finding async for finding in engine_findings(config)]
    findings += [finding async for finding in registry_findings(config)]
    findings += disk_findings(config)
    findings += rights_findings(config)
    return findings


def daemon_findings(session: Session, config: Config) -> Iterator[Finding]:
    """The daemon that the client asks: whether it is ready, its version, its clock, and who shares its engine."""
    holder = lock_holder(Path(config.server.state_dir))
    try:
        status, body, headers = session.api.get("/readyz", timeout_s=ANSWER_TIMEOUT_S)
        report = msgspec.json.decode(body, type=dict[str, Any])
    except (CommandError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        why = error.message if isinstance(error, CommandError) else "what answers there is not imagejobd"
        advice = "start it (systemctl start imagejobd), or say where it is: --url, $IMAGEJOBD_URL"
        if holder is not None:
            yield Finding("daemon", "warn", f"process {holder} holds {config.server.state_dir}, but {why}", advice)
        else:
            yield Finding("daemon", "warn", why, advice)
        yield from clock_findings(None)
        return
    if status == 200:
        yield Finding("daemon", "ok", f"{session.api.url} is ready")
    else:
        known = ("ready", "draining", "wal_bytes", "other_daemons")
        bad = [f"{name}: {value}" for name, value in report.items() if name not in known and value != "ok"]
        why = "; ".join(bad) or ("it is stopping" if report.get("draining") else "it accepts no jobs")
        yield Finding("daemon", "fail", why, "its journal says more: journalctl -u imagejobd -p warning")
    yield version_finding(session)
    others = report.get("other_daemons")
    if isinstance(others, list) and others:
        names = ", ".join(map(str, others))
        advice = "both may, but they prune one build cache: keep their engine.build_cache_keep_bytes alike"
        yield Finding("second daemon", "warn", f"installation {names} works on the same engine", advice)
    else:
        yield Finding("second daemon", "ok", "no other daemon works on its engine")
    yield from clock_findings(headers.get("date"))


def version_finding(session: Session) -> Finding:
    """Whether daemon and client are of one version."""
    with suppress(CommandError, msgspec.MsgspecError, UnicodeDecodeError):
        status, body, _ = session.api.get("/version", timeout_s=ANSWER_TIMEOUT_S)
        if status == 200:
            version = str(msgspec.json.decode(body, type=dict[str, Any]).get("version"))
            if version == __version__:
                return Finding("version", "ok", version)
            advice = "restart the daemon after an upgrade; an older one lacks some of this client's commands"
            return Finding("version", "warn", f"the daemon is {version}, this client {__version__}", advice)
    why = f"the daemon does not tell its version; this client is {__version__}"
    return Finding("version", "warn", why, "it is older: upgrade it, or restart it after the upgrade")


def clock_findings(date: str | None) -> Iterator[Finding]:
    """This machine's clock, against the daemon's where it has told the time."""
    now_s = time.time()
    advice = "set it, and keep it set: timedatectl set-ntp true; tokens and TLS fail by a wrong clock"
    if now_s < CLOCK_MIN_S:
        yield Finding("clock", "fail", f"it says {time.strftime('%Y-%m-%d', time.gmtime(now_s))}", advice)
        return
    with suppress(TypeError, ValueError):
        if date is not None:
            apart_s = abs(email.utils.parsedate_to_datetime(date).timestamp() - now_s)
            if apart_s > CLOCK_WARN_S:
                what = f"the daemon's and this machine's are {apart_s:.0f} s apart"
                yield Finding("clock", "warn", what, advice)
                return
    yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


async def engine_findings(config: Config) -> AsyncIterator[Finding]:
    """The Docker Engine, its builder, and how much of a step's output it lets through."""
    settings = config.engine
    async with Engine(settings) as engine:
        try:
            info = await engine.ping()
        except Fault as fault:
            advice = "start it (systemctl start docker); jobs that need none, copies, go on meanwhile"
            if settings.resolved_host().startswith(_UNIX) and not _may_use(settings.resolved_host()):
                advice = "this user may not use its socket: add it to the group docker, or run doctor as the daemon's"
            yield Finding("engine", "fail", fault.message, advice)
            return
    yield Finding("engine", "ok", f"Docker Engine {info.version}, API {info.api_version}, at {engine.host}")
    heredocs = "" if info.knows_heredocs(settings.builder) else "; it reads no heredocs (RUN <<EOF)"
    yield Finding("builder", "ok", f"{settings.builder}{heredocs}")
    if settings.builder == "buildkit":
        yield log_finding(engine_environment(engine.host))


def log_finding(environment: Mapping[str, str] | None) -> Finding:
    """Whether the engine's BuildKit clips the output of a step."""
    if environment is None:
        return Finding("log limits", "ok", "not known: only root on the engine's machine can see its environment")
    missing = [name for name in LOG_VARIABLES if name not in environment]
    if not missing:
        return Finding("log limits", "ok", "raised: a step's output is kept whole")
    advice = f"start dockerd with {'=1073741824 and '.join(missing)}=1073741824 to have all of it"
    return Finding("log limits", "warn", "the engine clips a step's output at 2 MiB and 200 KiB/s", advice)


def engine_environment(host: str) -> dict[str, str] | None:
    """The environment of the process that listens at the engine's socket, where that can be seen."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_TIMEOUT_S)
        if not host.startswith(_UNIX):
            return None
        client.connect(host.removeprefix(_UNIX))
        pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        process = Path(f"/proc/{pid}")
        if (process / "comm").read_text().strip() != "dockerd":  # systemd, whose socket it is
            return None
        pairs = (process / "environ").read_bytes().decode(errors="replace").split("\0")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return None


async def registry_findings(config: Config) -> AsyncIterator[Finding]:
    """Every configured registry, with the configured login."""
    if not config.registry:
        yield Finding("registries", "ok", "none is configured; jobs bring their own logins")
        return
    async with RegistryClient(config.registry, Egress(config.egress)) as client:
        for host in config.registry:
            yield await registry_finding(client, host, has_login=bool(config.registry[host].username))


async def registry_finding(client: RegistryClient, host: str, *, has_login: bool) -> Finding:
    """Whether a registry answers and takes the login."""
    login = "with the configured login" if has_login else "without a login"
    advice = f'see [registry."{host}"] in the configuration: address, ca_file, username, password_file'
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            connection = client.connect(RegistryTarget(host=host, principal=OPERATOR))
            answer = await connection.ask("GET", "/v2/", scopes=(), is_retried=False)
    except TimeoutError:
        return Finding(host, "fail", f"no answer within {ANSWER_TIMEOUT_S:g} s", advice)
    except Fault as fault:
        return Finding(host, "fail", fault.message, advice)
    if answer.status == 200:
        return Finding(host, "ok", f"it lets us in {login}")
    refused = answer.status in (401, 403)
    return Finding(host, "fail" if refused and has_login else "warn", f"it answers {answer.status} {login}", advice)


def disk_findings(config: Config) -> Iterator[Finding]:
    """Room for the state folder."""
    folder = Path(config.server.state_dir)
    existing = next((parent for parent in (folder, *folder.parents) if parent.is_dir()), Path("/"))
    try:
        free, file_system = shutil.disk_usage(existing).free, os.statvfs(existing)
    except OSError as error:
        yield Finding("disk", "fail", f"{existing}: {error.strerror}", "see whether it is mounted")
        return
    advice = "free some; a full disk stops jobs from being accepted (507) until there is space again"
    verdict: Verdict = "fail" if free < DISK_FAIL_BYTES else "warn" if free < DISK_WARN_BYTES else "ok"
    yield Finding("disk", verdict, f"{text.size(free)} free for {folder}", "" if verdict == "ok" else advice)
    if file_system.f_files and file_system.f_favail < INODES_WARN_SHARE * file_system.f_files:
        yield Finding("disk", "warn", f"{file_system.f_favail} inodes are left for {folder}", advice)


def rights_findings(config: Config) -> Iterator[Finding]:
    """Who may read the state folder and its key, and whether the daemon's user may write there."""
    folder = Path(config.server.state_dir)
    try:
        status = folder.stat()
    except FileNotFoundError:
        yield Finding("rights", "ok", f"{folder} is not there yet; the first start makes it")
        return
    except OSError as error:
        yield Finding("rights", "warn", f"{folder}: {error.strerror}", "run doctor as root or as the daemon's user")
        return
    bad = list(_bad_rights(folder, status))
    yield from bad
    if not bad:
        yield Finding("rights", "ok", f"{folder} and what is in it belong to user {status.st_uid}, and are closed")


def _bad_rights(folder: Path, status: os.stat_result) -> Iterator[Finding]:
    if stat.S_IMODE(status.st_mode) & 0o007:
        what = f"everybody may look into {folder} (mode {stat.S_IMODE(status.st_mode):04o})"
        yield Finding("rights", "warn", what, f"chmod o= {folder}; logs and payloads are nobody else's business")
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            member = path.lstat()
            if member.st_uid != status.st_uid:
                what = f"{path} belongs to user {member.st_uid}, the folder to {status.st_uid}"
                yield Finding("rights", "fail", what, f"chown -R --reference={folder} {folder}")
            elif path.name == KEY_FILE_NAME and stat.S_IMODE(member.st_mode) & 0o077:
                yield Finding(
                    "rights", "fail", f"{path} may be read by others", f"chmod 600 {path}, change the passwords"
                )


def lock_holder(state_dir: Path) -> int | None:
    """The process that holds the state folder, by the kernel's list of locks: taking the lock could make a daemon that
    is just starting fail."""
    with suppress(OSError, ValueError, IndexError):
        inode = (state_dir / LOCK_FILE_NAME).stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            # `1: FLOCK  ADVISORY  WRITE 4711 08:01:123456 0 EOF`
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
                return int(fields[4])
    return None


def _may_use(host: str) -> bool:
    path = Path(host.removeprefix(_UNIX))
    return not path.exists() or os.access(path, os.R_OK | os.W_OK)
