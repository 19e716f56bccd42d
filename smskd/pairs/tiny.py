"""Two small networks for 8 x 8 images: a stage in seconds on one core. Sizes and settings are this project's own."""

from smskd.pairs import Network, Pair

PAIR = Pair(
    name="tiny",
    teacher=Network(name="tiny_teacher", built_by="smskd.models.tiny"),
    student=Network(name="tiny_student", built_by="smskd.models.tiny"),
    defaults={
        **{"epochs": 12, "batch_size": 50, "learning_rate": 0.2, "schedule": "one_cycle"},
        **{"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        **{"teacher_epochs": 12, "teacher_learning_rate": 0.05},
        # the published weights are for larger networks; these were tried on digits' validation split (LOG.md)
        **{"fitnets.weight": 10.0, "at.weight": 10.0, "sp.weight": 300.0, "dkd.nckd": 1.0},
    },
)
