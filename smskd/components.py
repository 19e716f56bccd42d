"""What a name stands for: a network that is shipped, of torchvision or timm, or in a file of one's own. No torch."""

from __future__ import annotations

import ast
import functools
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smskd import code, names

CIFAR, TORCHVISION, TIMM, OBJECT = "cifar/", "torchvision/", "timm/", "object/"
_MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network by name, and which of its layers are looked at.

    name: `cifar/resnet20` (all that are shipped), `torchvision/resnet18`, `timm/resnet10t`, `nets.py:Student`, or
        `object/Student`, an object in this process. layers: names of the modules whose outputs are its feature maps;
        None: chosen by what they give.
    min_size: the smallest side of a square image that it can take, in pixels and in batches of at least two: batch norm
        can't train on one image whose map is one pixel. only_size: the one side that it can take, where it can take no
        other; None: any from min_size.
    digest: of code that isn't this package's. object: what was given in place of a name.
    """

    name: str
    layers: tuple[str, ...] | None = None
    min_size: int = 1  # strides are padded convolutions, so that one pixel stays one pixel; pools are not
    only_size: int | None = None
    digest: str = ""
    object: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.min_size < 1:
            raise ValueError(f"`min_size >= 1` must hold, but got (min_size={self.min_size})")
        if self.only_size not in (None, self.min_size):
            raise ValueError(
                f"`only_size == min_size` must hold, but got (only_size={self.only_size}, min_size={self.min_size})"
            )

    @property
    def kind(self) -> str:
        """What its name begins with: CIFAR, TORCHVISION, TIMM or OBJECT; "" of one in a file."""
        kind, slash, _ = self.name.partition("/")
        return kind + slash if slash else ""

    @property
    def short(self) -> str:
        """Its name without where it is from."""
        return self.name.rpartition("/")[2].rpartition(":")[2].removesuffix(".py")


def network(name: str, *, layers: Sequence[str] | None = None, key: str = "network") -> Network:
    """A network by its name; a bare one is torchvision's.

    key: what the name was given for, for messages.

    Raises:
        ValueError: there is none; the message names the nearest one.
    """
    chosen = None if layers is None else tuple(layers)
    if code.is_file(name):
        file, attribute = code.located(name, key)
        return Network(name=f"{file}:{attribute}", layers=chosen, digest=code.digest(file))
    if name.startswith(CIFAR):
        sizes = {CIFAR + one: size for one, (_, size) in shipped().items()}
        return Network(name=names.check(key, name, sizes), layers=chosen, min_size=sizes[name])
    if name.startswith(TIMM):
        return Network(name=name, layers=chosen)  # it is asked when the network is built: its list takes seconds
    if name.startswith(OBJECT):
        raise ValueError(f"{key}={name} is an object of the Python process that made it; name a network, or give it")
    return _torchvision(name.removeprefix(TORCHVISION), chosen, key)


def of_object(given: Any) -> Network:
    """A network that is there as an object: a module, or a class or function that makes one."""
    called = getattr(given, "__name__", type(given).__name__)
    digest = code.digest_of(given)
    return Network(name=f"{OBJECT}{called}-{digest[:8]}", digest=digest, object=given)


@functools.cache  # the files of the package don't change while it runs
def shipped() -> Mapping[str, tuple[str, int]]:
    """Name -> (module of smskd.models that builds it, smallest side in pixels), of every network that is shipped.

    They are read from NETWORKS in the modules' files, which aren't run.
    """
    found: dict[str, tuple[str, int]] = {}
    for module in sorted(one.name for one in pkgutil.iter_modules([str(_MODELS)])):
        for node in ast.parse((_MODELS / f"{module}.py").read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "NETWORKS":
                found |= {name: (module, size) for name, size in ast.literal_eval(node.value).items()}
    return found


def _torchvision(name: str, layers: tuple[str, ...] | None, key: str) -> Network:
    """Sizes as tried. Most networks halve the side five times: below 32 pixels their last map would be a fraction."""
    import torchvision.models  # takes seconds

    valid = torchvision.models.list_models(module=torchvision.models)
    if name not in valid:
        ours = [CIFAR + one for one in shipped()]
        near = names.nearest(name, [*valid, *ours, *shipped()])
        if near is not None and near in shipped() and near not in valid:
            near = CIFAR + near
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(
            f"unknown {key} {name!r:.200}; a network is cifar/NAME ({', '.join(shipped())}), a classifier of "
            f"torchvision such as resnet18, timm/NAME, or FILE.py:NAME.{hint}"
        )
    only = 224 if name.startswith(("vit_", "maxvit_")) else None  # learned positions, or windows that must divide
    smallest = {"inception_v3": 75, "alexnet": 63}.get(name, 32)
    return Network(name=TORCHVISION + name, layers=layers, min_size=only or smallest, only_size=only)
