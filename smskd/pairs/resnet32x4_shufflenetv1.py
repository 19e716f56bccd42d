"""ResNet-32x4 to ShuffleNet, of the common comparisons on CIFAR-100; rate and ReviewKD's weight are published."""

from smskd.components import network
from smskd.pairs import CIFAR, Pair

PAIR = Pair(
    name="resnet32x4_shufflenetv1",
    teacher=network("cifar/resnet32x4"),
    student=network("cifar/shufflenetv1"),
    defaults={**CIFAR, "learning_rate": 0.01, "reviewkd.weight": 5.0},
)
