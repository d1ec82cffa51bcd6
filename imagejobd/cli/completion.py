"""`imagejobd completion`."""

import click
from click.shell_completion import get_completion_class

VARIABLE = "_IMAGEJOBD_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion for SHELL, to be read by it at its start.

    \b
    Example:
      imagejobd completion bash > /etc/bash_completion.d/imagejobd
      eval "$(imagejobd completion zsh)"
    """
    from imagejobd.cli import main

    complete = get_completion_class(shell)
    if complete is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(complete(main, {}, "imagejobd", VARIABLE).source())
