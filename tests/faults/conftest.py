"""Makes the assertions of the shared box as telling as a test's own."""

import pytest

pytest.register_assert_rewrite("box")
