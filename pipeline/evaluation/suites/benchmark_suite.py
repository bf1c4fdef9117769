"""The evaluation on published prompt sets, or on the run's own prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from datasets_prep.benchmark_prompts import NEGATIVE_PROMPTS
from datasets_prep.shapes.prompts import ExclusionPair
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.evaluation import diversity, scorers
from pipeline.evaluation.exclusion import Judge
from pipeline.evaluation.judges import clip_attributes
from pipeline.evaluation.plan import (
    EXCLUSION_SET,
    TEACHER,
    EvalSample,
    System,
    build_student_systems,
    build_teacher_sampling,
)
from pipeline.evaluation.scorers import clip
from pipeline.evaluation.scorers.colour import ColourStatistics
from pipeline.prompts import prompt_dataset
from pipeline.prompts.prepare_benchmarks import HPSV2, NEGOPT, BenchmarksManifest
from pipeline.recipe import Evaluation, Metric
from pipeline.storage import Folder

OWN_PROMPTS = "own prompts"
TABLES = {"hpsv2": HPSV2, "negopt": NEGOPT}
NUM_PREVIEWS = 4
MIN_DIVERSITY_SEEDS = 2


@dataclass(frozen=True)
class BenchmarkSuite:
    """Evaluates on HPSv2's, NegOpt's and the paper's exclusion prompts, or on the run's first; a CLIP judges."""

    options: Evaluation

    @property
    def pairs(self) -> tuple[ExclusionPair, ...]:
        """The paper's pairs of Table 2, if the recipe asks for the exclusion set."""
        return clip_attributes.PAIRS if EXCLUSION_SET in self.options.prompt_sets else ()

    def check(self) -> None:
        """Check the metrics' weights and, for the exclusion set, the judge."""
        scorers.check_all(self.options.metrics)
        if self.pairs:
            clip_attributes.check(self.options)

    def build_prompt_sets(self, prompt_folder: Folder) -> list[list[EvalSample]]:
        """Return the samples of each set, HPSv2's by style."""
        options = self.options
        if not options.prompt_sets:
            texts, negative = (
                prompt_dataset.read_first_prompts(prompt_folder)[: options.num_prompts],
                NEGATIVE_PROMPTS["hpsv2"],
            )
            own = [EvalSample(OWN_PROMPTS, i, text, negative, options.seed + i) for i, text in enumerate(texts)]
            return [own, *self._build_diversity_samples([own])]
        folder = Folder.from_uri(options.benchmarks) if options.benchmarks else prompt_folder.parent / "benchmarks"
        manifest.read(folder, BenchmarksManifest)
        sets = [samples for name in options.prompt_sets if name in TABLES for samples in self._set(name, folder)]
        return [*sets, *self._build_diversity_samples(sets)]

    def _build_diversity_samples(self, sets: Sequence[Sequence[EvalSample]]) -> list[list[EvalSample]]:
        """Return several seeds of the first prompts, if a CLIP among the metrics can compare their images."""
        options = self.options
        if options.diversity_seeds < MIN_DIVERSITY_SEEDS or self._find_clip() is None:
            return []
        prompts = dict.fromkeys(sample.prompt for samples in zip(*sets, strict=False) for sample in samples)
        return diversity.build_samples(
            list(prompts)[: options.diversity_prompts], options.diversity_seeds, options.seed
        )

    def _find_clip(self) -> Metric | None:
        return next((metric for metric in self.options.metrics if metric.kind == "clip"), None)

    def _set(self, name: str, folder: Folder) -> Iterator[list[EvalSample]]:
        if not folder.exists(TABLES[name]):
            raise UserError(
                f"evaluation.prompt_sets: {name!r} is not among the prompts of {folder.uri}. "
                f"Prepare it with `python -m jobs prepare-benchmarks --{name}`, or leave it out."
            )
        rows = folder.read_table(TABLES[name]).to_pylist()
        for style in dict.fromkeys(row.get("style") for row in rows):
            yield [
                EvalSample(
                    f"{name}/{style}" if style else name,
                    row["index"],
                    row["prompt"],
                    row.get("negative_prompt") or NEGATIVE_PROMPTS["hpsv2"],
                    self.options.seed + row["index"],
                )
                for row in [row for row in rows if row.get("style") == style][: self.options.num_prompts]
            ]

    def build_systems(self) -> list[System]:
        """Return the student and, if the recipe asks for it, the teacher in many steps."""
        teacher_sampling, students = build_teacher_sampling(self.options), build_student_systems(self.options)
        teacher = System(
            f"teacher, {teacher_sampling.label}", TEACHER, teacher_sampling, subset_only=True, measures_diversity=True
        )
        return [*students, teacher] if self.options.teacher_prompts else students

    def build_judge(self, device: str) -> tuple[Judge, scorers.Scorer]:
        """Return the CLIP of `evaluation.clip_judge`."""
        judge = clip_attributes.ClipAttributes.load(self.options, device)
        return judge, judge

    def build_scorers(self, device: str) -> list[scorers.Scorer]:
        """Return the recipe's metrics."""
        return [ColourStatistics(), *(scorers.load(metric, device) for metric in self.options.metrics)]

    def build_diversity_scorer(self, device: str) -> scorers.Scorer:
        """Return the distance of images by the CLIP of the metrics."""
        metric = self._find_clip()
        assert metric is not None
        return diversity.PairwiseDistance(clip.load(metric, device))

    def choose_preview_prompts(self, prompt_folder: Folder) -> Sequence[str]:
        """Return the run's own first prompts."""
        return tuple(dict.fromkeys(prompt_dataset.read_first_prompts(prompt_folder)))[:NUM_PREVIEWS]
