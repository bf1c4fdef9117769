"""The protocol of an evaluation suite."""

from collections.abc import Sequence
from typing import Protocol

from datasets_prep.shapes.prompts import ExclusionPair
from pipeline.evaluation.exclusion import Judge
from pipeline.evaluation.plan import EvalSample, System
from pipeline.evaluation.scorers import Scorer
from pipeline.storage import Folder


class EvaluationSuite(Protocol):
    """The prompts that a recipe's students are evaluated on, and the judge and scorers."""

    @property
    def pairs(self) -> tuple[ExclusionPair, ...]:
        """The pairs of prompt and negative prompt of the exclusion test."""

    def check(self) -> None:
        """Check that weights and labelled images exist, without computing anything.

        Raises:
            UserError: naming what is missing.
        """

    def build_prompt_sets(self, prompt_folder: Folder) -> list[list[EvalSample]]:
        """Return the samples of each prompt set; `prompt_folder` is the run's prepared folder."""

    def build_systems(self) -> list[System]:
        """Return the systems that are compared."""

    def build_judge(self, device: str) -> tuple[Judge, Scorer]:
        """Return the judge of images, and the scorer that records its answers; both have the same model."""

    def build_scorers(self, device: str) -> list[Scorer]:
        """Return the scorers of each image."""

    def build_diversity_scorer(self, device: str) -> Scorer:
        """Return the scorer of the diversity set; called only if the suite has one."""

    def choose_preview_prompts(self, prompt_folder: Folder) -> Sequence[str]:
        """Return the prompts of the images that training logs, if the recipe names none."""
