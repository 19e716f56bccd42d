"""What a network costs: FLOPs, parameters, latency. Device seconds are measured by the training loop."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# A training step's FLOPs over those of its forward pass: the backward pass computes two gradients of the same size.
# Counting the backward itself goes wrong for grouped convolutions (33 times too much).
TRAINING_OVER_FORWARD = 3


def forward_flops(module: nn.Module, *inputs: Any, images: int) -> float:
    """FLOPs of one forward pass per image (a multiply-add counts 2), in eval mode; no state is moved.

    Args:
        module: what to call.
        inputs: its arguments, for a batch of `images` images.
        images: the batch size the result is divided by.
    """
    training = module.training
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    module.train(training)
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
