"""VGG-13 to MobileNetV2 of half width, of the common comparisons on CIFAR-100; rate and DKD's weight are published."""

from smskd.components import network
from smskd.pairs import CIFAR, Pair

PAIR = Pair(
    name="vgg13_mobilenetv2",
    teacher=network("cifar/vgg13"),
    student=network("cifar/mobilenetv2_half"),
    defaults={**CIFAR, "learning_rate": 0.01, "dkd.nckd": 6.0},
)
