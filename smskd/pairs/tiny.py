"""Two small networks for 8 x 8 images: a stage in seconds on one core. Sizes and settings are this project's own."""

from smskd.components import network
from smskd.pairs import Pair

PAIR = Pair(
    name="tiny",
    teacher=network("cifar/tiny_teacher"),
    student=network("cifar/tiny_student"),
    defaults={
        **{"epochs": 12, "batch_size": 50, "learning_rate": 0.2, "schedule": "one_cycle"},
        **{"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        **{"teacher_epochs": 12, "teacher_learning_rate": 0.05},
        # the published weights are for larger networks; these were tried on digits' validation split (LOG.md)
        **{"fitnets.weight": 10.0, "at.weight": 10.0, "sp.weight": 300.0, "dkd.nckd": 1.0},
    },
)
