"""Pictures of one student for docs/gallery.md: the same noise under rising scales, and away from bad quality.

python -m benchmarks.gallery runs/full/distilled
"""

import argparse
from pathlib import Path

from PIL import Image

from datasets_prep.shapes.prompts import BAD_PHOTO, DEGRADATIONS, PAIRS, held_out_prompts
from pipeline.evaluation import exclusion
from pipeline.evaluation.evaluate import distilled_student
from pipeline.evaluation.judges import AttributeJudge
from pipeline.evaluation.sampling import Sampler, Way
from pipeline.evaluation.sheet import contact_sheet, to_pixels
from pipeline.storage import Folder

SCALES = (0.1, 0.25, 0.5, 0.75, 1.0)
COLUMNS = 8
FIRST_SEED, SEEDS = 7_000_000, 128
IMAGES = Path("docs/images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("distilled", help="the folder of a distilled student")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds to search for what a negative names")
    options = parser.parse_args()
    student = distilled_student(Folder.from_uri(options.distilled))
    scales(student, options.seeds).save(IMAGES / "scales.png")
    quality(student).save(IMAGES / "quality.png")


def scales(student: Sampler, seeds: int = SEEDS) -> Image.Image:
    """The first seed of each pair whose plain image shows what the negative names."""
    judge = AttributeJudge.load()
    searched = range(FIRST_SEED, FIRST_SEED + seeds)
    found = [(pair, next(exclusion.pictures(student, judge, pair, [], searched), None)) for pair in PAIRS]
    chosen = [(pair, plain[1][0]) for pair, plain in found if plain][:COLUMNS]
    prompts, away = [pair.prompt for pair, _ in chosen], [pair.negative_prompt for pair, _ in chosen]
    ways = [Way(), *(Way("nasa", scale) for scale in SCALES)]
    rows = [(way.label, to_pixels(student.images(way, prompts, [seed for _, seed in chosen], away))) for way in ways]
    return contact_sheet(rows, [f"{prompt} MINUS {negative}" for prompt, negative in zip(prompts, away, strict=True)])


def quality(student: Sampler) -> Image.Image:
    """Held-out prompts, away from a bad photo and from the degradations by name."""
    prompts = [prompt for prompt, _ in held_out_prompts(COLUMNS, 4321)]
    seeds = range(FIRST_SEED, FIRST_SEED + COLUMNS)
    kinds = [("", None, Way())]
    kinds += [
        (f" MINUS {away}", away, Way("nasa", scale)) for away in (BAD_PHOTO, DEGRADATIONS) for scale in (0.25, 0.5)
    ]
    rows = [
        (way.label + words, to_pixels(student.images(way, prompts, seeds, away and [away] * COLUMNS)))
        for words, away, way in kinds
    ]
    return contact_sheet(rows, prompts)


if __name__ == "__main__":
    main()
