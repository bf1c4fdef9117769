"""Prometheus gauges of a training run, which Ray exports on the metrics port of rank 0's node."""

from collections.abc import Mapping

from pipeline.gauges import GaugeGroup

GAUGES = {
    "step": "Completed steps.",
    "steps": "Steps of the recipe.",
    "loss_student": "VSD loss of the student.",
    "loss_lora_teacher": "Denoising loss of the LoRA teacher.",
    "loss_clip": "CLIP loss of the student, before its weight.",
    "loss_regression": "Regression on the teacher's pairs, before its weight.",
    "vsd_gradient_rms": "Root mean square of the VSD gradient.",
    "image_variation": "Standard deviation between the images of a batch.",
    "gradient_norm_student": "Gradient norm of the student, before clipping.",
    "gradient_norm_lora_teacher": "Gradient norm of the LoRA teacher, before clipping.",
    "images_per_second": "Images per second, over the latest steps.",
    "data_wait_share": "Share of the time that a step waits for its prompts, over the latest steps.",
    "memory_gib": "Peak memory of rank 0 in GiB.",
    "checkpoint_seconds": "Seconds that the latest checkpoint held up training.",
    "upload_seconds": "Seconds until rank 0's part of the latest checkpoint was stored, while training went on.",
    "attempt": "Rollbacks after divergence.",
    "tracker_pending": "Writes that wait for MLflow.",
}
PREFIX = "nasa_training"


class TrainingGauges:
    """Gauges with the tags `run`, MLflow's run id, and `recipe`."""

    def __init__(self, run: str, recipe: str) -> None:
        self._tags = {"run": run, "recipe": recipe}
        self._gauges = GaugeGroup(PREFIX, GAUGES, tuple(self._tags))

    def report(self, values: Mapping[str, float]) -> None:
        """Set the gauges of these values; those that `GAUGES` does not have are left out."""
        self._gauges.report(values, self._tags)
