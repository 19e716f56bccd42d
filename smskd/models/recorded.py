"""`Recorded`: any classifier, as it is, with Output for its answer. What is looked at on the way is recorded by hooks.

Which modules these are is seen in one forward pass on images of the data's size, before anything is trained.
"""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

from smskd import blame
from smskd.components import TORCHVISION
from smskd.models.output import Output

# torchvision's keep their layers whatever the data's size: those chosen at the size that is customary for them
_TORCHVISION_SIDE = 224
# attributes under which torchvision's families keep their chain of layers; else the network's own children are it
_TORCHVISION_CHAINS = ("features", "encoder.layers", "layers", "trunk_output", "blocks")
_BATCH = 3  # of the images that are tried: a number that no map's side or width is likely to have
# a layer begins another stage where it leaves less than this share of the side: a stem's unpadded convolutions don't
_SAME_STAGE = 0.75
_MOST_PREFIX = 16  # tokens before those of the patches: of the class, registers
_MOST_NAMES = 8  # in a message


class Layout(NamedTuple):
    """How a module's output is a map of height x width: its axes, and how many tokens stand before the patches'.

    axes: NCHW, NHWC, or of tokens NLC or LNC. sure: no other axes would do as well.
    """

    axes: str
    height: int
    width: int
    prefix: int = 0
    sure: bool = True

    @property
    def side(self) -> float:
        """Of the square with as many pixels."""
        return math.sqrt(self.height * self.width)

    def map(self, output: Tensor, images: Tensor) -> Tensor:
        """The output as [B, C, H, W]; images: those that it is of, whose shape tokens are laid out in."""
        if self.axes == "NCHW":
            return output
        if self.axes == "NHWC":
            return output.permute(0, 3, 1, 2)
        tokens = (output if self.axes == "NLC" else output.transpose(0, 1))[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], *_grid(tokens.shape[2], images.shape[2], images.shape[3]))


class Probe(NamedTuple):
    """What one forward pass in eval mode showed.

    outputs: the shape of what each module gave at its last call, by the module's name, in the order in which the calls
    ended; None: no tensor. inputs: of its first argument. answer: what the network returned.
    """

    outputs: Mapping[str, tuple[int, ...] | None]
    inputs: Mapping[str, tuple[int, ...] | None]
    answer: Any


