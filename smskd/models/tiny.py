"""Two small networks for 8 x 8 images and quick runs.

Their sizes are this project's own choice: digits on one core, seconds a stage.
"""

from __future__ import annotations

from torch import nn

from smskd.models.staged import Staged, conv_bn_relu, last_relu

# name -> the smallest side of an image, in pixels
NETWORKS = {"tiny_teacher": 1, "tiny_student": 1}

# name -> output channels and stride of each block
_BLOCKS = {
    "tiny_teacher": ((32, 1), (64, 2), (64, 1)),
    "tiny_student": ((8, 2), (16, 1)),
}


def build(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """`tiny_teacher` or `tiny_student`: blocks of 3x3 convolution, batch norm and ReLU.

    On 8 x 8 images both hints are 4 x 4: 64 maps of the teacher's block 2, 8 maps of the student's block 1.
    """
    # torch's own initialisation: in 12 epochs on digits the student learned visibly more from it than from Kaiming's
    stages = []
    for channels, stride in _BLOCKS[name]:
        stages.append(conv_bn_relu(in_channels, channels, stride=stride))
        in_channels = channels
    relus = [last_relu(stage) for stage in stages]
    middle = (len(stages) - 1) // 2
    return Staged(stages, classifier=nn.Linear(in_channels, num_classes), hint_index=middle, relus=relus)
