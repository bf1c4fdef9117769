"""Models: teachers and students in diffusers' layout, CLIP, and their files of weights."""

from pipeline.models.lora_files import COMFYUI_FILE, LORA_FILE, save_lora
from pipeline.models.pipelines import (
    STUDENT_FILE,
    UNUSED_PARTS,
    TextEncoder,
    TextToImage,
    detect_family,
    find_teacher_folder,
    load,
    load_denoiser,
    load_pipeline,
    load_text_encoder,
    local_or_download,
    read_student_record,
    save_denoiser,
    save_student,
)

__all__ = [
    "COMFYUI_FILE",
    "LORA_FILE",
    "STUDENT_FILE",
    "UNUSED_PARTS",
    "TextEncoder",
    "TextToImage",
    "detect_family",
    "find_teacher_folder",
    "load",
    "load_denoiser",
    "load_pipeline",
    "load_text_encoder",
    "local_or_download",
    "read_student_record",
    "save_denoiser",
    "save_lora",
    "save_student",
]
