"""Write hpsv2.json: scores that hpsv2x 1.2.0 computes with seeded random weights.

    python3.11 -m venv peer && peer/bin/pip install torch==2.13.0 torchvision==0.28.0 numpy pillow ftfy regex tqdm \
        huggingface-hub clint requests args && peer/bin/pip install --no-deps hpsv2x==1.2.0 timm
    peer/bin/python tests/data/scorers/make_hpsv2.py            # writes hpsv2.json
    peer/bin/python tests/data/scorers/make_hpsv2.py --full     # writes hpsv2_full.json: true size, 16 GiB of memory

hpsv2x reads the weights from the hub and its size from a file; here both are passed to it. It fails on an image with
transparency, so that it is given that image without.
"""
# ruff: noqa: E402

import argparse
import json
import tempfile
from pathlib import Path

import torch
from scorer_material import PROMPTS, SIZES, build_clip_layout, make_image, save_checkpoint
from torchvision_without_operators import define_operators

define_operators()  # before torchvision is imported
from hpsv2 import img_score
from hpsv2.src.open_clip import add_model_config
from hpsv2.src.open_clip import transform as hps_transform

HERE = Path(__file__).parent
FULL = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
SMALL = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
resize = hps_transform.F.resize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="at the true size of ViT-H-14")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = FULL if arguments.full else SMALL
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = prepare(config, Path(folder))
        rows = score_few(checkpoint) if arguments.full else score_all(checkpoint, Path(folder))
    name = "hpsv2_full.json" if arguments.full else "hpsv2.json"
    (HERE / name).write_text(json.dumps({"config": config, "scores": rows}, indent=1) + "\n")


def prepare(config: dict, folder: Path) -> Path:
    """Build hpsv2x's model at the configuration's size without the hub, and return a checkpoint for it."""
    (folder / "ViT-H-14.json").write_text(json.dumps(config))
    add_model_config(folder)
    create = img_score.create_model_and_transforms
    img_score.create_model_and_transforms = lambda name, pretrained, **options: create(name, None, **options)
    img_score.initialize_model()
    layout = build_clip_layout(config)
    assert layout == {name: tuple(value.shape) for name, value in img_score.model_dict["model"].state_dict().items()}
    return save_checkpoint(layout, folder / "checkpoint.pt")


def score_all(checkpoint: Path, folder: Path) -> list[dict]:
    rows = [
        score_row(checkpoint, name, prompt, antialias, 0, make_image(name).convert("RGB"))
        for antialias in (True, False)
        for number, name in enumerate(SIZES)
        for prompt in ("plain", list(PROMPTS)[1 + number % (len(PROMPTS) - 1)])
    ]
    for name in ("wide", "grey", "transparent"):
        make_image(name).convert("RGB").save(folder / "image.jpg", quality=75)
        rows.append(score_row(checkpoint, name, "plain", True, 75, str(folder / "image.jpg")))
    return rows


def score_few(checkpoint: Path) -> list[dict]:
    return [
        score_row(checkpoint, name, "plain", True, 0, make_image(name).convert("RGB"))
        for name in ("square", "wide", "tiny")
    ]


def score_row(checkpoint: Path, name: str, prompt: str, antialias: bool, jpeg_quality: int, source) -> dict:
    hps_transform.F.resize = lambda *arguments: resize(*arguments, antialias=antialias)
    (score,) = img_score.score(source, PROMPTS[prompt], cp=str(checkpoint))
    print(name, prompt, antialias, jpeg_quality, score, flush=True)
    record = {"image": name, "prompt": prompt, "antialias": antialias, "jpeg_quality": jpeg_quality}
    return {**record, "score": 100 * float(score)}


if __name__ == "__main__":
    main()
