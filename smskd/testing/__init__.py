"""What contributors inherit: the contracts that every method and space keeps, as classes of tests. Needs pytest.

class TestMine(MethodContract):
    method = "mine"
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(f"{__name__}.methods")  # so that a failed assert shows its values

from smskd.testing.methods import MethodContract  # noqa: E402 (rewritten only if imported afterwards)

__all__ = ["MethodContract"]
