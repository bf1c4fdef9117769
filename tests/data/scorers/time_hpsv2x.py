"""Time hpsv2x per image, in a batch and with its model loaded once, for comparison with `benchmarks.hpsv2`.

Run it in the environment that `tests/data/scorers/make_hpsv2.py` describes:

    peer/bin/python tests/data/scorers/time_hpsv2x.py checkpoint.pt --images 8 --make     # of random weights, full size
    python -m benchmarks.hpsv2 checkpoint.pt --images 8
"""

import argparse
import tempfile
import time
from pathlib import Path

import make_hpsv2
import numpy as np
import PIL.Image
import torch
from hpsv2 import img_score
from hpsv2.src.open_clip import get_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--make", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint_file = make_hpsv2.prepare(make_hpsv2.FULL, Path(folder))
        if arguments.make:
            checkpoint_file.rename(arguments.checkpoint)
    model, preprocess = img_score.model_dict["model"], img_score.model_dict["preprocess_val"]
    model.load_state_dict(torch.load(arguments.checkpoint, weights_only=True)["state_dict"])
    model.eval()
    tokenizer = get_tokenizer("ViT-H-14")
    pixels = np.random.default_rng(0).integers(0, 256, (arguments.images, 512, 512, 3), dtype=np.uint8)
    with torch.no_grad():
        model(preprocess(PIL.Image.fromarray(pixels[0]))[None], tokenizer(["the first reads the weights"]))
        start = time.perf_counter()
        images = torch.stack([preprocess(PIL.Image.fromarray(array)) for array in pixels])
        texts = tokenizer([f"photo number {number}" for number in range(arguments.images)])
        features = model(images, texts)
        scores = (features["image_features"] * features["text_features"]).sum(-1)
    print(f"{(time.perf_counter() - start) / arguments.images:.2f} s an image, mean {100 * float(scores.mean()):.4f}")


if __name__ == "__main__":
    main()
