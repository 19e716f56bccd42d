"""What is compared at one total of epochs has it."""

from __future__ import annotations

from smskd.notation import make
from spaces import systems


def test_every_system_trains_for_the_same_total() -> None:
    listed = systems.systems(("kd", "fitnets", "rkd"))
    made = [make(stages, settings | {"epochs_total": 150}) for stages, settings in listed.values()]
    assert len({one.id for one in made}) == len(listed) == 20
    assert {sum(dict(stage.settings)["epochs"] for stage in one.stages) for one in made} == {150}
