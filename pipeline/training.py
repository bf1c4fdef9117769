"""The training loop of one Ray Train worker: NASA-T on two DeepSpeed engines."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from nasa.backbone import decode
from nasa.distillation import Draws, StudentLoss, Texts, draw, lora_teacher_loss, student_loss
from nasa.ema import update_ema
from nasa.losses import clip_hinge
from pipeline import engines, models, recipe
from pipeline.judges import Clip
from pipeline.progress import Progress
from pipeline.prompts import DATASET, NegativeSampler, batches
from pipeline.storage import Folder
from pipeline.tracking import Tracker

EMA_FILE = "ema.safetensors"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Setup:
    """What the driver tells the workers: plain data alone."""

    recipe_toml: str
    teacher_folder: str
    prompts_uri: str
    tracking_uri: str
    mlflow_run: str


def train(config: dict[str, Any]) -> None:
    """One worker's run, from the latest checkpoint or from the start, to the recipe's last step."""
    board = config.pop("board")
    trainer = Trainer(Setup(**config))
    first, last = trainer.restore(), trainer.recipe.train.steps
    every = trainer.recipe.train.checkpoint_every
    tracker = Tracker(trainer.setup.tracking_uri, trainer.setup.mlflow_run) if trainer.rank == 0 else None
    progress = Progress(tracker, board, trainer.recipe, first)
    for step, prompts in zip(range(first, last), trainer.stream(first), strict=False):
        metrics = trainer.step(step, prompts)
        progress.update(step, metrics)
        done = step + 1
        if done % every == 0 or done == last:
            progress.sheet(trainer, done)
            trainer.checkpoint(done, metrics)


class Trainer:
    """One worker's state: the two engines, the student's moving average, and where the prompts come from."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.recipe = recipe.parse(setup.recipe_toml)
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.model = models.load(Path(setup.teacher_folder), self.device)
        self.engines = engines.build(self.recipe, self.model, self.device)
        self.ema = {name: value.clone() for name, value in self._student_weights().items()}
        self.null_embeds = self.model.encode([""])
        self.clip = Clip.load(self.recipe.train.clip_model, self.device) if self.recipe.train.clip_weight else None
        folder = Folder.of(setup.prompts_uri)
        avoid = self.recipe.prompts.avoid_contradictions
        self.negatives = NegativeSampler.read(folder, avoid_contradictions=avoid)

    def stream(self, start: int) -> Any:
        shard = ray.train.get_dataset_shard(DATASET)
        return batches(shard, self.recipe.global_batch, self.rank, self.world_size, start)

    def step(self, step: int, prompts: list[str]) -> dict[str, float]:
        """One update of the student, then one of the LoRA teacher on the same images."""
        texts = self._texts(step, prompts)
        draws = self._draws(step, len(prompts))
        student = student_loss(
            self.engines.student, self.engines.teachers, self.model.diffusion, self.recipe.method, texts, draws
        )
        hinge = self._clip_loss(step, prompts, student)
        loss = student.loss + hinge
        self.engines.student.backward(loss)
        self.engines.student.step()
        self._update_ema(step)

        lora_loss = lora_teacher_loss(self.engines.lora_teacher, self.model.diffusion, texts, draws, student.x0)
        self.engines.lora_teacher.backward(lora_loss)
        self.engines.lora_teacher.step()
        return {
            "loss_student": student.loss.item(),
            "loss_clip": float(hinge),
            "loss_lora_teacher": lora_loss.item(),
            "vsd_gradient_rms": student.gradient_rms.item(),
            "scale": draws.scale,
            "guidance_scale": draws.guidance_scale,
        }

    def _texts(self, step: int, prompts: list[str]) -> Texts:
        negatives = self.negatives.draw(prompts, self.recipe.seed, step, self.rank)
        prompt_embeds, negative_embeds = self.model.encode([*prompts, *negatives]).chunk(2)
        return Texts(prompt_embeds, negative_embeds, self.null_embeds)

    def _draws(self, step: int, batch: int) -> Draws:
        """Random numbers as a function of (seed, step, rank) alone, so that a restart draws the same."""
        shared = torch.Generator().manual_seed(_mix(self.recipe.seed, step))
        own = torch.Generator().manual_seed(_mix(self.recipe.seed, step, 1 + self.rank))
        shape = (batch, *self.model.latent_shape)
        return draw(self.recipe.method, self.model.diffusion, shape, shared, own)

    def _clip_loss(self, step: int, prompts: list[str], student: StudentLoss) -> Tensor | float:
        """SwiftBrush v2's clamped CLIP loss on the first images of the batch; its weight falls to 0 linearly."""
        weight = self.recipe.train.clip_weight * (1 - step / self.recipe.train.steps)
        if self.clip is None or not weight:
            return 0.0
        count = min(self.recipe.train.clip_images, len(prompts))
        images = decode(self.model.vae, student.attached_x0[:count])
        return weight * clip_hinge(
            self.clip.image_features(images), self.clip.text_features(prompts[:count]), self.recipe.train.clip_margin
        )

    def _student_weights(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.engines.student.module.unet.named_parameters()}

    def _update_ema(self, step: int) -> None:
        if self.rank == 0:
            update_ema(self.ema, self._student_weights(), self.recipe.student.ema_decay, step)

    def checkpoint(self, step: int, metrics: dict[str, float]) -> None:
        """Every rank gives its part; Ray Train merges the parts and makes the whole visible at once."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.engines.save(folder)
            if self.rank == 0:
                save_file(self.ema, folder / EMA_FILE)
                (folder / STATE_FILE).write_text(json.dumps({"step": step}))
            ray.train.report({"step": step, **metrics}, checkpoint=Checkpoint.from_directory(folder))

    def restore(self) -> int:
        """Load the latest checkpoint, if there is one; returns the first step to do."""
        latest = ray.train.get_checkpoint()
        if latest is None:
            return 0
        with latest.as_directory() as name:
            folder = Path(name)
            self.engines.load(folder)
            self.ema = load_file(folder / EMA_FILE)
            step = int(json.loads((folder / STATE_FILE).read_text())["step"])
        return step


def _mix(*numbers: int) -> int:
    """One seed from several numbers; neighbours give unrelated streams."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = (mixed ^ number) * 0xBF58476D1CE4E5B9 & (2**63 - 1)
        mixed ^= mixed >> 31
    return mixed


__all__ = ["EMA_FILE", "Setup", "Trainer", "train"]
