"""ResNet-110 to ResNet-32, a pair of the common comparisons on CIFAR-100; DKD's weight is the published one."""

from smskd.components import network
from smskd.pairs import CIFAR, Pair

PAIR = Pair(
    name="resnet110_resnet32",
    teacher=network("cifar/resnet110"),
    student=network("cifar/resnet32"),
    defaults={**CIFAR, "dkd.nckd": 2.0},
)