class Recorded(nn.Module):
    """A classifier whose forward returns Output.

    Feature maps are the last module's output at each resolution, at the level of blocks; of a network that has one
    resolution, the outputs at each quarter of its chain of equal blocks. Tokens of patches count as maps. The embedding
    is what the last linear layer is given, before dropout, averaged over pixels or tokens if there are any; without
    such a layer, the average of the last map. A network without maps has its embedding for one, of one pixel.

    The hint is the map in the middle; of torchvision's, that whose side is nearest to an eighth of the image's: a
    ResNet's second stage. The state dict is the classifier's own, so that files of its weights fit.

    Args:
        network: from images [B, C, H, W] to logits: a tensor, an object or a mapping that has them as `logits`, or a
            tuple with one tensor of their shape.
        name: the network's, for messages; torchvision's are shown grey images as three equal channels.
        num_classes: width of the logits.
        image: channels, height and width of what it is shown.
        layers: names of modules to record in place of those chosen.

    Raises:
        ValueError: it can't take such images, doesn't return logits, or has no maps under these names.
    """

    hint_index: int

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        num_classes: int,
        image: tuple[int, int, int],
        layers: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.name, self.num_classes = name, num_classes
        self._of_torchvision = name.startswith(TORCHVISION)
        self._kept: dict[str, Tensor] = {}
        if self._of_torchvision:
            image = (3, _TORCHVISION_SIDE, _TORCHVISION_SIDE)
        seen = probe(network, image, name=name)
        _give_sizes(network, image)
        self._logits(seen.answer)
        maps = layouts(seen, image)
        if layers is not None:
            chosen = tuple(_in_order(_checked(layers, name, seen, maps), maps))
        elif self._of_torchvision:
            chosen = _of_chain(_torchvision_chain(network, maps), maps)
        else:
            chosen = _chosen(network, maps)
        self.layers = {key: maps[key] for key in chosen}
        self.head = _head(network, seen, num_classes)
        if self.head is None and not chosen:
            raise ValueError(
                f"{name} must have a feature map or a linear layer that makes the logits, but has neither among its "
                f"modules: {_some(seen.outputs) or 'it calls none'}"
            )
        for key in chosen:
            network.get_submodule(key).register_forward_hook(_KeepOutput(self._kept, key))
        if self.head is not None:
            network.get_submodule(self.head).register_forward_pre_hook(_KeepInput(self._kept))
        self.hint_index = _hint([one.side for one in self.layers.values()], eighth_of=self._of_torchvision)

    def forward(self, images: Tensor, before_relu: bool = False) -> Output:
        """Logits, feature maps and embedding of images [B, C, H, W].

        before_relu: give the maps there, too; what stands before a ReLU isn't known of such a network.
        """
        try:
            logits = self.logits(images)
            maps = tuple(layout.map(self._recorded(key), images) for key, layout in self.layers.items())
            embedding = maps[-1].mean((2, 3)) if self.head is None else self._embedding()
            maps = maps or (embedding[:, :, None, None],)
            return Output(logits, maps, embedding, maps if before_relu else ())
        finally:
            self._kept.clear()  # nothing of a call outlives it; and a tensor with a history can't be copied

    def logits(self, images: Tensor) -> Tensor:
        """The logits alone, [B, classes]."""
        return self._logits(self.network(images.expand(-1, 3, -1, -1) if self._of_torchvision else images))

    def shown(self, image: tuple[int, int, int]) -> tuple[int, int, int]:
        """Channels, height and width of what the network itself is given for such an image."""
        return (3, *image[1:]) if self._of_torchvision else image

    def unhooked(self) -> Recorded:
        """A copy that can be asked for `logits` alone: what records the rest can't be exported."""
        copied = copy.deepcopy(self)
        for module in copied.network.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in [key for key, hook in hooks.items() if isinstance(hook, _KeepOutput | _KeepInput)]:
                    del hooks[key]
        return copied

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The classifier's own."""
        return cast(dict[str, Any], self.network.state_dict(*args, **kwargs))

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The classifier's own."""
        return self.network.load_state_dict(*args, **kwargs)

    def _logits(self, answer: Any) -> Tensor:
        found = answer
        if isinstance(answer, Mapping):
            found = answer.get("logits")
        elif hasattr(answer, "logits"):
            found = answer.logits
        elif isinstance(answer, tuple | list):
            fitting = [one for one in answer if self._fits(one)]
            found = fitting[0] if len(fitting) == 1 else None
        if not self._fits(found):
            raise ValueError(
                f"{self.name} must return logits [B, {self.num_classes}], alone, as `logits` of an object or dict, or "
                f"as the one such tensor in a tuple, but returned {_described(answer)}"
            )
        return cast(Tensor, found)

    def _fits(self, found: Any) -> bool:
        return isinstance(found, Tensor) and found.dim() == 2 and found.shape[1] == self.num_classes

    def _embedding(self) -> Tensor:
        given = self._recorded("")
        if given.dim() == 2:
            return given
        head = self.network.get_submodule(self.head or "")
        of_convolution = isinstance(head, nn.Conv2d) or (isinstance(head, nn.Dropout) and given.dim() == 4)
        return given.flatten(2).mean(2) if of_convolution else given.flatten(1, -2).mean(1)

    def _recorded(self, key: str) -> Tensor:
        if key not in self._kept:
            raise ValueError(f"{self.name} must call {key or self.head} in every forward pass, but left it out in one")
        return self._kept[key]


class _KeepOutput:
    """A hook; an object and no closure, so that a copied network has copied hooks, which write to its own dict."""

    def __init__(self, kept: dict[str, Tensor], key: str) -> None:
        self._kept, self._key = kept, key

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        found = _first_tensor(output)
        if found is not None:
            self._kept[self._key] = found


class _KeepInput:
    """What enters the head, under the name of no module."""

    def __init__(self, kept: dict[str, Tensor]) -> None:
        self._kept = kept

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._kept[""] = inputs[0]


