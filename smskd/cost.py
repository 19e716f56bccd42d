"""What a network and a stage cost: FLOPs, parameters, latency. Device seconds are measured by the training loop."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from smskd import anchor
from smskd import stage as training_loop
from smskd.data import Data
from smskd.methods.base import Batch
from smskd.stage import Assignment, Term
from smskd.teacher import Teacher
from smskd.training import Training

# A training step's FLOPs over those of its forward pass: the backward pass computes two gradients of the same size.
# Counting the backward itself goes wrong for grouped convolutions (33 times too much).
TRAINING_OVER_FORWARD = 3


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **more: Any) -> int:
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


def _product(left: Sequence[int], right: Sequence[int], *rest: Any, **more: Any) -> int:
    return 2 * math.prod(left) * (right[-1] if len(right) > 1 else 1)


def _added_product(added: Sequence[int], left: Sequence[int], right: Sequence[int], *rest: Any, **more: Any) -> int:
    return _product(left, right)


def _recurrent(given: Sequence[int], *rest: Any, **more: Any) -> int:
    """Every weight, once a step. What else an operator is given has fewer or more dimensions, or comes as a list."""
    weights = rest[0] if isinstance(rest[0], list) else rest[:2]
    return 2 * math.prod(given[:-1]) * sum(math.prod(one) for one in weights if len(one) == 2)


# FLOPs, from the shapes of the arguments, of operators that torch's counter takes for nothing.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: _attention,
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,  # of LSTMs on CPUs: one layer, one direction
    torch.ops.aten._cudnn_rnn: _recurrent,
    torch.ops.aten.dot: _product,
    torch.ops.aten.mv: _product,
    torch.ops.aten._grouped_mm: _product,
    torch.ops.aten.addmv: _added_product,
    torch.ops.aten.addbmm: _added_product,
    torch.ops.aten._addmm_activation: _added_product,
}


@contextlib.contextmanager
def _plain_operators() -> Iterator[None]:
    """Have attention and transformers' layers done by the operators they are made of, which are the same everywhere.

    Fused ones pad heads to widths that hang on the device, and a whole encoder layer in one has no formula.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def forward_flops(module: nn.Module, *inputs: Any, images: int) -> float:
    """FLOPs of one forward pass per image (a multiply-add counts 2), in eval mode; no state is moved.

    The same on every device. Products of matrices and convolutions are counted, not what is done element by element;
    attention as if nothing were masked.

    Args:
        module: what to call.
        inputs: its arguments, for a batch of `images` images.
        images: the batch size the result is divided by.
    """
    modes = [(one, one.training) for one in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), _plain_operators(), FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
            module(*inputs)
    finally:
        for one, mode in modes:
            one.training = mode
    return float(counter.get_total_flops()) / images


def parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones too; buffers aren't counted."""
    return sum(p.numel() for p in module.parameters())


def latency_ms(module: nn.Module, image: Tensor, *, runs: int = 50) -> float:
    """Median milliseconds of one forward pass of a single image [1, C, H, W], on the image's device."""
    module.eval()
    times = []
    with torch.inference_mode():
        for _ in range(runs + 5):
            started = time.perf_counter()
            module(image)
            if image.is_cuda:
                torch.cuda.synchronize(image.device)
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times[5:])


class FlopCounter:
    """Counts the training FLOPs of stages on one data set; remembers what it counted."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._known: dict[tuple[Any, ...], tuple[float, float]] = {}

    def stage(
        self, name: str, work: Assignment, student: nn.Module, terms: Sequence[Term], teachers: Sequence[Teacher]
    ) -> float:
        """FLOPs of a stage: student and regressors forward and backward, teachers and reference forward.

        EWC has no reference to run, but gradients of some images for its Fisher information.

        Args:
            name: the network's that is trained.
            student: that network, on the data's device; no state is moved.
            terms: the stage's methods, as built.
            teachers: those that the stage asks.
        """
        wanted = tuple(work.reads(number) for number in range(len(teachers)))
        held = work.recipe.anchor if work.anchored else None
        case = (name, repr(work.methods), wanted, held)
        if case not in self._known:
            two = self._data.normalised(self._data.train.images[:2])
            one = trained = forward_flops(student, two, images=2)
            others = sum(forward_flops(t.part(w), two, images=2) for t, w in zip(teachers, wanted, strict=True))
            views = [training_loop.probe(t.network, self._data) for t in teachers]
            mine = training_loop.probe(student, self._data)
            batch = Batch(self._data.train.labels[:2], torch.arange(2, device=two.device))
            for term in terms:
                trained += forward_flops(term.method, mine, views[term.teachers[0]], batch, images=2)
            others += one if held == "reference" else 0.0
            once = TRAINING_OVER_FORWARD * one * min(anchor.FISHER_IMAGES, len(self._data.train))
            self._known[case] = others + TRAINING_OVER_FORWARD * trained, once if held == "ewc" else 0.0
        each, once = self._known[case]
        return images_trained(work.training, self._data) * each + once


def images_trained(training: Training, data: Data) -> int:
    """How many go through a network: an incomplete last batch of an epoch is left out."""
    batch = min(training.batch_size, len(data.train))
    return training.epochs * (len(data.train) // batch) * batch
