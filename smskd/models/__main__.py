"""`python -m smskd.models show student_model=...`: a network's modules, what each gives, and which are looked at."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smskd import cli, components
from smskd.experiment import SETTINGS, Experiment
from smskd.settings import described, setting

if TYPE_CHECKING:
    from torch import nn

_NETWORKS = ("student_model", "teacher_model")
_OF_DATA = ("data", "data_dir", "image_size")
_OF_EXPERIMENT = (*_NETWORKS, "student_layers", "teacher_layers", *_OF_DATA, "code")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What `python -m smskd.models show` is asked for, beside an experiment's networks and data."""

    image: str | None = setting(
        None, "channels, height and width of an image, such as 3x32x32 (default: the data's, or what is usual)"
    )
    num_classes: int = setting(10, "how many classes there are, where no data= is given", low=2)

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """image=, as numbers.

        Raises:
            ValueError: it is none.
        """
        if self.image is None:
            return None
        found = re.fullmatch(r"(\d{1,4})x(\d{1,5})x(\d{1,5})", self.image)
        if found is None or 0 in map(int, found.groups()):
            raise ValueError(f"image= must be channels, height and width, such as 3x32x32, but got image={self.image}")
        return int(found[1]), int(found[2]), int(found[3])


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code: 0 done, 2 bad input."""
    if not argv or any(word in ("--help", "-h", "help") for word in argv):
        theirs = described(SETTINGS[name] for name in _OF_EXPERIMENT)
        lines = ["python -m smskd.models show student_model=NAME [key=value ...]", "", *cli.describe(Config), *theirs]
        sys.stdout.write("\n".join(lines) + "\n")
        return 0
    try:
        if argv[0] != "show":
            raise ValueError(f"the first word must be show, but is {argv[0]!r:.200}")
        sys.stdout.write("\n\n".join("\n".join(lines) for lines in _shown(argv[1:])) + "\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


def _shown(argv: Sequence[str]) -> list[list[str]]:
    """Lines for each network that is asked for."""
    given = cli.use_files(cli.split(argv))
    own = {key: value for key, value in given.items() if key in ("image", "num_classes")}
    for key in given.keys() - own.keys():
        cli.check(key, [*_OF_EXPERIMENT, "image", "num_classes"])
    config = cli.build(Config, own)
    image, classes = config.shape, config.num_classes
    read = {key: SETTINGS[key].read(value) for key, value in given.items() if key not in own}
    asked = [key for key in _NETWORKS if key in given]
    if not asked:
        raise ValueError("student_model= or teacher_model= is missing: name a network, such as cifar/resnet20")
    specs = {key: _network(key, read) for key in asked}
    if any(key in given for key in _OF_DATA):
        if own:
            raise ValueError(f"data= says what {', '.join(f'{key}=' for key in own)} would: leave one of them out")
        from smskd import bench  # takes seconds

        made = Experiment(**{key: value for key, value in read.items() if key in (*_OF_DATA, "code")})
        data = bench.load_data(made)
        image, classes = (data.channels, data.height, data.width), data.classes
    return [_lines(spec, image or _usual(spec), classes) for spec in specs.values()]


def _network(key: str, read: dict[str, str]) -> components.Network:
    return components.network(read[key], layers=read.get(key.replace("model", "layers")), key=key)


def _usual(spec: components.Network) -> tuple[int, int, int]:
    """What images of a network usually are."""
    large = spec.kind in (components.TORCHVISION, components.TIMM)
    return (3, 224, 224) if large else (3, 32, 32)


def _lines(spec: components.Network, image: tuple[int, int, int], classes: int) -> list[str]:
    """A table of the modules that give tensors, in the order of their last calls."""
    from smskd import models  # takes seconds
    from smskd.models import recorded

    network = models.build(spec, num_classes=classes, image=image)
    plain = network
    if isinstance(network, recorded.Recorded):
        plain, image = network.network, network.shown(image)
        maps, head = list(network.layers), network.head
    else:
        maps, head = [f"stages.{place}" for place in range(_stages(network))], "classifier"
    seen = recorded.probe(plain, image, name=spec.name)
    marks = {key: f"map {place}" + ", the hint" * (place == network.hint_index) for place, key in enumerate(maps)}
    if head is not None:
        marks[head] = ", ".join(filter(None, [marks.get(head), "its input is the embedding"]))
    shapes = {key: " x ".join(map(str, shape[1:])) for key, shape in seen.outputs.items() if shape}
    wide, wider = (max(map(len, column)) for column in (shapes, shapes.values()))
    parameters = sum(p.numel() for p in network.parameters())
    shape = " x ".join(map(str, image))
    lines = [f"{spec.name}: {parameters:,} parameters; images of {shape}, {classes} classes"]
    lines += [f"  {key:{wide}}  {shapes[key]:{wider}}  {marks.get(key, '')}".rstrip() for key in shapes]
    if not maps:
        lines.append("  no module gives a map of more than one pixel: the embedding is the one map")
    elif head is None:
        lines.append("  no linear layer makes the logits: the embedding is the average of the last map")
    return lines


def _stages(network: nn.Module) -> int:
    return len(list(network.get_submodule("stages").children()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
