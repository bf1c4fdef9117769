"""Conversion of an engine's checkpoint to another number of workers or another ZeRO stage.

DeepSpeed converts a checkpoint of ZeRO 1 to 3 to its universal format, one folder of files per parameter. The files of
stage 3 differ from those of 1 and 2, and stage 0 has none, so they are completed here: every stage loads every other's.
"""

import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MASTER, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")  # DeepSpeed's names of the weights, and Adam's of its states
SHARDS, VALUE, COMMON_FILE = "zero", "param", "optimizer_state.pt"  # DeepSpeed's names in the universal format
UNSHARDED_FILE = "mp_rank_00_model_states.pt"
OPTIMIZER = "optimizer_state_dict"


def convert(source: Path, target: Path, stage: int, module: nn.Module) -> None:
    """Write the checkpoint of an engine that trained `module` in a ZeRO stage so that every stage can load it."""
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if stage == 0:
        _split_unsharded(source, target, names)
        return
    _run_converter(source, target)
    if stage == 3:
        _complete_stage_3(target / SHARDS, names)
    else:
        _complete_stages_1_and_2(target / SHARDS, names)


def load(engine: Any, folder: Path, stage: int) -> None:
    """Load a converted checkpoint into an engine of a ZeRO stage."""
    if stage == 0:
        _load_unsharded(engine, folder / SHARDS)
        return
    optimizer = engine.optimizer
    if stage == 3:
        optimizer.checkpoint_event_prologue()
    optimizer.load_state_dict(None, checkpoint_folder=str(folder))
    if stage == 3:
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()
    for state in optimizer.optimizer.state.values():
        state["step"] = state["step"].clone()  # DeepSpeed gives all groups of stage 3 the same tensor, counted in place


def _run_converter(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    folders = ["--input_folder", str(source), "--output_folder", str(target)]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{source}: could not be converted for another number of workers: {done.stderr[-400:]}")


def _complete_stage_3(shards: Path, names: Iterable[str]) -> None:
    """Wrap each parameter's values, and write its step and DeepSpeed's version, as stages 1 and 2 read them."""
    common = _read(shards / COMMON_FILE)
    torch.save(common | {"ds_version": version("deepspeed")}, shards / COMMON_FILE)
    step = common[OPTIMIZER]["state"][0]["step"]
    for name in names:
        for state in (MASTER, *MOMENTS):
            file = shards / name / f"{state}.pt"
            torch.save({VALUE: _read(file)}, file)
        torch.save(step, shards / name / "step.pt")


def _complete_stages_1_and_2(shards: Path, names: Iterable[str]) -> None:
    """Write the step among the optimizer's common values, as stage 3 reads it."""
    common = _read(shards / COMMON_FILE)
    step = _read(shards / next(iter(names)) / "step.pt")
    torch.save(
        common | {OPTIMIZER: {"state": {0: {"step": step}}, "param_groups": common["param_groups"]}},
        shards / COMMON_FILE,
    )


def _split_unsharded(source: Path, target: Path, names: list[str]) -> None:
    """Write the one file of ZeRO stage 0 as one folder of files per parameter."""
    saved = _read(source / UNSHARDED_FILE)
    weights, optimizer = saved["module"], saved["optimizer"]
    shards = target / SHARDS
    for index, name in enumerate(names):
        state = optimizer["state"][index]
        folder = shards / name
        folder.mkdir(parents=True)
        for key, value in {MASTER: weights[name], **{key: state[key] for key in MOMENTS}}.items():
            torch.save({VALUE: value}, folder / f"{key}.pt")
        torch.save(state["step"], folder / "step.pt")
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer["param_groups"]]
    common = {"ds_version": version("deepspeed"), "param_groups": groups}
    torch.save(common, shards / COMMON_FILE)
    _complete_stages_1_and_2(shards, names)


@torch.no_grad()
def _load_unsharded(engine: Any, shards: Path) -> None:
    """Load the weights and Adam's states into an engine of stage 0, whose optimizer is torch's own."""

    def read(name: str, key: str, like: Tensor) -> Tensor:
        value: Tensor = _read(shards / name / f"{key}.pt")[VALUE]
        return value.to(like.device).reshape(like.shape)

    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(read(name, MASTER, parameter))
            moments = {key: read(name, key, parameter).clone() for key in MOMENTS}
            step = torch.as_tensor(_read(shards / name / "step.pt"), dtype=torch.float32).cpu().clone()
            engine.optimizer.state[parameter] = {"step": step, **moments}


def _read(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=False)  # written by this process, or checked before
