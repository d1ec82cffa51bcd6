"""What a distribution works with: the registries, the blobs in flight over all jobs, and the settings of this kind."""

import msgspec

from imagejobd.kinds.distribute.settings import DistributeSettings
from imagejobd.model.turns import Turns
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.copy.flight import Flights


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """One set for the whole daemon; `flights` and `turns` are what lets jobs share a read or wait for one another."""

    registry: RegistryClient
    flights: Flights
    settings: DistributeSettings
    turns: Turns = msgspec.field(default_factory=Turns)
