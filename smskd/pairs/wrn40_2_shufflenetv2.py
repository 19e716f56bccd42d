"""WRN-40-2 to ShuffleNetV2, for 32 x 32: the paper's second pair."""

from smskd.pairs import CIFAR, Network, Pair

PAIR = Pair(
    name="wrn40_2_shufflenetv2",
    teacher=Network(name="wrn40_2", built_by="smskd.models.wrn"),
    student=Network(name="shufflenetv2", built_by="smskd.models.shufflenetv2"),
    defaults={**CIFAR, "learning_rate": 0.01},
)
