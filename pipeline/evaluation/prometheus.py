"""Prometheus gauges of an evaluation."""

from pipeline.gauges import GaugeGroup

GAUGES = {
    "work_units": "Units of work of the evaluation.",
    "work_units_left": "Units of work that the evaluation still has to do.",
}
PREFIX = "nasa_evaluation"


class EvaluationGauges:
    """Gauges with the tags `recipe` and `student`, the first digits of its hash."""

    def __init__(self, recipe: str, student_sha256: str) -> None:
        self._tags = {"recipe": recipe, "student": student_sha256[:12]}
        self._gauges = GaugeGroup(PREFIX, GAUGES, tuple(self._tags))

    def report(self, units: int, left: int) -> None:
        """Set the number of units and of those that are left."""
        self._gauges.report({"work_units": units, "work_units_left": left}, self._tags)
