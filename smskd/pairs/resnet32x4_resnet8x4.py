"""ResNet-32x4 to ResNet-8x4, a pair of the common comparisons on CIFAR-100; ReviewKD's weight is the published one."""

from smskd.pairs import CIFAR, Network, Pair

PAIR = Pair(
    name="resnet32x4_resnet8x4",
    teacher=Network(name="resnet32x4", built_by="smskd.models.resnet_cifar"),
    student=Network(name="resnet8x4", built_by="smskd.models.resnet_cifar"),
    defaults={**CIFAR, "reviewkd.weight": 5.0},
)
