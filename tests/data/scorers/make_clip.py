"""Write clip.json: cosines that open_clip 3.3.0 computes with seeded random weights.

python3.11 -m venv peer && peer/bin/pip install torch==2.13.0 torchvision==0.28.0 open_clip_torch==3.3.0
peer/bin/python tests/data/scorers/make_clip.py
"""
# ruff: noqa: E402

import json
import tempfile
from pathlib import Path

import torch
from scorer_material import PROMPTS, SIZES, build_clip_layout, make_image, save_checkpoint
from torchvision_without_operators import define_operators

define_operators()  # before torchvision is imported
import open_clip

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
VISION = {"image_size": 224, "layers": 2, "patch_size": 14}
CONFIGS = {
    "ViT-g-14": {"vision_cfg": {**VISION, "width": 176, "head_width": 88, "mlp_ratio": 4.3637}},
    "ViT-L-14-quickgelu": {"vision_cfg": {**VISION, "width": 128}, "quick_gelu": True},
}


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    recorded = {}
    for name, options in CONFIGS.items():
        config = {"embed_dim": 48, "text_cfg": TEXT, **options}
        recorded[name] = {"config": config, "scores": compute_scores(name, config)}
    (Path(__file__).parent / "clip.json").write_text(json.dumps(recorded, indent=1) + "\n")


def compute_scores(name: str, config: dict) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder)
        checkpoint = save_checkpoint(build_clip_layout(config), Path(folder) / "checkpoint.pt")
        model, _, prepare = open_clip.create_model_and_transforms(name, pretrained=str(checkpoint))
    tokens = open_clip.get_tokenizer(name)([f"A photo depicts {prompt}" for prompt in PROMPTS.values()])
    texts = model.eval().encode_text(tokens, normalize=True)
    rows = []
    for image_name in SIZES:
        cosines = model.encode_image(prepare(make_image(image_name))[None], normalize=True) @ texts.T
        rows += [
            {"image": image_name, "prompt": prompt, "cosine": float(cosine)}
            for prompt, cosine in zip(PROMPTS, cosines[0], strict=True)
        ]
    return rows


if __name__ == "__main__":
    main()
