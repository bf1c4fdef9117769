"""Write vbench.json: aesthetic and imaging quality of single frames by VBench 0.1.5 with random weights.

    python3.11 -m venv peer && peer/bin/pip install torch==2.13.0 torchvision==0.28.0 open_clip_torch==3.3.0 \
        scipy einops && peer/bin/pip install --no-deps vbench==0.1.5 pyiqa==0.1.16
    peer/bin/python tests/data/scorers/make_vbench.py

open_clip's model of the same architecture replaces OpenAI's CLIP. Video readers are mocked: a frame is a PNG file.
"""
# ruff: noqa: E402

import json
import sys
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import torch
from scorer_material import SIZES, build_clip_layout, make_image, make_weights, save_checkpoint
from torchvision_without_operators import define_operators

define_operators()  # before torchvision is imported
sys.modules |= {name: MagicMock() for name in ("clip", "cv2", "decord")}
import open_clip
from pyiqa.archs.musiq_arch import MUSIQ
from vbench.aesthetic_quality import laion_aesthetic
from vbench.imaging_quality import technical_quality

ARCHITECTURE = "ViT-L-14-quickgelu"
CONFIG = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "patch_size": 14, "width": 128},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
MUSIQ_SIZES = {"hidden_size": 128, "mlp_dim": 192, "num_heads": 2, "num_layers": 2}
HEAD = {"weight": (1, CONFIG["embed_dim"]), "bias": (1,)}


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in SIZES:
            make_image(name).save(Path(folder) / f"{name}.png")
        recorded = {"config": CONFIG, "head": HEAD, "aesthetic": compute_aesthetic(Path(folder))}
        published = sum(value.numel() for value in MUSIQ(pretrained=False).parameters())
        recorded |= {"musiq": MUSIQ_SIZES, "musiq_parameters": published, "imaging": compute_imaging(Path(folder))}
    (Path(__file__).parent / "vbench.json").write_text(json.dumps(recorded, indent=1) + "\n")


def compute_aesthetic(folder: Path) -> dict[str, float]:
    (folder / f"{ARCHITECTURE}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder)
    checkpoint = save_checkpoint(build_clip_layout(CONFIG), folder / "checkpoint.pt")
    model = open_clip.create_model(ARCHITECTURE, pretrained=str(checkpoint))
    head = torch.nn.Linear(CONFIG["embed_dim"], 1)
    head.load_state_dict(make_weights(HEAD))
    _, frames = laion_aesthetic(head, model, [str(folder / f"{name}.png") for name in SIZES], "cpu")
    return {name: frame["video_results"] for name, frame in zip(SIZES, frames, strict=True)}


def compute_imaging(folder: Path) -> dict[str, float]:
    model = MUSIQ(pretrained=False, **MUSIQ_SIZES).eval()
    model.load_state_dict(make_weights({name: tuple(value.shape) for name, value in model.state_dict().items()}))
    with torch.no_grad():
        scores = [technical_quality(model, [str(folder / f"{name}.png")], "cpu")[0] for name in SIZES]
    return dict(zip(SIZES, scores, strict=True))


if __name__ == "__main__":
    main()
