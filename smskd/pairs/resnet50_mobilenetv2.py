"""ResNet-50 to MobileNetV2 of half width, for 32 x 32: the paper's first pair."""

from smskd.components import network
from smskd.pairs import CIFAR, Pair

PAIR = Pair(
    name="resnet50_mobilenetv2",
    teacher=network("cifar/resnet50"),
    student=network("cifar/mobilenetv2_half"),
    defaults={**CIFAR, "learning_rate": 0.01},
)
