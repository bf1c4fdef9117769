"""Models: teachers and students in diffusers' layout, CLIP, and their files of weights."""

from pipeline.models.pipelines import (
    STUDENT_FILE,
    UNUSED_PARTS,
    TextEncoder,
    TextToImage,
    family_of_folder,
    load,
    load_denoiser,
    load_pipeline,
    load_text_encoder,
    local_or_download,
    save_denoiser,
    save_student,
    student_record,
    teacher_folder,
)

__all__ = [
    "STUDENT_FILE",
    "UNUSED_PARTS",
    "TextEncoder",
    "TextToImage",
    "family_of_folder",
    "load",
    "load_denoiser",
    "load_pipeline",
    "load_text_encoder",
    "local_or_download",
    "save_denoiser",
    "save_student",
    "student_record",
    "teacher_folder",
]
