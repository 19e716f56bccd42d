"""Any classifier of torchvision by name, as it is there, layers for large images and all, with Output for its answer.

What is looked at on the way is recorded by hooks. Deliberately not here: pre-trained weights, and the networks changed
for small images, which have files of their own.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torchvision.models
from torch import Tensor, nn
from torch.func import functional_call

from smskd.models import Output
from smskd.pairs import TORCHVISION

# attributes under which a family keeps its chain of layers; without one the network's own children are the chain
_CHAINS = ("features", "layers", "trunk_output", "blocks")
_PROBE_SIDE = 224
# a layer begins another stage where it leaves less than this share of the side: a stem's unpadded convolutions don't
_SAME_STAGE = 0.75


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """`torchvision/<name>`; features are the last layer's output at each resolution, or at each quarter of a ViT.

    The hint is the map whose side is nearest to an eighth of the image's: a ResNet's second stage.

    Raises:
        ValueError: in_channels is neither 3 nor 1; grey images are shown as three equal channels.
    """
    if in_channels not in (1, 3):
        raise ValueError(f"{name} takes images of 1 or 3 channels, but in_channels={in_channels}; choose another pair")
    plain = name.removeprefix(TORCHVISION)
    more: dict[str, Any] = {"aux_logits": False, "init_weights": True} if plain in ("googlenet", "inception_v3") else {}
    return Recorded(torchvision.models.get_model(plain, weights=None, num_classes=num_classes, **more))


class Recorded(nn.Module):
    """A classifier of torchvision whose forward returns Output.

    The embedding is what its last layer is given, before dropout; a map there (SqueezeNet) is averaged. Its state dict
    is the classifier's own, so that torchvision's files of weights fit, and its students load in torchvision.
    """

    hint_index: int

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._channels_last = isinstance(network, torchvision.models.SwinTransformer)
        self._kept: dict[str, Tensor] = {}
        head = _head(network)
        head.register_forward_pre_hook(_KeepInput(self._kept))
        chain = _chain(network)
        self._stages = tuple(chain)
        handles = [layer.register_forward_hook(_KeepOutput(self._kept, key)) for key, layer in chain.items()]
        sides = self._probed_sides()
        for handle in handles:
            handle.remove()
        self._stages = _stage_ends(sides, tokens=isinstance(network, torchvision.models.VisionTransformer))
        for key in self._stages:
            chain[key].register_forward_hook(_KeepOutput(self._kept, key))
        middle = (len(self._stages) - 1) / 2
        self.hint_index = min(
            range(len(self._stages)),
            key=lambda k: (abs(math.log(8 * sides[self._stages[k]] / _PROBE_SIDE)), abs(k - middle)),
        )

    def forward(self, images: Tensor) -> Output:
        """Logits, feature maps and embedding of images [B, 1 or 3, H, W]."""
        try:
            logits = self.network(images.expand(-1, 3, -1, -1))
            embedding = self._kept["embedding"]
            if embedding.dim() == 4:
                embedding = embedding.mean((2, 3))
            return Output(logits=logits, embedding=embedding, features=tuple(self._map(key) for key in self._stages))
        finally:
            self._kept.clear()  # nothing of a call outlives it; and a tensor with a history can't be copied

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The classifier's own."""
        return cast(dict[str, Any], self.network.state_dict(*args, **kwargs))

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The classifier's own."""
        return self.network.load_state_dict(*args, **kwargs)

    def _map(self, key: str) -> Tensor:
        """What was kept of a layer, as [B, C, H, W]."""
        kept = self._kept[key]
        if kept.dim() == 3:  # tokens [B, 1 + H W, C], the class token first
            side = math.isqrt(kept.shape[1] - 1)
            return kept[:, 1:].transpose(1, 2).reshape(len(kept), -1, side, side)
        return kept.permute(0, 3, 1, 2) if self._channels_last else kept

    def _probed_sides(self) -> dict[str, int]:
        """Side of each layer's map, in the order of the layers; layers that make no map are left out."""
        empty = {name: t.to("meta") for name, t in (*self.network.named_parameters(), *self.network.named_buffers())}
        training = self.network.training
        self.network.eval()
        functional_call(self.network, empty, (torch.empty(1, 3, _PROBE_SIDE, _PROBE_SIDE, device="meta"),))
        self.network.train(training)
        del self._kept["embedding"]
        sides = {key: self._map(key).shape[2] for key, kept in self._kept.items() if kept.dim() > 2}
        self._kept.clear()
        return {key: side for key, side in sides.items() if side > 1}  # what is pooled to one pixel is no map


class _KeepOutput:
    """A hook; an object and no closure, so that a copied network has copied hooks, which write to its own dict."""

    def __init__(self, kept: dict[str, Tensor], key: str) -> None:
        self._kept, self._key = kept, key

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._kept[self._key] = output


class _KeepInput:
    def __init__(self, kept: dict[str, Tensor]) -> None:
        self._kept = kept

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._kept["embedding"] = inputs[0]


def _chain(network: nn.Module) -> dict[str, nn.Module]:
    """Layers that follow one another, shallow to deep."""
    if isinstance(network, torchvision.models.VisionTransformer):
        return dict(network.encoder.layers.named_children())
    found = next((getattr(network, name) for name in _CHAINS if hasattr(network, name)), network)
    return dict(found.named_children())


def _head(network: nn.Module) -> nn.Module:
    """The last layer, or the dropout right before it."""
    leaves = [module for module in network.modules() if not any(module.children())]
    last = max(k for k, leaf in enumerate(leaves) if isinstance(leaf, nn.Linear | nn.Conv2d))
    before = leaves[last - 1]
    if not isinstance(before, nn.Dropout):
        return leaves[last]
    before.inplace = False  # it would write over the embedding
    return before


def _stage_ends(sides: dict[str, int], *, tokens: bool) -> tuple[str, ...]:
    """The last layer of each stage; the layers of a ViT, all of one resolution, are cut in four."""
    if tokens:
        layers = list(sides)
        return tuple(layers[quarter * len(layers) // 4 - 1] for quarter in (1, 2, 3, 4))
    ends: list[str] = []
    entered = math.inf
    for key, side in sides.items():
        if side < _SAME_STAGE * entered:
            entered = side
            ends.append(key)
        else:
            ends[-1] = key
    return tuple(ends)
