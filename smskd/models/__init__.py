"""Every network by name. Each returns logits, feature maps and the pooled embedding.

Pre-trained weights are deliberately not here: teachers are trained by the project or given as files.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from typing import Any, cast

from torch import nn

from smskd import blame, code, components
from smskd.components import CIFAR, OBJECT, TIMM, TORCHVISION
from smskd.models.output import Network, Output
from smskd.models.recorded import Recorded

__all__ = ["Network", "Output", "build", "built_by"]
# The modules that build the networks of other packages.
_FOREIGN = {TORCHVISION: "torchvision_any", TIMM: "timm_any"}


def build(network: components.Network | str, *, num_classes: int, image: tuple[int, int, int]) -> nn.Module:
    """A fresh network, initialised from torch's global generator.

    Args:
        network: a name, or the value that smskd.components makes of one.
        image: channels, height and width of what it is shown.

    Raises:
        ValueError: there is no such network, or it can't be built for these classes and images.
    """
    spec = components.network(network) if isinstance(network, str) else network
    plain = _plain(spec, num_classes=num_classes, image=image)
    if spec.kind == CIFAR and spec.layers is None:
        return plain
    return Recorded(plain, name=spec.name, num_classes=num_classes, image=image, layers=spec.layers)


def built_by(spec: components.Network) -> list[str]:
    """The modules of this package, by name, that decide what a network is."""
    own = [components.shipped()[spec.short][0], "staged"] if spec.kind == CIFAR else []
    foreign = [_FOREIGN[spec.kind]] if spec.kind in _FOREIGN else []
    return ["output", *own, *foreign, *(["recorded"] if not own or spec.layers is not None else [])]


def _plain(spec: components.Network, *, num_classes: int, image: tuple[int, int, int]) -> nn.Module:
    """The module itself, whatever it returns."""
    name = spec.name.removeprefix(spec.kind)
    shape = {"num_classes": num_classes, "in_channels": image[0]}
    if spec.kind == CIFAR:
        family = importlib.import_module(f"{__name__}.{components.shipped()[name][0]}")
        return cast(nn.Module, family.build(name, **shape))
    if spec.kind in _FOREIGN:
        outside = importlib.import_module(f"{__name__}.{_FOREIGN[spec.kind]}")
        more = {"image": image} if spec.kind == TIMM else {}
        return cast(nn.Module, outside.build(name, **shape, **more))
    builder = spec.object if spec.kind == OBJECT else code.load(spec.name, "network")
    return _of_builder(builder, spec.name, shape)


def _of_builder(builder: Any, name: str, shape: dict[str, int]) -> nn.Module:
    """What a class or function of one's own makes of num_classes and in_channels; a module itself is taken as it is."""
    if isinstance(builder, nn.Module):
        return copy.deepcopy(builder)  # the user's own stays as it is
    if not callable(builder):
        raise ValueError(
            f"{name} must be a class or function (num_classes, in_channels) -> nn.Module, but is "
            f"{type(builder).__name__}"
        )
    parameters = inspect.signature(builder).parameters
    by_name = all(key in parameters for key in shape) or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        inspect.signature(builder).bind(**shape) if by_name else inspect.signature(builder).bind(*shape.values())
    except TypeError as error:
        raise ValueError(
            f"{name} must take (num_classes, in_channels), but takes {inspect.signature(builder)} ({error}): wrap it "
            "in a function of these two"
        ) from None
    try:
        made = builder(**shape) if by_name else builder(*shape.values())
    except (Exception, SystemExit) as error:  # whatever a user's code may raise
        raise ValueError(f"{name} can't be built: {blame.told(error)}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name} must make an nn.Module, but made {type(made).__name__}")
    return made
