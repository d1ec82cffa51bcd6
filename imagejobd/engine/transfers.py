"""What pulls and pushes share: one streamed request on behalf of a user of a registry, told message by message."""

from collections.abc import AsyncGenerator

from imagejobd.engine import faults
from imagejobd.engine.auth import registry_auth
from imagejobd.engine.client import Engine, Params
from imagejobd.engine.messages import Message, messages
from imagejobd.model.secret import Credentials


async def registry_messages(
    engine: Engine, path: str, params: Params, *, host: str, credentials: Credentials | None, judge: faults.Judge
) -> AsyncGenerator[Message, None]:
    """All messages of the pull or push that a POST to `path` starts, with `credentials` for the registry `host`.

    Read it under `contextlib.aclosing`: closing it ends the transfer. Raises what `judge` makes of a refusal, and
    `Temporary(engine_unavailable)`, also after `idle_timeout_s` of silence.
    """
    async with engine.stream(
        path,
        params=params,
        headers=registry_auth(host, credentials),
        judge=judge,
        idle_timeout_s=engine.settings.idle_timeout_s,
    ) as blocks:
        async for batch in messages(blocks, judge):
            for message in batch:
                yield message
