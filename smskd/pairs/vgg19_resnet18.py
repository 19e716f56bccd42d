"""VGG-19 to ResNet-18, for 32 x 32: the paper's third pair; the teacher has four pools."""

from smskd.pairs import CIFAR, Network, Pair

PAIR = Pair(
    name="vgg19_resnet18",
    teacher=Network(name="vgg19", built_by="smskd.models.vgg", min_size=16),
    student=Network(name="resnet18", built_by="smskd.models.resnet_torchvision"),
    defaults=CIFAR,
)
