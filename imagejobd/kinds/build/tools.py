"""What a build works with."""

import msgspec

from imagejobd.building.tools import BuildTools
from imagejobd.kinds.build.settings import BuildSettings
from imagejobd.model.egress import Egress


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """One set for the whole daemon."""

    building: BuildTools
    egress: Egress
    settings: BuildSettings
