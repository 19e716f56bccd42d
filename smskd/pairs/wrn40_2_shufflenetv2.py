"""WRN-40-2 to ShuffleNetV2, for 32 x 32: the paper's second pair."""

from smskd.components import network
from smskd.pairs import CIFAR, Pair

PAIR = Pair(
    name="wrn40_2_shufflenetv2",
    teacher=network("cifar/wrn40_2"),
    student=network("cifar/shufflenetv2"),
    defaults={**CIFAR, "learning_rate": 0.01},
)
