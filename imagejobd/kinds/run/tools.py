"""What a run works with."""

import msgspec

from imagejobd.building.tools import BuildTools
from imagejobd.kinds.run.settings import RunSettings


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """One set for the whole daemon."""

    building: BuildTools
    settings: RunSettings
