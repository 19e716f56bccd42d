"""ResNet-32x4 to ResNet-8x4, a pair of the common comparisons on CIFAR-100; ReviewKD's weight is the published one."""

from smskd.components import network
from smskd.pairs import CIFAR, Pair

PAIR = Pair(
    name="resnet32x4_resnet8x4",
    teacher=network("cifar/resnet32x4"),
    student=network("cifar/resnet8x4"),
    defaults={**CIFAR, "reviewkd.weight": 5.0},
)
