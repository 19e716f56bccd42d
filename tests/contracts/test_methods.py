"""The contract of methods, for every file in smskd/methods: a new one is found and tested without a word here."""

from __future__ import annotations

import pytest

from smskd import methods
from smskd.testing import MethodContract

NAMES = [name for name in methods.available() if name != "ce"]


@pytest.mark.parametrize("name", NAMES, scope="class")
class TestMethods(MethodContract):
    @pytest.fixture(autouse=True)
    def _one(self, name: str) -> None:
        self.method = name


def test_the_methods_are_found() -> None:
    assert {"kd", "fitnets", "rkd", "vid", "reviewkd", "logit_std", "crd"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_of_the_project_names_its_paper(name: str) -> None:
    assert "arXiv" in (methods.load(name).__doc__ or "")
