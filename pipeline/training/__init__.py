"""Distillation on Ray Train: the driver, the workers' loop, their step, its checkpoints."""
