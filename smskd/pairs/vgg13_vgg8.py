"""VGG-13 to VGG-8, a pair of the common comparisons on CIFAR-100; DKD's weight is the published one."""

from smskd.components import network
from smskd.pairs import CIFAR, Pair

PAIR = Pair(
    name="vgg13_vgg8",
    teacher=network("cifar/vgg13"),
    student=network("cifar/vgg8"),
    defaults={**CIFAR, "dkd.nckd": 6.0},
)
