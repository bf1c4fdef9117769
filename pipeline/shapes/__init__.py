"""Networks of the Shapes toy dataset: tokenizer, CLIP, autoencoder, denoiser and attribute classifier, with weights."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
