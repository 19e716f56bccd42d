"""Any classifier of torchvision by name, as it is there, layers for large images and all.

Deliberately not here: pre-trained weights, and the networks changed for small images, which have files of their own.
"""

from __future__ import annotations

from typing import Any, cast

import torchvision.models
from torch import nn

from smskd.components import TORCHVISION


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """A network of torchvision; it takes images of three channels, as which grey ones are shown to it.

    Raises:
        ValueError: in_channels is neither 3 nor 1.
    """
    if in_channels not in (1, 3):
        raise ValueError(
            f"{TORCHVISION}{name} takes images of 1 or 3 channels, but in_channels={in_channels}; choose another"
        )
    more: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return cast(nn.Module, torchvision.models.get_model(name, weights=None, num_classes=num_classes, **more))
