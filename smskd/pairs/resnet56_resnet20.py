"""ResNet-56 to ResNet-20, a pair of the common comparisons on CIFAR-100; DKD's and ReviewKD's weights are published."""

from smskd.components import network
from smskd.pairs import CIFAR, Pair

PAIR = Pair(
    name="resnet56_resnet20",
    teacher=network("cifar/resnet56"),
    student=network("cifar/resnet20"),
    defaults={**CIFAR, "dkd.nckd": 2.0, "reviewkd.weight": 0.6},
)
