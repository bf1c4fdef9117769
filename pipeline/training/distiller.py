"""One rank's part of a distillation: both engines, the student's EMA weights, and the training step."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn

from nasa.diffusion_process import decode_latents
from nasa.distillation import (
    StepRandomness,
    StudentLoss,
    TextConditions,
    generate_for_step,
    lora_teacher_loss,
    sample_step,
    student_loss,
)
from nasa.ema import update_ema
from nasa.losses import clip_hinge, regression_loss
from nasa.mixed_precision import autocast
from nasa.prompt_embeds import PromptEmbeds
from nasa.random_numbers import mix_seeds
from nasa.student import generate
from pipeline.models import TextToImage
from pipeline.models.clip.loss_model import Clip
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.prompts.teacher_pairs import TeacherPairs
from pipeline.recipe import Recipe
from pipeline.training.engines import Engines, compute_dtype, set_learning_rate
from pipeline.training.sharded_weights import is_sharded, iter_whole
from pipeline.training.step_metrics import collect_metrics, get_gradient_norm, reduce_metrics


@dataclass
class Distiller:
    """One rank of `world_size` ranks that train on the same steps, each on its slice of the batch; needs no cluster.

    `decoder` decodes images for the CLIP loss; None is the teacher's autoencoder. `pairs` are those of the recipe's
    regression, if it has one. `attempt` counts how often training
    was rolled back; each attempt uses other random numbers. Rank 0 alone keeps the EMA weights.
    """

    recipe: Recipe
    model: TextToImage
    engines: Engines
    negatives: NegativeSampler
    clip: Clip | None
    decoder: Any = None
    pairs: TeacherPairs | None = None
    rank: int = 0
    world_size: int = 1
    attempt: int = 0
    ema: dict[str, Tensor] = field(init=False)
    null: PromptEmbeds = field(init=False)

    def __post_init__(self) -> None:
        self.ema = {name: value.clone() for name, value in self.iter_student_weights() if self.rank == 0}
        self.null = self.model.encode([""])
        self._passes = self.recipe.count_gradient_accumulation_steps(self.world_size)

    def step(self, step: int, prompts: Sequence[str], encoded: PromptEmbeds | None = None) -> dict[str, float]:
        """Update the student, then the LoRA teacher on the same images, for this rank's `prompts`; return the metrics.

        `encoded` are the prompts, then a negative for each, then the prompt of a pair for each if the recipe has a
        regression: given if another process has encoded them.
        Every random number is a function of the seed, the step and an image's index in the global batch, so that a
        restart, or another number of processes, uses the same numbers. The metrics are means over all processes.
        """
        indices = self.recipe.get_batch_slice(self.rank, self.world_size)
        assert len(prompts) == len(indices)
        texts = self._build_encoder(step, prompts, encoded)

        def encoded_pairs(part: slice) -> PromptEmbeds | None:
            return None if encoded is None or self.pairs is None else encoded[2 * len(prompts) :][part]

        shared = torch.Generator().manual_seed(mix_seeds(self.seed, step))
        generators = [torch.Generator().manual_seed(mix_seeds(self.seed, step, 1 + index)) for index in indices]
        randomness = sample_step(
            self.recipe.method, self.model.diffusion, self.model.latent_shape, shared, generators,
            progress=step / self.recipe.train.steps,
            cold_start=self.recipe.method.get_cold_start(step - self.recipe.first_vsd_step),
        )  # fmt: skip
        trains_student, trains_lora_teacher = self._choose_trained(step)
        set_learning_rate(self.engines.student, self._compute_learning_rate(step))
        sums: dict[str, Tensor | float] = defaultdict(float)
        inputs = []
        for number in range(self._passes):
            first, last = (edge * len(prompts) // self._passes for edge in (number, number + 1))
            part, size = slice(first, last), last - first
            share = size * self._passes * self.world_size / self.recipe.train.batch_size
            if trains_lora_teacher:
                conditions, of_pass = texts(part), randomness.select_images(part)
                x0, metrics = self._run_micro_step(
                    step, first, share, prompts[part], conditions, of_pass, encoded_pairs(part)
                )
                inputs.append((share, conditions, of_pass, x0))
            else:
                metrics = self._regress(step, first, share, size, encoded_pairs(part))
            for name, value in metrics.items():
                sums[name] = sums[name] + value * share / self._passes
        self._update_lora_teacher_again(inputs)
        self._update_ema(step)
        return {
            **reduce_metrics(sums, self.null.embeds.device, self.world_size),
            "gradient_norm_student": get_gradient_norm(self.engines.student, trains_student),
            "gradient_norm_lora_teacher": get_gradient_norm(self.engines.lora_teacher, trains_lora_teacher),
            "scale": randomness.scale,
            "guidance_scale": randomness.guidance_scale,
        }

    def _choose_trained(self, step: int) -> tuple[bool, bool]:
        """Return whether a step trains the student, and whether it trains the LoRA teacher.

        First the student learns from pairs alone, then the LoRA teacher warms up alone; from there on both are trained.
        """
        start = self.recipe.regression.start_steps
        return step < start or step >= self.recipe.first_vsd_step, step >= start

    def _compute_learning_rate(self, step: int) -> float:
        """Return the student's learning rate, a function of the step alone, so that a restart continues it."""
        options = self.recipe.student
        left = max(0.0, 1 - step / self.recipe.train.steps) if options.lr_scheduler == "linear" else 1.0
        return options.learning_rate * left

    @property
    def seed(self) -> int:
        """The random seed: the recipe's, and another one after each rollback."""
        return self.recipe.seed if not self.attempt else mix_seeds(self.recipe.seed, 0, 0, self.attempt)

    def _build_encoder(
        self, step: int, prompts: Sequence[str], encoded: PromptEmbeds | None
    ) -> Callable[[slice], TextConditions]:
        """Return a function that gives the text conditions of a slice of the prompts, encoding them on demand."""
        count = len(prompts)
        if encoded is not None:
            return lambda part: TextConditions(encoded[:count][part], encoded[count : 2 * count][part], self.null)
        indices = self.recipe.get_batch_slice(self.rank, self.world_size)
        per_batch = self.recipe.method.negative_per == "batch"
        negatives = self.negatives.sample(prompts, self.seed, step, indices, per_batch=per_batch)

        def encode(part: slice) -> TextConditions:
            texts = self.model.encode([*prompts[part], *negatives[part]])
            return TextConditions(texts[: len(texts) // 2], texts[len(texts) // 2 :], self.null)

        return encode

    def any_across_ranks(self, flag: bool) -> bool:
        """Tell whether the flag is set in any process; all get the same answer."""
        return reduce_metrics({"flag": float(flag)}, self.null.embeds.device, self.world_size)["flag"] > 0

    def _run_micro_step(
        self,
        step: int,
        first: int,
        share: float,
        prompts: Sequence[str],
        texts: TextConditions,
        randomness: StepRandomness,
        encoded_pairs: PromptEmbeds | None,
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Run one forward and backward pass of the student and the LoRA teacher; return the images and the metrics.

        `share` is this pass's number of images divided by the mean number over all passes and processes.
        """
        engines, diffusion = self.engines, self.model.diffusion
        if step < self.recipe.first_vsd_step:
            return self._warm_up_lora_teacher(share, texts, randomness)
        student = student_loss(
            engines.student, engines.teachers, diffusion, self.recipe.method, texts, randomness, engines.lora_teacher
        )
        hinge = self._compute_clip_loss(step, first, prompts, student)
        regression = self._compute_regression_loss(step, first, len(prompts), encoded_pairs)
        engines.student.backward(share * student.loss + hinge + self.recipe.regression.weight * regression)
        engines.student.step()
        lora_loss = student.lora_loss
        if lora_loss is None:
            lora_loss = self._compute_lora_loss(texts, randomness, student.x0)
        engines.lora_teacher.backward(share * lora_loss)
        engines.lora_teacher.step()
        return student.x0, collect_metrics(
            student.x0,
            loss_student=student.loss,
            loss_clip=hinge / share,  # weighted by passes already, as is the regression
            **({"loss_regression": regression / share} if self.pairs else {}),
            loss_lora_teacher=lora_loss,
            vsd_gradient_rms=student.gradient_rms,
        )

    def _regress(
        self, step: int, first: int, share: float, count: int, encoded_pairs: PromptEmbeds | None
    ) -> dict[str, Tensor | float]:
        """Train the student on as many pairs as this pass has images; return the metrics."""
        loss, x0 = self._regress_on_pairs(step, first, range(count), encoded_pairs)
        self.engines.student.backward(share * self.recipe.regression.weight * loss)
        self.engines.student.step()
        return collect_metrics(x0, loss_regression=loss)

    def _warm_up_lora_teacher(
        self, share: float, texts: TextConditions, randomness: StepRandomness
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Train the LoRA teacher on the student's images; return these and the metrics."""
        with torch.no_grad():
            x0 = generate_for_step(self.engines.student, self.model.diffusion, self.recipe.method, texts, randomness)
        loss = self._compute_lora_loss(texts, randomness, x0)
        self.engines.lora_teacher.backward(share * loss)
        self.engines.lora_teacher.step()
        return x0, collect_metrics(x0, **({"loss_regression": 0.0} if self.pairs else {}), loss_lora_teacher=loss)

    def _update_lora_teacher_again(
        self, passes: Sequence[tuple[float, TextConditions, StepRandomness, Tensor]]
    ) -> None:
        """Update the LoRA teacher as often as the method asks for beyond the first time, on the step's images."""
        further = [[*randomness.iter_lora_updates()][1:] for *_, randomness, _ in passes]
        for of_passes in zip(*further, strict=True):
            for (share, texts, _, x0), randomness in zip(passes, of_passes, strict=True):
                self.engines.lora_teacher.backward(share * self._compute_lora_loss(texts, randomness, x0))
                self.engines.lora_teacher.step()

    def _compute_lora_loss(self, texts: TextConditions, randomness: StepRandomness, x0: Tensor) -> Tensor:
        teachers = cast(nn.Module, self.engines.lora_teacher)
        return lora_teacher_loss(teachers, self.model.diffusion, self.recipe.method, texts, randomness, x0)

    def enter_precision(self) -> Any:
        """Return the autocast context of all models but the denoisers, which enter their own."""
        return autocast(self.null.embeds.device.type, compute_dtype(self.recipe))

    def _compute_clip_loss(self, step: int, first: int, prompts: Sequence[str], student: StudentLoss) -> Tensor | float:
        """Return SwiftBrush v2's clamped CLIP loss on this pass's part of the step's CLIP images.

        The images are chosen by their index in the global batch, so any number of workers and passes uses the
        same ones, and the passes add up to the mean over all of them. The weight falls to 0 linearly.
        """
        train = self.recipe.train
        weight = train.clip_weight * max(0.0, 1 - step / train.steps)
        indices = self.recipe.get_batch_slice(self.rank, self.world_size)[first : first + len(prompts)]
        chosen = [position for position, index in enumerate(indices) if self.recipe.has_clip_loss(index)]
        if self.clip is None or not weight or not chosen:
            return 0.0
        with self.enter_precision():
            latents = student.attached_x0[chosen]
            images = decode_latents(self.decoder, latents) if self.decoder else self.model.decode(latents)
            image_features = self.clip.encode_images(images)
            text_features = self.clip.encode_texts([prompts[position] for position in chosen])
            hinge = clip_hinge(image_features, text_features, train.clip_margin)
        share = len(chosen) / min(train.clip_images, train.batch_size)
        return weight * self._passes * self.world_size * share * hinge

    def _compute_regression_loss(
        self, step: int, first: int, count: int, encoded: PromptEmbeds | None
    ) -> Tensor | float:
        """Return the loss of the student's first step on this pass's part of the step's pairs.

        The pairs stand at some indices of the global batch, as the images of the CLIP loss do.
        """
        indices = self.recipe.get_batch_slice(self.rank, self.world_size)[first : first + count]
        chosen = [position for position, index in enumerate(indices) if self.recipe.has_regression(index)]
        if self.pairs is None or not chosen:
            return 0.0
        loss, _ = self._regress_on_pairs(step, first, chosen, encoded)
        share = len(chosen) / min(self.recipe.regression.images, self.recipe.train.batch_size)
        return self._passes * self.world_size * share * loss

    def _regress_on_pairs(
        self, step: int, first: int, chosen: Sequence[int], encoded: PromptEmbeds | None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the latents of the student's first step on the pairs of some positions."""
        assert self.pairs is not None
        indices = self.recipe.get_batch_slice(self.rank, self.world_size)[first:]
        rows = self.pairs.draw_rows(self.seed, step, [indices[position] for position in chosen])
        device = self.null.embeds.device
        prompts = (
            self.model.encode([self.pairs.prompts[row] for row in rows])
            if encoded is None
            else encoded[torch.tensor(chosen, device=device)]
        )
        noise, target = self.pairs.get_noise(rows).to(device), self.pairs.latents[rows].to(device, torch.float32)
        x0 = generate(self.engines.student, self.model.diffusion, noise, prompts, last_step=0)
        return regression_loss(x0.float(), target, self.recipe.regression.distance), x0

    def collect_student_weights(self) -> dict[str, Tensor]:
        """Return the trained weights by their names in the denoiser.

        Every rank must call it. In ZeRO stage 3 rank 0 returns copies in host memory, and the others an empty dict.
        """
        if not self.is_sharded:
            return dict(self.iter_student_weights())
        copies = (
            (name, value.to("cpu", copy=True) if self.rank == 0 else value)
            for name, value in self.iter_student_weights()
        )
        return {name: copy for name, copy in copies if self.rank == 0}

    @property
    def is_sharded(self) -> bool:
        """Tell whether a rank holds only a part of the weights, so that every rank must take part in a forward pass."""
        return any(is_sharded(parameter) for parameter in self.engines.student.module.parameters())

    def iter_student_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and value of each trained weight, whole until the next one; every rank must take all."""
        yield from iter_whole(self.list_trained())

    def list_trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return the name and parameter of each trained weight, of which a rank may hold a part."""
        named = self.engines.student.module.get_submodule("model").named_parameters()
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]

    def _update_ema(self, step: int) -> None:
        for name, value in self.iter_student_weights():
            if self.rank == 0:
                update_ema({name: self.ema[name]}, {name: value}, self.recipe.student.ema_decay, step)
