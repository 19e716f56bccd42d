"""ResNet-56 to ResNet-20, a pair of the common comparisons on CIFAR-100; DKD's and ReviewKD's weights are published."""

from smskd.pairs import CIFAR, Network, Pair

PAIR = Pair(
    name="resnet56_resnet20",
    teacher=Network(name="resnet56", built_by="smskd.models.resnet_cifar"),
    student=Network(name="resnet20", built_by="smskd.models.resnet_cifar"),
    defaults={**CIFAR, "dkd.nckd": 2.0, "reviewkd.weight": 0.6},
)
