"""Path to small pipelines with the blocks of Stable Diffusion 1.5, 2.1 and XL."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "data/comfyui"))