def probe(network: nn.Module, image: tuple[int, int, int], *, name: str) -> Probe:
    """Try a network on images; nothing of it changes, and no random number is drawn.

    Raises:
        ValueError: its forward pass raises an exception; told with the line.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            try:
                return _tried(network, image, "meta")  # without arithmetic
            except Exception:  # what values decide, or what makes tensors of its own, needs real ones
                return _tried(network, image, "cpu")
    except Exception as error:  # whatever a user's network may raise
        shape = " x ".join(map(str, image))
        raise ValueError(f"{name} must take images of {shape}, but raises {blame.told(error)}") from error


def _tried(network: nn.Module, image: tuple[int, int, int], device: str) -> Probe:
    tensors = (*network.parameters(), *network.buffers())
    # on the meta device the copy has no values of its own to make; a lazy buffer can't be copied
    memo: dict[int, Any] = {
        id(t): _like(t) if device == "meta" else UninitializedBuffer(requires_grad=False, dtype=t.dtype)  # type: ignore[call-arg]
        for t in tensors
        if device == "meta" or isinstance(t, UninitializedBuffer)
    }
    copied = copy.deepcopy(network, memo).eval()
    outputs: dict[str, tuple[int, ...] | None] = {}
    inputs: dict[str, tuple[int, ...] | None] = {}
    for name, module in copied.named_modules():
        if name:
            module.register_forward_hook(_Note(name, inputs, outputs))
    with torch.no_grad():
        answer = copied(torch.zeros(_BATCH, *image, device=device))
    return Probe(outputs, inputs, answer)


def _give_sizes(network: nn.Module, image: tuple[int, int, int]) -> None:
    """Have lazy layers, which take their sizes from what they are first given, draw their weights."""
    if not any(map(is_lazy, (*network.parameters(), *network.buffers()))):
        return
    modes = [(module, module.training) for module in network.modules()]
    with torch.no_grad():
        network.eval()(torch.zeros(_BATCH, *image))
    for module, training in modes:
        module.training = training


def _like(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


class _Note:
    """A hook that notes the shapes of a module's last call."""

    def __init__(
        self, name: str, inputs: dict[str, tuple[int, ...] | None], outputs: dict[str, tuple[int, ...] | None]
    ) -> None:
        self._name, self._noted = name, (inputs, outputs)

    def __call__(self, module: nn.Module, given: Any, output: Any) -> None:
        for noted, value in zip(self._noted, (given, output), strict=True):
            found = _first_tensor(value)
            noted.pop(self._name, None)  # to the end
            noted[self._name] = None if found is None else tuple(found.shape)


def _first_tensor(output: Any) -> Tensor | None:
    """What a module gives, or the first of several things: a transformer's layer may add its attention."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


# --- what is a map


def layouts(seen: Probe, image: tuple[int, int, int]) -> dict[str, Layout]:
    """The modules that gave maps of more than one pixel, by name, in the order of their last calls."""
    found = {name: layout for name, shape in seen.outputs.items() if shape and (layout := _layout(shape, image))}
    maps = {name: layout for name, layout in found.items() if layout.height * layout.width > 1}
    last = "NHWC" if {one.axes for one in maps.values() if one.sure} == {"NHWC"} else "NCHW"
    unsure = {name: cast(tuple[int, ...], seen.outputs[name]) for name, one in maps.items() if not one.sure}
    swapped = {k: Layout(last, shape[1], shape[2]) for k, shape in unsure.items() if last == "NHWC"}
    return maps | swapped


def _layout(shape: tuple[int, ...], image: tuple[int, int, int]) -> Layout | None:
    """How an output is a map of images, told from its shape and theirs; None: it is none."""
    _, height, width = image
    if len(shape) == 4 and shape[0] == _BATCH:
        sizes = {"NCHW": shape[2:], "NHWC": shape[1:3]}
        # in one pixel of what the other side makes of the image's shape
        off = {axes: abs(h * width - w * height) for axes, (h, w) in sizes.items()}
        axes = min(off, key=lambda one: off[one])
        sure = max(off.values()) > max(height, width)
        return Layout(axes, *sizes[axes], sure=sure) if off[axes] <= max(height, width) else None
    if len(shape) == 3 and _BATCH in shape[:2]:
        axes = "NLC" if shape[0] == _BATCH else "LNC"
        length = shape[axes.index("L")]
        found = _prefix(length, height, width)
        return None if found is None else Layout(axes, *_grid(length - found, height, width), found)
    return None


def _prefix(length: int, height: int, width: int) -> int | None:
    """How many of so many tokens stand before those of the patches; the fewest that leave patches in the image's shape.

    Patches that cover the image exactly are looked for first.
    """
    fitting = []
    for prefix in range(min(_MOST_PREFIX, length - 1) + 1):
        rows, columns = _grid(length - prefix, height, width)
        if rows * columns == length - prefix and abs(rows * width - columns * height) <= max(height, width):
            exact = height % rows == 0 and width % columns == 0 and height // rows == width // columns
            fitting.append((not exact, prefix))
    return min(fitting)[1] if fitting else None


def _grid(patches: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of so many patches of an image."""
    rows = max(1, round(math.sqrt(patches * height / width)))
    return rows, patches // rows


