"""The evaluation of students of the bundled teacher, on the Shapes toy dataset."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets_prep.shapes.prompts import BAD_PHOTO, DEGRADATIONS, PAIRS, ExclusionPair, sample_held_out_prompts
from datasets_prep.shapes.scene import ATTRIBUTES
from pipeline.errors import UserError
from pipeline.evaluation import diversity, scorers
from pipeline.evaluation.exclusion import Judge
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.plan import (
    STUDENT,
    STUDENT_SYSTEM,
    TEACHER,
    EvalSample,
    System,
    build_student_systems,
    build_teacher_sampling,
    list_nasa_samplings,
)
from pipeline.evaluation.scorers.colour import ColourStatistics
from pipeline.evaluation.scorers.shapes import Attributes, ShapesClip
from pipeline.recipe import Evaluation
from pipeline.storage import Folder

HELD_OUT = "held-out"
OPEN_PROMPT = "a photo of a shape"
TEACHER_ONE_STEP = "teacher, 1 step"


@dataclass(frozen=True)
class ShapesSuite:
    """Held-out prompts with known attributes, judged by the bundled classifier.

    Systems "named" use the degradations by name as negative prompt instead of "a bad photo".
    """

    options: Evaluation

    @property
    def pairs(self) -> tuple[ExclusionPair, ...]:
        """The toy dataset's pairs."""
        return PAIRS

    def check(self) -> None:
        """Check the recipe's own metrics."""
        scorers.check_all(self.options.metrics)

    def build_prompt_sets(self, prompt_folder: Folder) -> list[list[EvalSample]]:
        """Return held-out prompts, whichever prompts the run was trained on."""
        options = self.options
        try:
            scenes = sample_held_out_prompts(options.num_prompts, options.seed)
        except ValueError as error:
            raise UserError(f"evaluation.num_prompts: {error}") from None
        return [
            [
                EvalSample(
                    HELD_OUT, i, text, BAD_PHOTO, options.seed + i, tuple((n, getattr(scene, n)) for n in ATTRIBUTES)
                )
                for i, (text, scene) in enumerate(scenes)
            ],
            *diversity.build_samples([OPEN_PROMPT], options.diversity_seeds, options.seed),
        ]

    def build_systems(self) -> list[System]:
        """Return the student and the teacher, in one step and in many, with and without a negative prompt."""
        options, teacher_sampling = self.options, build_teacher_sampling(self.options)
        named = [
            System(
                f"{STUDENT_SYSTEM}, {sampling.label}, named",
                STUDENT,
                sampling,
                uses_negative=True,
                negative_prompt_override=DEGRADATIONS,
                subset_only=True,  # beside the teacher's
            )
            for sampling in list_nasa_samplings(options)
        ]
        label = f"teacher, {teacher_sampling.label}"
        teacher = [
            System(TEACHER_ONE_STEP, TEACHER),
            System(label, TEACHER, teacher_sampling, subset_only=True, measures_diversity=True),
            System(f"{label}, negative", TEACHER, teacher_sampling, uses_negative=True, subset_only=True),
            System(
                f"{label}, named",
                TEACHER,
                teacher_sampling,
                uses_negative=True,
                negative_prompt_override=DEGRADATIONS,
                subset_only=True,
            ),
        ]
        students = [*build_student_systems(options), *named]
        return [*students, *teacher] if options.teacher_prompts else students

    def build_judge(self, device: str) -> tuple[Judge, scorers.Scorer]:
        """Return the bundled attribute classifier."""
        return AttributeJudge.load(), Attributes()

    def build_scorers(self, device: str) -> list[scorers.Scorer]:
        """Return the attribute classifier, the bundled CLIP and the recipe's metrics."""
        return [
            Attributes(),
            ShapesClip(),
            ColourStatistics(),
            *(scorers.load(metric, device) for metric in self.options.metrics),
        ]

    def build_diversity_scorer(self, device: str) -> scorers.Scorer:
        """Return the bundled attribute classifier."""
        return Attributes()

    def choose_preview_prompts(self, prompt_folder: Folder) -> Sequence[str]:
        """Return four prompts of rising detail."""
        return ("a photo of a shape", "a photo of a star", "a photo of a red shape", "a photo of a ring")
