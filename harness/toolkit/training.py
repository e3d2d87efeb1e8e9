"""One training loop for everybody: AdamW, linear warm-up and decay, gradient clipping, best dev epoch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from harness.contracts import Execution
from harness.core.clock import now, synchronise
from harness.core.errors import ConfigError
from harness.core.tokens import Split, TokenSet
from harness.core.work import LayerCost
from harness.encoder.layout import Layout
from harness.encoder.model import EncoderLayer, ExitGate, FastBertHead, LinearHead
from harness.encoder.multi_exit import MultiExitModel
from harness.execution.executors import exit_logits

PRECISIONS = ("auto", "float32", "bfloat16")
LossFn = Callable[[TokenSet, Layout, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one training run.

    Defaults are FastBERT's (papers: ACL 2020; batch 32, lr 2e-5, 3 epochs, warm-up 0.1) with weight decay as BERT's.
    ``head_rate`` multiplies the learning rate of classifier heads, which start from nothing where layers are pretrained.
    ``precision`` of the matrix products: ``"auto"`` is bfloat16 where the device has it in hardware (weights, norms and
    optimiser stay in float32).
    """

    epochs: int = 3
    learning_rate: float = 2e-5
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    head_rate: float = 1.0
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision '{self.precision}' is unknown: choose one of {', '.join(PRECISIONS)}")
        rates = (self.learning_rate, self.weight_decay, self.warmup, self.clip, self.head_rate)
        if (
            any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in (self.epochs, self.batch_size))
            or not all(isinstance(r, int | float) for r in rates)
            or not (
                min(self.learning_rate, self.clip, self.head_rate) > 0
                and self.weight_decay >= 0
                and 0 <= self.warmup < 1
            )
        ):
            raise ConfigError(
                f"training settings {self} make no sense: "
                "epochs and batch_size >= 1; learning_rate, clip and head_rate > 0; weight_decay >= 0, warmup in 0..1"
            )

    @classmethod
    def of(cls, config: Mapping[str, Any], **defaults: Any) -> Recipe:
        """Defaults, overridden by the keys of ``config`` that are hyper-parameters of training."""
        known = {f.name for f in fields(cls)}
        return replace(cls(**defaults), **{key: value for key, value in config.items() if key in known})


