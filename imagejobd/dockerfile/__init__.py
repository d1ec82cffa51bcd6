"""Dockerfiles as the engine reads them: instructions with their lines, stages, base images, and what may be built.

A strict reading, and what was read printed anew for the engine, which sees nothing else. Pure: nothing is pulled.
"""

from imagejobd.dockerfile.parser import parse
from imagejobd.dockerfile.plan import Plan
from imagejobd.dockerfile.stages import Base, Bases, automatic_args

__all__ = ["Base", "Bases", "Plan", "automatic_args", "parse"]
