"""How much work the expansions of one Dockerfile may be.

Each of them is bounded, but thousands of words with hundreds of patterns each took minutes for one Dockerfile.
"""

STEPS_MAX = 200_000


class Steps:
    """Counts characters read and positions tried, from `STEPS_MAX` down."""

    def __init__(self) -> None:
        self._left = STEPS_MAX

    def spend(self, count: int) -> None:
        """Raises `ValueError` once there are none left."""
        self._left -= count
        if self._left < 0:
            raise ValueError(f"the variables and quotes of this Dockerfile take more than {STEPS_MAX} steps to expand")
