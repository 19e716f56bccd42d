"""The search over recipes: Ray schedules, Optuna samples, nobody else touches either."""
