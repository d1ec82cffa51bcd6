"""Dockerfiles as the engine reads them: instructions with their lines, stages, base images, and forbidden frontends.

A strict reading for decisions, not for building: the engine builds from the same text. Pure; nothing is pulled or run.
"""

from imagejobd.model.dockerfile.bases import Base, bases
from imagejobd.model.dockerfile.frontend import check_build_args, check_frontend, check_mounts
from imagejobd.model.dockerfile.instruction import parse
from imagejobd.model.dockerfile.stages import platform_args

__all__ = ["Base", "bases", "check_build_args", "check_frontend", "check_mounts", "parse", "platform_args"]
