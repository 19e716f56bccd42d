"""Any classifier of timm by name, which is an extra: `pip install timm`. Deliberately not here: pre-trained weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from smskd import names
from smskd.components import TIMM


def build(name: str, *, num_classes: int, in_channels: int, image: tuple[int, int, int]) -> nn.Module:
    """A network of timm, for images of this size where it can be made for one.

    image: channels, height and width (pixels).

    Raises:
        ValueError: timm isn't installed, has no such network, or can't build it so.
    """
    try:
        import timm  # an extra
    except ImportError:
        raise ValueError(f"{TIMM}{name} needs timm, which isn't installed: pip install timm") from None
    if not timm.is_model(name):
        near = names.nearest(name, timm.list_models())
        hint = f" Did you mean {TIMM + near!r}?" if near else ""
        raise ValueError(f"unknown network {TIMM + name!r:.200}; timm {timm.__version__} hasn't got it.{hint}")
    arguments: dict[str, Any] = {"pretrained": False, "num_classes": num_classes, "in_chans": in_channels}
    try:
        try:
            made: nn.Module = timm.create_model(name, **arguments, img_size=image[1:])
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            made = timm.create_model(name, **arguments)  # one that takes images of any size
    except Exception as error:  # each family checks in its own way
        shape = " x ".join(map(str, image))
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"{TIMM}{name} can't be built for images of {shape} ({reason}); choose another network"
        ) from None
    return made
