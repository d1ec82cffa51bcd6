"""Dockerfiles as the engine reads them: instructions with their lines, stages, base images, and what may be built.

A strict reading, and what was read printed anew for the engine, which sees nothing else. Pure: nothing is pulled.
"""

from imagejobd.model.dockerfile.bases import Base, Bases
from imagejobd.model.dockerfile.instruction import parse
from imagejobd.model.dockerfile.plan import Plan
from imagejobd.model.dockerfile.stages import automatic_args

__all__ = ["Base", "Bases", "Plan", "automatic_args", "parse"]