# --- which maps are looked at


def _checked(layers: Sequence[str], name: str, seen: Probe, maps: Mapping[str, Layout]) -> Sequence[str]:
    """Names that were asked for.

    Raises:
        ValueError: there is none, no such module, or one that gives no map; told with those most like it.
    """
    if not layers:
        raise ValueError(f"layers of {name} must name one module or more: {_some(maps)}")
    for one in layers:
        if one in maps:
            continue
        near = _some(difflib.get_close_matches(one, maps, n=len(maps) or 1, cutoff=0.0))
        if one in seen.outputs:
            shape = seen.outputs[one]
            what = "no tensor" if shape is None else f"[{', '.join(['B', *map(str, shape[1:])])}]"
            raise ValueError(
                f"layer {one!r} of {name} must give a feature map, but gives {what}; those that do: {near or 'none'}"
            )
        raise ValueError(f"{name} calls no module {one!r:.200}; those that give feature maps: {near or 'none'}")
    return layers


def _some(named: Iterable[str]) -> str:
    """A few names, and how many more there are."""
    found = list(named)
    more = len(found) - _MOST_NAMES
    return ", ".join(found[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _chosen(network: nn.Module, maps: Mapping[str, Layout]) -> tuple[str, ...]:
    """Modules to look at in a network of which nothing is known; or those that it says itself, as timm's do."""
    told = [str(one.get("module")) for one in getattr(network, "feature_info", ()) if isinstance(one, Mapping)]
    if told and all(one in maps for one in told):
        return _of_chain(told, maps)
    blocks = _blocks(network, maps)
    if len(_resolutions(maps[key].side for key in blocks)) == 1:
        return _of_chain(_equal_chain(network, maps) or blocks[-1:], maps)
    return _of_chain(blocks, maps)


def _torchvision_chain(network: nn.Module, maps: Mapping[str, Layout]) -> list[str]:
    modules = dict(network.named_modules())
    root = next((name for name in _TORCHVISION_CHAINS if name in modules), "")
    return _in_order(_children(modules, root), maps)


def _blocks(network: nn.Module, maps: Mapping[str, Layout]) -> list[str]:
    """Modules that follow one another, shallow to deep, none inside another.

    These are the network's children. One gives way to its own children if they show a resolution that no module here
    does, and it is no block: it gives no map itself, or is a Sequential, or goes through three resolutions or more.
    """
    modules = dict(network.named_modules())
    here = _children(modules, "")
    while True:
        shown = [maps[key].side for key in here if key in maps]
        for place, key in enumerate(here):
            within = _resolutions(one.side for name, one in maps.items() if f"{name}.".startswith(f"{key}."))
            new = any(all(_resolutions((side, other)) != [max(side, other)] for other in shown) for side in within)
            container = key not in maps or isinstance(modules[key], nn.Sequential) or len(within) > 2
            if new and container and (inner := _children(modules, key)):
                here[place : place + 1] = inner
                break
        else:
            return _in_order(here, maps)


def _children(modules: Mapping[str, nn.Module], name: str) -> list[str]:
    """The names under which a module's children are known; one that stands at several places has one name."""
    known = {id(module): key for key, module in modules.items()}
    return [known[id(child)] for child in modules[name].children()]


def _in_order(named: Iterable[str], maps: Mapping[str, Layout]) -> list[str]:
    """Those of these modules that give maps, in the order of their calls."""
    wanted = set(named)
    return [key for key in maps if key in wanted]


def _equal_chain(network: nn.Module, maps: Mapping[str, Layout]) -> list[str]:
    """The longest row of modules of one kind that all give maps, the outermost if there are several; or none."""
    modules = dict(network.named_modules())
    rows = [_children(modules, name) for name in modules]
    equal = [row for row in rows if len({type(modules[key]) for key in row}) == 1 and all(key in maps for key in row)]
    longest = max(equal, key=len, default=[])
    return _in_order(longest, maps) if len(longest) > 1 else []


def _of_chain(chain: Sequence[str], maps: Mapping[str, Layout]) -> tuple[str, ...]:
    """The last module of each resolution; where all have one, those at which quarters of the chain end."""
    sides = {key: maps[key].side for key in chain}
    if len(_resolutions(sides.values())) == 1:
        return tuple(dict.fromkeys(chain[end - 1] for q in (1, 2, 3, 4) if (end := q * len(chain) // 4)))
    ends: list[str] = []
    entered = math.inf
    for key, side in sides.items():
        if side < _SAME_STAGE * entered:
            entered = side
            ends.append(key)
        else:
            ends[-1] = key
    return tuple(ends)


def _resolutions(sides: Iterable[float]) -> list[float]:
    """The largest side of each resolution, large to small."""
    found: list[float] = []
    for side in sorted(sides, reverse=True):
        if not found or side < _SAME_STAGE * found[-1]:
            found.append(side)
    return found


def _hint(sides: Sequence[float], *, eighth_of: bool) -> int:
    """The place of the hint among maps of these sides (pixels)."""
    middle = max(len(sides) - 1, 0) / 2
    if not eighth_of:
        return int(middle)
    return min(range(len(sides)), key=lambda k: (abs(math.log(8 * sides[k] / _TORCHVISION_SIDE)), abs(k - middle)))


def _head(network: nn.Module, seen: Probe, num_classes: int) -> str | None:
    """The linear layer or 1 x 1 convolution that makes the logits, or the dropout right before it; None: there is none.

    Such a dropout no longer works in place: it would write over the embedding.
    """
    modules = dict(network.named_modules())
    leaves = [key for key in seen.outputs if not any(modules[key].children())]
    last = next((key for key in reversed(leaves) if isinstance(modules[key], nn.Linear | nn.Conv2d)), "")
    for place in reversed(range(len(leaves))):
        module, shape = modules[leaves[place]], seen.outputs[leaves[place]] or ()
        linear = isinstance(module, nn.Linear) and shape[-1] == num_classes
        convolution = leaves[place] == last and isinstance(module, nn.Conv2d) and shape[1] == num_classes
        if (linear or convolution) and shape[0] == _BATCH and seen.inputs[leaves[place]] is not None:
            before = leaves[place - 1] if place else ""
            dropout = modules[before]
            given, dropped = seen.inputs[leaves[place]] or (), seen.outputs.get(before) or ()
            same = [size for size in given if size > 1] == [size for size in dropped if size > 1]
            if not isinstance(dropout, nn.Dropout) or not same:
                return leaves[place]
            dropout.inplace = False
            return before
    return None


def _described(answer: Any) -> str:
    """What a network returned, in few words."""
    if isinstance(answer, Tensor):
        shape = ["B" if size == _BATCH and not axis else str(size) for axis, size in enumerate(answer.shape)]
        return f"a tensor [{', '.join(shape)}]"
    if isinstance(answer, Mapping):
        return f"{type(answer).__name__} with {_some(map(str, answer)) or 'nothing'}"
    if isinstance(answer, tuple | list):
        return f"{type(answer).__name__} of {', '.join(map(_described, answer[:4])) or 'nothing'}"
    return type(answer).__name__
