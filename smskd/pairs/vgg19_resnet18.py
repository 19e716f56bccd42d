"""VGG-19 to ResNet-18, for 32 x 32: the paper's third pair; the teacher has four pools."""

from smskd.components import network
from smskd.pairs import CIFAR, Pair

PAIR = Pair(
    name="vgg19_resnet18",
    teacher=network("cifar/vgg19"),
    student=network("cifar/resnet18"),
    defaults=CIFAR,
)
