"""WRN-40-2 to WRN-16-2, a pair of the common comparisons on CIFAR-100; DKD's and ReviewKD's weights are published."""

from smskd.components import network
from smskd.pairs import CIFAR, Pair

PAIR = Pair(
    name="wrn40_2_wrn16_2",
    teacher=network("cifar/wrn40_2"),
    student=network("cifar/wrn16_2"),
    defaults={**CIFAR, "dkd.nckd": 6.0, "reviewkd.weight": 5.0},
)