def own_settings(method: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A method's own settings: ``defaults``, overridden by ``config``.

    Keys of :class:`Recipe`, ``"head"`` and ``"speeds"`` may stand in every method's config and are passed over here.

    Raises:
        ConfigError: a key that nobody reads, with the nearest ones that are read; text where a number belongs, or
            anything else where a list or (default: a table) a name or a table of names does.
    """
    common = {f.name for f in fields(Recipe)} | {"head", "speeds"}
    for key in config:
        if key not in common and key not in defaults:
            known = sorted({*common, *defaults})
            near = difflib.get_close_matches(key, known, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ConfigError(f"method '{method}' has no setting '{key}': {hint}known: {', '.join(known)}")
    if not isinstance(config.get("head", ""), str):
        raise ConfigError(
            f"method '{method}': head = {config['head']!r} is not the name of one: write head = \"fastbert\""
        )
    own = {key: config.get(key, default) for key, default in defaults.items()}
    for key, value in own.items():
        if isinstance(defaults[key], dict):
            if not isinstance(value, str | dict):
                raise ConfigError(
                    f"method '{method}': {key} = {value!r} is no name: write {key} = \"...\", or one per language: "
                    f'{key} = {{en = "...", zh = "..."}}'
                )
        elif isinstance(defaults[key], list | tuple):
            if not isinstance(value, list | tuple):
                raise ConfigError(f"method '{method}': {key} = {value!r} is not a list: write {key} = [...]")
        elif isinstance(value, list | tuple | dict) and defaults[key] is not None:
            raise ConfigError(f"method '{method}': {key} = {value!r} is a list: write one value")
        elif isinstance(value, bool | str) and not isinstance(defaults[key], bool | str):
            raise ConfigError(f"method '{method}': {key} = {value!r} is not a number: write it without quotes")
    return own


@dataclass(frozen=True)
class TrainingReport:
    """What training cost and where it ended.

    Attributes:
        seconds: wall time.
        steps: optimiser steps.
        layer_passes: forward passes of one sample through one layer, teachers included.
        sample_passes: samples seen (with repetition).
        best_epoch: 1-based epoch whose weights were kept; ``None`` where the last one is kept by rule.
        dev_scores: score after each epoch.
        flops: of the layers, forward and backward, in the convention ``linear``, padding included; 0 where an older
            version did not count them.
    """

    seconds: float
    steps: int
    layer_passes: int
    sample_passes: int
    best_epoch: int | None = None
    dev_scores: tuple[float, ...] = ()
    flops: float = 0.0

    def __add__(self, other: TrainingReport) -> TrainingReport:
        """Costs of two stages, one after the other; epoch and scores are those of the later one.

        FLOPs are 0, not counted, where those of a stage with layer passes are: half a sum would look like a whole one.
        """
        counted = all(stage.flops or not stage.layer_passes for stage in (self, other))
        return TrainingReport(
            self.seconds + other.seconds,
            self.steps + other.steps,
            self.layer_passes + other.layer_passes,
            self.sample_passes + other.sample_passes,
            other.best_epoch,
            other.dev_scores,
            self.flops + other.flops if counted else 0.0,
        )


def rate_at(step: int, steps: int, warm: int) -> float:
    """Share of the learning rate at a step (from 0): linear warm-up over ``warm`` steps, linear decay to 0 at ``steps``."""
    return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))


class LayerPasses:
    """Counts sample passes through every :class:`EncoderLayer` inside ``modules`` while it is open, and their FLOPs."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.count = 0
        self.flops = 0.0
        layers = {layer for module in modules for layer in module.modules() if isinstance(layer, EncoderLayer)}
        self._hooks = [layer.register_forward_hook(self._seen) for layer in layers]

    def _seen(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden, layout = args
        self.count += layout.count
        assert isinstance(module, EncoderLayer)
        forward = LayerCost(module.qkv.in_features, module.up.out_features).flops(layout.tally(), "linear")
        # Backward: as much again for the gradient of what came in, and as much for that of the weights.
        ways = 1 + (hidden.requires_grad + module.qkv.weight.requires_grad if output.requires_grad else 0)
        self.flops += forward * ways

    def __enter__(self) -> LayerPasses:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def shuffled_batches(tokens: TokenSet, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random batches of similar length: shuffle, sort within pools of 16 batches, shuffle the batches of a pool."""
    lengths = tokens.lengths.cpu()
    for pool in torch.randperm(len(tokens), generator=generator).split(16 * batch_size):
        batches = pool[lengths[pool].argsort(stable=True)].split(batch_size)
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Trainable parameters by (head or not, decayed or not); norms and biases (one-dimensional) are not decayed."""
    kinds = FastBertHead | LinearHead | ExitGate
    heads = {p for module in model.modules() if isinstance(module, kinds) for p in module.parameters()}
    groups = []
    for is_head, rate in ((False, recipe.learning_rate), (True, recipe.learning_rate * recipe.head_rate)):
        ours = [p for p in model.parameters() if p.requires_grad and (p in heads) == is_head]
        groups.append({"params": [p for p in ours if p.dim() > 1], "lr": rate, "weight_decay": recipe.weight_decay})
        groups.append({"params": [p for p in ours if p.dim() <= 1], "lr": rate, "weight_decay": 0.0})
    return groups


def training_layout(batch: TokenSet) -> Layout:
    """Padded to the longest sample, rounded up to 16: batches are of similar length, so little is wasted.

    Packed rows would come in as many shapes as there are batches, and CPU libraries prepare, and keep, a kernel for
    each: a third more time, and memory that grows.
    """
    lengths = batch.lengths.cpu().numpy()
    return Layout(lengths, -(-int(lengths.max()) // 16) * 16, batch.device)


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware: on CUDA, or on a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # torch keeps these two private; where they are gone, float32 is always right.
    asks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(ask is not None and ask() for ask in asks)


def train(
    model: nn.Module,
    loss_fn: LossFn,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    name: str,
    evaluate: Callable[[], float] | None = None,
    teachers: Sequence[nn.Module] = (),
    horizon: int | None = None,
) -> TrainingReport:
    """Minimise ``loss_fn(tokens, layout, labels)`` over ``split``.

    Args:
        model: its parameters with ``requires_grad`` are trained, in place; left in eval mode.
        seed: seeds torch's global generator (dropout) and the order of samples.
        name: shown in the progress bar.
        evaluate: a score on dev after each epoch; the weights of the best (earliest on ties) are kept. Without it, the
            last weights are.
        teachers: frozen modules that ``loss_fn`` runs, so that their layer passes are counted.
        horizon: steps that the learning rate is scheduled over, warm-up included, 0 from then on; all steps by default.

    Raises:
        ConfigError: the loss became NaN or infinite, with the step at which it did.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tokens, device = split.tokens, split.tokens.device
    labels = split.labels.to(device)
    steps = math.ceil(len(split) / recipe.batch_size) * recipe.epochs
    scheduled = steps if horizon is None else horizon
    warm = max(1, round(recipe.warmup * scheduled))
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, scheduled, warm))
    bf16 = recipe.precision == "bfloat16" or (recipe.precision == "auto" and has_bfloat16(device))
    scores: list[float] = []
    best: dict[str, Tensor] | None = None
    start, done = now(), 0
    with LayerPasses([model, *teachers]) as passes, tqdm(total=steps, desc=name, leave=False, disable=None) as bar:
        for _ in range(recipe.epochs):
            model.train()
            total = torch.zeros((), device=device)
            for index in shuffled_batches(tokens, recipe.batch_size, generator):
                batch = tokens.select(index)
                layout = training_layout(batch)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss = loss_fn(batch, layout, labels[index.to(device)])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
                optimizer.step()
                schedule.step()
                total += loss.detach()
                done += 1
                bar.update()
                # Looking at the loss waits for the device, so only now and then.
                if done % 50 == 0 or done == steps:
                    if not torch.isfinite(total):
                        raise ConfigError(
                            f"{name}: the loss is not finite at step {done} of {steps}: lower learning_rate"
                        )
                    bar.set_postfix(loss=f"{loss.item():.3f}")
            if evaluate is not None:
                model.eval()
                before = passes.count, passes.flops
                scores.append(evaluate())
                passes.count, passes.flops = before  # choosing an epoch is no training
                if scores[-1] > max(scores[:-1], default=-math.inf):
                    best = {key: value.detach().clone() for key, value in model.state_dict().items()}
        synchronise(device)
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    return TrainingReport(
        seconds=now() - start,
        steps=steps,
        layer_passes=passes.count,
        sample_passes=len(split) * recipe.epochs,
        best_epoch=None if best is None else scores.index(max(scores)) + 1,
        dev_scores=tuple(scores),
        flops=passes.flops,
    )


def dev_accuracies(model: MultiExitModel, dev: Split) -> list[float]:
    """Accuracy of every answering layer on dev, in order of depth."""
    logits = exit_logits(model, dev.tokens, Execution(batch_size=64))
    return [float((answer.argmax(-1) == dev.labels).float().mean()) for answer in logits]
