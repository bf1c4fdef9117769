"""The steering state of a family's denoiser, and the installation and removal of the processors that read it."""

from collections.abc import Callable
from typing import Any

from nasa.attention import Steering, install_processors
from nasa.compat import unwrap_compiled
from nasa.families import Family
from nasa.joint_attention import JointSteering, install_joint_processors
from nasa.single_sequence import SequenceSteering, install_single_sequence, remove_single_sequence


def create_steering(family: Family, joint_attention: str = "text", **options: Any) -> Steering:
    """Return the state that the steered layers of one of the family's denoisers share."""
    if family.extend is None:
        return Steering(**options)
    kind = SequenceSteering if family.single_sequence else JointSteering
    return kind(joint_attention=joint_attention, **options)


def install_steering(
    model: Any, family: Family, steering: Any, layers: Callable[[str], bool] = lambda _: True
) -> dict[str, Any]:
    """Install a family's processors, steered in the chosen layers, and return the original ones."""
    if family.single_sequence:
        return install_single_sequence(unwrap_compiled(model), steering, layers)
    if family.extend:
        return install_joint_processors(model, steering, layers)
    return install_processors(model, steering, layers=layers, norm_across_heads=family.norm_across_heads)


def remove_steering(model: Any, family: Family, original_processors: dict[str, Any]) -> None:
    """Restore the original processors."""
    if family.single_sequence:
        remove_single_sequence(unwrap_compiled(model), original_processors)
    else:
        model.set_attn_processor(original_processors)
