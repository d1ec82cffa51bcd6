"""Dockerfiles as the engine reads them: instructions with their lines, stages, base images, and what may be built.

A strict reading for decisions, not for building: the engine builds from the same text. Pure; nothing is pulled or run.
"""

from imagejobd.model.dockerfile.bases import Base, Bases
from imagejobd.model.dockerfile.instruction import parse
from imagejobd.model.dockerfile.stages import platform_args

__all__ = ["Base", "Bases", "parse", "platform_args"]
