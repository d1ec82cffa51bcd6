"""The command line: `imagejobd serve` and `imagejobd check-config`."""

import sys
from pathlib import Path

import click
import msgspec

from imagejobd import __version__, config, daemon
from imagejobd.model.errors import Fault

# As for a command line that cannot be understood.
BAD_CONFIGURATION = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="imagejobd")
def main() -> None:
    """A daemon for image jobs: builds, pushes and purges, kept in a durable queue."""


_config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Configuration file; {config.DEFAULT_PATH} where it exists, else the defaults.",
)


@main.command()
@_config_option
def serve(path: Path | None) -> None:
    """Run the daemon in the foreground; SIGTERM drains, a second one leaves at once."""
    sys.exit(daemon.run(_load(path)))


@main.command("check-config")
@_config_option
def check_config(path: Path | None) -> None:
    """Check the configuration and print it with every default filled in."""
    loaded = _load(path)
    click.echo(msgspec.json.format(msgspec.json.encode(loaded, enc_hook=str), indent=2))


def _load(path: Path | None) -> config.Config:
    try:
        loaded = config.load(path)
        daemon.check(loaded)
    except (config.ConfigError, Fault) as error:
        click.echo(f"imagejobd: {error}", err=True)
        sys.exit(BAD_CONFIGURATION)
    return loaded
