"""Images of one student for docs/gallery.md: the same noise at increasing scales, and negative prompts for quality.

python -m benchmarks.gallery runs/full/distilled
"""

import argparse
from pathlib import Path

from PIL import Image

from datasets_prep.shapes.prompts import BAD_PHOTO, DEGRADATIONS, PAIRS, sample_held_out_prompts
from pipeline.evaluation import exclusion
from pipeline.evaluation.contact_sheet import draw_contact_sheet, to_pixels
from pipeline.evaluation.evaluate import load_distilled_student
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.storage import Folder

SCALES = (0.1, 0.25, 0.5, 0.75, 1.0)
COLUMNS = 8
FIRST_SEED, SEEDS = 7_000_000, 128
IMAGES = Path("docs/images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("distilled", help="folder of a distilled student")
    parser.add_argument(
        "--seeds",
        type=int,
        default=SEEDS,
        help="number of seeds to search for suitable images",
    )
    options = parser.parse_args()
    student = load_distilled_student(Folder.from_uri(options.distilled))
    draw_scales(student, options.seeds).save(IMAGES / "scales.png")
    draw_quality(student).save(IMAGES / "quality.png")


def draw_scales(student: Sampler, seeds: int = SEEDS) -> Image.Image:
    """Return a sheet of the first seed of each pair whose plain image shows what the negative prompt names."""
    judge = AttributeJudge.load()
    searched = range(FIRST_SEED, FIRST_SEED + seeds)
    chosen = []
    for pair in PAIRS:
        groups = exclusion.sample_pair(student, judge, pair, [], searched)
        chosen += [(pair, group.seeds[0]) for group in groups if group.selected][:1]
    chosen = chosen[:COLUMNS]
    prompts, negatives = [pair.prompt for pair, _ in chosen], [pair.negative_prompt for pair, _ in chosen]
    samplings = [SamplingMethod(), *(SamplingMethod("nasa", scale) for scale in SCALES)]
    chosen_seeds = [seed for _, seed in chosen]
    rows = [
        (sampling.label, to_pixels(student.sample(sampling, prompts, chosen_seeds, negatives)))
        for sampling in samplings
    ]
    captions = [f"{prompt} MINUS {negative}" for prompt, negative in zip(prompts, negatives, strict=True)]
    return draw_contact_sheet(rows, captions)


def draw_quality(student: Sampler) -> Image.Image:
    """Return a sheet of held-out prompts, steered away from a bad photo and from the degradations by name."""
    prompts = [prompt for prompt, _ in sample_held_out_prompts(COLUMNS, 4321)]
    seeds = range(FIRST_SEED, FIRST_SEED + COLUMNS)
    variants = [("", None, SamplingMethod())]
    variants += [
        (f" MINUS {negative}", negative, SamplingMethod("nasa", scale))
        for negative in (BAD_PHOTO, DEGRADATIONS)
        for scale in (0.25, 0.5)
    ]
    rows = [
        (
            sampling.label + suffix,
            to_pixels(student.sample(sampling, prompts, seeds, negative and [negative] * COLUMNS)),
        )
        for suffix, negative, sampling in variants
    ]
    return draw_contact_sheet(rows, prompts)


if __name__ == "__main__":
    main()
