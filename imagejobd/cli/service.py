"""`imagejobd serve`, `imagejobd check-config` and `imagejobd token`."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from imagejobd.model.bounds import INTEGER_MAX, INTEGER_MIN
from imagejobd.model.errors import Fault

if TYPE_CHECKING:
    from imagejobd.config import Config

DEFAULT_PATH = Path("/etc/imagejobd/config.toml")

# Tells systemd that another start is of no use (`RestartPreventExitStatus=`).
BAD_CONFIGURATION = os.EX_CONFIG
# What click exits with.
BAD_USAGE = 2
YEAR_S = 366 * 24 * 3600

_CLAIMS = {"subject": "sub", "name": "name", "email": "email"}


def _not_empty(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value == "":
        raise click.BadParameter("it is empty; leave the option out instead")
    return value


def _64_bits(context: click.Context, parameter: click.Parameter, value: int) -> int:
    if not INTEGER_MIN <= value <= INTEGER_MAX:
        raise click.BadParameter("it is not in the range of 64 bits")
    return value


config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help=f"Configuration file; {DEFAULT_PATH} where it exists, else the defaults.",
)


@click.command()
@config_option
def serve(path: Path | None) -> None:
    """Run the daemon in the foreground. SIGTERM drains; a second one interrupts what still runs.

    \b
    Example:
      imagejobd serve --config config.toml
    """
    from imagejobd import daemon

    sys.exit(daemon.run(load(path)))


@click.command("check-config")
@config_option
def check_config(path: Path | None) -> None:
    """Check the configuration and print it as TOML, with every default filled in; the verdict goes to stderr.

    \b
    Example:
      imagejobd check-config --config config.toml > /dev/null
    """
    from imagejobd import config, daemon

    try:
        loaded = read(path)
    except config.ConfigError as error:
        problems = len(str(error).splitlines())
        verdict = f"the configuration cannot be used ({problems} problem{'s' if problems > 1 else ''})"
        _fail(f"{error}\n{verdict}", BAD_CONFIGURATION)
    click.echo(config.render(config.resolved(loaded)))
    for name, due in daemon.next_runs(loaded):
        click.echo(f"imagejobd: schedule {name}: next run {due}", err=True)
    click.echo("imagejobd: the configuration is valid", err=True)


@click.command()
@config_option
@click.option("--tenant", type=int, callback=_64_bits, required=True, help="Claim tid: whose jobs its bearer may see.")
@click.option("--client", type=int, callback=_64_bits, required=True, help="Claim oid: the client within the tenant.")
@click.option("--subject", help="Claim sub: the person; auth.admin_subjects are such.")
@click.option("--name", help="Claim name, kept with the person's jobs.")
@click.option("--email", help="Claim email, kept with the person's jobs.")
@click.option("--audience", callback=_not_empty, help="Claim aud; auth.audience where it is not given.")
@click.option("--expires-in-s", type=click.IntRange(1, YEAR_S), default=3600, show_default=True, help="Claim exp.")
@click.option("--private-key", help="Sign with this PEM file instead of auth.jwt_secret_file.")
@click.option("--key-id", callback=_not_empty, help="Header kid: which key of a JWKS checks the token.")
def token(
    path: Path | None,
    tenant: int,
    client: int,
    audience: str | None,
    expires_in_s: int,
    private_key: str | None,
    key_id: str | None,
    **person: str | None,
) -> None:
    """Mint a token and print it, for tests and scripts.

    \b
    Example:
      export IMAGEJOBD_TOKEN=$(imagejobd token --tenant 1 --client 7)
    """
    from imagejobd.api.auth import mint

    auth = load(path).auth
    now_s = int(time.time())
    claims = {"tid": tenant, "oid": client, "aud": audience or auth.audience, "iat": now_s, "exp": now_s + expires_in_s}
    claims |= {_CLAIMS[option]: value for option, value in person.items() if value is not None}
    try:
        click.echo(mint(auth, claims, private_key_file=private_key, key_id=key_id))
    except Fault as fault:
        _fail(fault.message, BAD_USAGE)


def load(path: Path | None) -> "Config":
    from imagejobd.config import ConfigError

    try:
        return read(path)
    except ConfigError as error:
        _fail(str(error), BAD_CONFIGURATION)


def read(path: Path | None) -> "Config":
    from imagejobd import config, daemon

    try:
        path = DEFAULT_PATH if path is None and DEFAULT_PATH.exists() else path
    except OSError:  # a folder that may not be looked into: reading it says so
        path = DEFAULT_PATH
    return config.load(path, check=daemon.check)


def _fail(error: str, exit_code: int) -> NoReturn:
    for line in error.splitlines():
        click.echo(f"imagejobd: {line}", err=True)
    sys.exit(exit_code)
