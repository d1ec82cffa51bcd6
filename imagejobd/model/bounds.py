"""Bounds of numbers, and the number types of settings, which are checked when the configuration is read."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Days = Annotated[float, Meta(gt=0)]

# What the database holds as a number.
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
