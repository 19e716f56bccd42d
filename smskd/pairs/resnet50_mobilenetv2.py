"""ResNet-50 to MobileNetV2 of half width, for 32 x 32: the paper's first pair."""

from smskd.pairs import CIFAR, Network, Pair

PAIR = Pair(
    name="resnet50_mobilenetv2",
    teacher=Network(name="resnet50", built_by="smskd.models.resnet_torchvision"),
    student=Network(name="mobilenetv2_half", built_by="smskd.models.mobilenetv2"),
    defaults={**CIFAR, "learning_rate": 0.01},
)
