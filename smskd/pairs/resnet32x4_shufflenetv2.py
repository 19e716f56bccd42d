"""ResNet-32x4 to ShuffleNetV2, of the common comparisons on CIFAR-100; rate and ReviewKD's weight are published."""

from smskd.components import network
from smskd.pairs import CIFAR, Pair

PAIR = Pair(
    name="resnet32x4_shufflenetv2",
    teacher=network("cifar/resnet32x4"),
    student=network("cifar/shufflenetv2"),
    defaults={**CIFAR, "learning_rate": 0.01, "reviewkd.weight": 8.0},
)
