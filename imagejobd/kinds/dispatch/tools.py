"""What a dispatched payload is worked on with."""

import msgspec

from imagejobd.building.tools import BuildTools
from imagejobd.kinds.dispatch.settings import DispatchSettings


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """One set for the whole daemon."""

    building: BuildTools
    settings: DispatchSettings
