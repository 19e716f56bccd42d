"""How the networks' arithmetic is done: precision and compilation. Part of a stage's key. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from smskd import names

PRECISIONS = ("float32", "bf16")
COMPILES = ("off", "on", "graphs")


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """precision: of the networks' forward passes in training; losses, weights and evaluation are float32 always.
    compile: `on` compiles the student by torch.compile, `graphs` replays it as CUDA graphs besides.

    Raises:
        ValueError: no such precision or compilation.
    """

    precision: str = "float32"
    compile: str = "off"

    def __post_init__(self) -> None:
        names.check("precision", self.precision, PRECISIONS)
        names.check("compile", self.compile, COMPILES)

    def __str__(self) -> str:
        """As it stands in keys: `float32`, `bf16`, `bf16 compiled`."""
        return self.precision + {"off": "", "on": " compiled", "graphs": " graphs"}[self.compile]


FLOAT32 = Numerics()


def choose(precision: str | None, compile: str | None, *, cuda: bool) -> Numerics:
    """What was asked for; else bf16 on GPUs and float32 on CPUs, where bf16 takes three to seven times as long.

    Nothing is compiled unless asked for: it takes longer than a small stage.

    Raises:
        ValueError: as Numerics; or CUDA graphs on a CPU.
    """
    if compile == "graphs" and not cuda:
        raise ValueError("compile=graphs needs a GPU, since they are CUDA graphs; use compile=on or compile=off")
    return Numerics(precision=precision or ("bf16" if cuda else "float32"), compile=compile or "off")
