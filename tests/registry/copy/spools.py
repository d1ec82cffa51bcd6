"""Files that slow readers go on from, counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SpoolFolder:
    """Makes spool files, and counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0

    @contextmanager
    def __call__(self) -> Iterator[Path]:
        self.made += 1
        path = self.folder / f"spool-{self.made}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @property
    def files(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]
