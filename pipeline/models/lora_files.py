"""LoRA files beside a pipeline: in diffusers' format, and for a UNet in that of ComfyUI too."""

from collections.abc import Mapping
from pathlib import Path

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE, LoraBaseMixin
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file
from torch import Tensor

LORA_FILE: str = LORA_WEIGHT_NAME_SAFE  # the name that `load_lora_weights(folder)` looks for
COMFYUI_FILE = "comfyui_lora.safetensors"


def save_lora(folder: Path, part: str, adapters: Mapping[str, Tensor]) -> None:
    """Write adapters of a pipeline's denoiser, `unet` or `transformer`, into a folder.

    ComfyUI maps the names of a transformer as diffusers writes them. It knows those of a UNet's attention only in
    Kohya's form, so a UNet has a second file. Neither file has more than one entry of metadata, as safetensors writes
    several in a random order.
    """
    weights = LoraBaseMixin.pack_weights(dict(adapters), part)
    LoraBaseMixin.write_lora_layers(
        weights,
        str(folder),
        is_main_process=True,
        weight_name=LORA_FILE,
        save_function=None,
        safe_serialization=True,
    )
    if part == "unet":
        save_file(convert_state_dict_to_kohya(weights), folder / COMFYUI_FILE, metadata={"format": "pt"})
