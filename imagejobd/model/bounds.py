"""The number types of settings: what a bound may be, checked when the configuration is read."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Days = Annotated[float, Meta(gt=0)]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
