"""The paper's pairs of Table 2, and a CLIP that answers what their images show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from datasets_prep.benchmark_prompts import EXCLUSION_PAIRS
from datasets_prep.shapes.prompts import ExclusionPair
from pipeline.evaluation.contact_sheet import to_pixels
from pipeline.evaluation.judges.clip_judge import ClipJudge, calibrate, read_labels
from pipeline.evaluation.results import JudgeAccuracy
from pipeline.evaluation.scorers.scorer import Options
from pipeline.models.clip.features import ClipFeatures, check_clip, load_clip_features
from pipeline.recipe import Evaluation

FIELD = "evaluation.clip_judge"
QUESTIONS: Mapping[str, Mapping[str, str]] = {
    "subject": {
        "person": "a photo of a person",
        "pet": "a photo of a pet",
        "other": "a photo without a person and without an animal",
    },
    "gender": {"male": "a photo of a man", "female": "a photo of a woman"},
    "age": {"young": "a photo of a young person", "old": "a photo of an old person"},
    "species": {"cat": "a photo of a cat", "dog": "a photo of a dog", "another": "a photo of another animal"},
    "quality": {"clean": "a sharp photo of good quality", "bad": "a blurry and distorted photo of bad quality"},
}
QUESTION_OF = {name: question for question, answers in QUESTIONS.items() for name in answers}
PAIRS = tuple(
    ExclusionPair(prompt, negative, QUESTION_OF[negative], negative, (("subject", prompt.rpartition(" ")[2]),))
    for prompt, negative in EXCLUSION_PAIRS
)


@dataclass(frozen=True)
class ClipAttributes:
    """Answers each of `QUESTIONS` for an image by the nearest of its texts."""

    features: ClipFeatures
    options: Options

    @staticmethod
    def load(options: Evaluation, device: str) -> "ClipAttributes":
        """Load the CLIP of `evaluation.clip_judge`."""
        features, record = load_clip_features(options.clip_judge, options.clip_judge_architecture, FIELD, device)
        return ClipAttributes(features, {"judge": "CLIP, zero-shot", **record})

    def classify_attributes(self, images: Tensor) -> list[dict[str, str]]:
        """Return the answer to each question for images [B, 3, H, W] in -1..1."""
        return self.answer_questions([Image.fromarray(pixels) for pixels in to_pixels(images)])

    def answer_questions(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """Return the answer to each question for Pillow images."""
        answers_by_question = [ClipJudge(self.features, texts).classify(images) for texts in QUESTIONS.values()]
        return [dict(zip(QUESTIONS, row, strict=True)) for row in zip(*answers_by_question, strict=True)]

    def __call__(
        self, images: Sequence[Image.Image], prompts: Sequence[str], negatives: Sequence[str | None]
    ) -> dict[str, list[str]]:
        """Return columns `shown_gender` and so on."""
        predicted = self.answer_questions(images)
        return {f"shown_{name}": [shown[name] for shown in predicted] for name in QUESTIONS}

    def measure_accuracy(self, table: str) -> dict[str, JudgeAccuracy]:
        """Return the judge's accuracy by answer, over the labelled images of a CSV with the columns file,label."""
        labelled = read_labels(Path(table), list(QUESTION_OF))
        shown_rows = self.answer_questions([Image.open(file).convert("RGB") for file, _ in labelled])
        calibrated: dict[str, JudgeAccuracy] = {}
        for question, answers in QUESTIONS.items():
            pairs = [
                (shown[question], label)
                for shown, (_, label) in zip(shown_rows, labelled, strict=True)
                if label in answers
            ]
            if pairs:
                judged, labels = zip(*pairs, strict=True)
                calibrated |= calibrate(judged, labels, list(answers))
        return calibrated


def check(options: Evaluation) -> None:
    """Check that the judge and its labelled images exist."""
    check_clip(options.clip_judge, options.clip_judge_architecture, FIELD)
    if options.calibration:
        read_labels(Path(options.calibration), list(QUESTION_OF))
