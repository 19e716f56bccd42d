"""Sequential multi-stage knowledge distillation: the method by itself, without a search, a cluster or a report."""
