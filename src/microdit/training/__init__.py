"""Training: the Lightning module, optimizers, schedules, chance, one run from settings to result.json."""
