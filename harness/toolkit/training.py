"""The training loop of all methods: AdamW, linear warm-up and decay, gradient clipping, early stopping on dev."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from harness.core.clock import now, synchronise
from harness.core.errors import ConfigError
from harness.core.tokens import Split, TokenSet
from harness.encoder.layout import Layout
from harness.encoder.model import EncoderLayer, FastBertHead, Gate, LinearHead
from harness.toolkit.method_settings import Precision, Recipe
from harness.toolkit.resume.training_state import TrainingState
from harness.toolkit.text_models.table_optimizer import TableAdamW, clipped_parameters, sparse_tables
from harness.toolkit.text_models.text_model import TextModel

LossFn = Callable[[TokenSet, Layout, Tensor], Tensor]


@runtime_checkable
class CountsSteps(Protocol):
    """Optional, of a loss that depends on the number of the step, from 0; training sets it when it resumes after a kill."""

    step: int


@runtime_checkable
class OwnRate(Protocol):
    """Optional, of a module: the constant learning rate of its parameters, which have no weight decay and no clipping."""

    own_rate: float


_ROUND_TO = 4  # tokens


class DevScore(NamedTuple):
    """What dev says about a model, see :mod:`harness.toolkit.dev_scores`.

    Attributes:
        score: the criterion by which epochs, and settings in a search, are chosen; 0..1.
        exits: accuracy of every answering layer, in order of depth.
    """

    score: float
    exits: tuple[float, ...]


class Costs(NamedTuple):
    """The costs of one training or pass, as in :class:`TrainingReport`; their wall time tells stages apart."""

    seconds: float
    steps: int
    layer_passes: int
    sample_passes: int
    flops: float


@dataclass(frozen=True)
class TrainingReport:
    """What training cost, and its scores on dev.

    Attributes:
        seconds: wall time.
        steps: optimiser steps.
        layer_passes: forward passes of one sample through one layer, teachers included.
        sample_passes: samples seen, with repetition.
        best_epoch: 1-based epoch whose weights were kept; ``None`` if the last one is always kept.
        dev_scores: score after each epoch; of the last epoch only, if that one is always kept.
        epochs: epochs that were allowed; 0 if an older version did not store them.
        exit_scores: dev accuracy of every answering layer with the weights that were kept; empty if unknown.
        precision: of matrix products, ``"float32"`` or ``"bfloat16"``; empty if unknown.
        threads: that torch had; 0 if unknown.
        torch: its version, of the program that ended the training; empty if unknown.
        stages: the single trainings and passes that a sum (:func:`total_cost`) consists of; empty for one of them.
        flops: of the layers, forward and backward, in the convention ``linear``, padding included; 0 if an older
            version did not count them.
    """

    seconds: float
    steps: int
    layer_passes: int
    sample_passes: int
    best_epoch: int | None = None
    dev_scores: tuple[float, ...] = ()
    flops: float = 0.0
    epochs: int = 0
    exit_scores: tuple[float, ...] = ()
    precision: str = ""
    threads: int = 0
    stages: tuple[Costs, ...] = field(default=(), compare=False)
    torch: str = ""

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Self:
        """Return the report that was stored as JSON."""
        lists = {key: tuple(stored.get(key, ())) for key in ("dev_scores", "exit_scores")}
        return cls(**{**stored, **lists, "stages": tuple(Costs(*each) for each in stored.get("stages", ()))})

    @property
    def costs(self) -> Costs:
        """The costs alone."""
        return Costs(self.seconds, self.steps, self.layer_passes, self.sample_passes, self.flops)

    def __add__(self, other: TrainingReport) -> TrainingReport:
        """Add the costs of two stages; epochs, scores, precision, threads and version are those of the later one.

        The sum has 0 FLOPs (not counted) if a stage with layer passes has: a partial sum would look complete.
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
            other.epochs,
            other.exit_scores,
            other.precision,
            other.threads,
            torch=other.torch,
        )


def total_cost(*reports: TrainingReport | None) -> TrainingReport:
    """Add costs, in order; ``None`` costs nothing, and the last report is never ``None``.

    A stage that several reports include is counted once: the teacher that several assistants have in common.
    """
    known = [report for report in reports if report is not None]
    stages = dict.fromkeys(stage for report in known for stage in report.stages or [report.costs])
    total = reduce(operator.add, [TrainingReport(*stage[:4], flops=stage.flops) for stage in stages])
    return replace(known[-1], **total.costs._asdict(), stages=tuple(stages) if len(stages) > 1 else ())


def rate_at(step: int, steps: int, warm: int) -> float:
    """Return the factor on the learning rate at a step (from 0): linear warm-up over ``warm`` steps, then linear decay
    to 0 at ``steps``."""
    return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))


class LayerPasses:
    """Context that counts sample passes through every :class:`EncoderLayer` of ``modules``, and their FLOPs.

    Of a :class:`TextModel`, which has no layers, only FLOPs are counted.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.count = 0
        self.flops = 0.0
        kinds = EncoderLayer | TextModel
        layers = {layer for module in modules for layer in module.modules() if isinstance(layer, kinds)}
        self._hooks = [layer.register_forward_hook(self._seen) for layer in layers]

    def _seen(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden, layout = args
        if isinstance(
            module, TextModel
        ):  # ids have no gradient: backward is as much again, for weights and for inputs inside
            self.flops += module.flops(layout, "linear") * (3 if output.requires_grad else 1)
            return
        self.count += layout.count
        assert isinstance(module, EncoderLayer)
        forward = module.cost.flops(layout.tally(), "linear")
        # Backward: as much again for the gradient of the input, and as much for the gradient of the weights.
        ways = 1 + (hidden.requires_grad + module.qkv.weight.requires_grad if output.requires_grad else 0)
        self.flops += forward * ways

    def __enter__(self) -> LayerPasses:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def shuffled_batches(tokens: TokenSet, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield random batches of similar length: shuffle, sort within pools of 16 batches, shuffle the batches of a pool."""
    lengths = tokens.lengths.cpu()
    for pool in torch.randperm(len(tokens), generator=generator).split(16 * batch_size):
        batches = pool[lengths[pool].argsort(stable=True)].split(batch_size)
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Group trainable parameters by (head or not, decayed or not); norms and biases (one-dimensional) have no decay.

    Tables with sparse gradients are a group of their own, and so is each module with a rate of its own.
    """
    kinds = FastBertHead | LinearHead | Gate
    heads = {p for module in model.modules() if isinstance(module, kinds) for p in module.parameters()}
    tables = sparse_tables(model)
    groups = [{"params": tables, "lr": recipe.learning_rate, "weight_decay": 0.0, "sparse": True}] if tables else []
    for is_head, rate in ((False, recipe.learning_rate), (True, recipe.learning_rate * recipe.head_rate)):
        ours = [p for p in _clipped(model) if p.requires_grad and (p in heads) == is_head]
        groups.append({"params": [p for p in ours if p.dim() > 1], "lr": rate, "weight_decay": recipe.weight_decay})
        groups.append({"params": [p for p in ours if p.dim() <= 1], "lr": rate, "weight_decay": 0.0})
    for module in _with_own_rate(model):
        own = {"params": list(module.parameters()), "lr": module.own_rate, "weight_decay": 0.0}
        groups.append({**own, "constant": True})
    return groups


def _with_own_rate(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, OwnRate)]


def _clipped(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters whose gradients are clipped: all but sparse tables and those of modules with their own rate."""
    apart = {parameter for module in _with_own_rate(model) for parameter in module.parameters()}
    return [parameter for parameter in clipped_parameters(model) if parameter not in apart]


def training_layout(batch: TokenSet) -> Layout:
    """Return a layout padded to the longest sample, rounded up to 4: batches are of similar length, so padding is small.

    Packed rows would come in as many shapes as there are batches, and CPU libraries compile and keep a kernel for each
    shape: a third more time, and memory that grows.
    """
    lengths = batch.lengths.cpu().numpy()
    return Layout(lengths, -(-int(lengths.max()) // _ROUND_TO) * _ROUND_TO, batch.device)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 products run in hardware: on CUDA, or on a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # These two functions of torch are private; without them, float32 is always correct.
    tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(test is not None and test() for test in tests)


def resolved_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return the precision of matrix products in training that a setting stands for on a device."""
    if precision == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    return precision


def train(
    model: nn.Module,
    loss_fn: LossFn,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    name: str,
    evaluate: Callable[[], DevScore] | None = None,
    keep: Literal["best", "last"] = "best",
    teachers: Sequence[nn.Module] = (),
    horizon: int | None = None,
    first_kept: int = 1,
) -> TrainingReport:
    """Minimise ``loss_fn(tokens, layout, labels)`` over ``split``.

    Args:
        model: its parameters with ``requires_grad`` are trained, in place; it is left in eval mode.
        seed: seeds torch's global generator (dropout) and the order of samples.
        name: shown in the progress bar.
        evaluate: returns scores on dev. Without it, the last weights are kept, and ``recipe.patience`` has no effect.
        keep: ``"best"``: evaluate after each epoch and keep the weights of the best one (the earliest on ties); ``"last"``:
            keep the last ones, and evaluate these only. With ``recipe.patience``, the best ones are always kept.
        teachers: frozen modules that ``loss_fn`` runs; their layer passes are counted, too.
        horizon: steps of the learning-rate schedule, warm-up included; the rate is 0 after them. Default: all steps.
        first_kept: the first epoch, counted from 1, that may be kept. Earlier ones are not evaluated, and patience starts there: a
            model that is being pruned is not yet as small as it has to be.

    Raises:
        ConfigError: the loss became NaN or infinite (the message names the step), or the patience is longer than the epochs.
    """
    if evaluate is not None and recipe.patience is not None:
        if recipe.patience > recipe.epochs:
            raise ConfigError(
                f"{name}: patience = {recipe.patience} is longer than its {recipe.epochs} epochs: lower patience, or "
                "raise the epochs"
            )
        keep = "best"
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tokens, device = split.tokens, split.tokens.device
    labels = split.labels.to(device)
    per_epoch = math.ceil(len(split) / recipe.batch_size)
    steps = per_epoch * recipe.epochs
    scheduled = steps if horizon is None else horizon
    warm = max(1, round(recipe.warmup * scheduled))
    adam = TableAdamW if sparse_tables(model) else torch.optim.AdamW
    optimizer = adam(parameter_groups(model, recipe), fused=True)
    clipped = _clipped(model)
    factors = [
        (lambda step: 1.0) if group.get("constant") else (lambda step: rate_at(step, scheduled, warm))
        for group in optimizer.param_groups
    ]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
    precision = resolved_precision(recipe.precision, device)
    state = TrainingState(model, device, {"name": name, "seed": seed, "steps": steps, **recipe.model_dump(mode="json")})
    if (ended := state.report) is not None:
        model.eval()
        return TrainingReport.of(ended)
    # Resume where a killed fit stopped (harness.toolkit.resume).
    facts, best = state.resume(optimizer, generator)
    scores = [DevScore(score, tuple(exits)) for score, exits in facts.get("scores", ())]
    epoch, best_epoch, done = facts.get("epoch", 0), facts.get("best_epoch", 0), facts.get("done", 0)
    if done:
        schedule.last_epoch = done
        for group, rate, factor in zip(optimizer.param_groups, schedule.base_lrs, factors, strict=True):
            group["lr"] = rate * factor(done)
        if isinstance(loss_fn, CountsSteps):
            loss_fn.step = done
    start = now() - facts.get("seconds", 0.0)
    with (
        LayerPasses([model, *teachers]) as passes,
        tqdm(total=steps, initial=done, desc=name, leave=False, disable=None) as bar,
    ):
        passes.count, passes.flops = facts.get("passes", 0), facts.get("flops", 0.0)
        while epoch < recipe.epochs:
            epoch += 1
            model.train()
            total = torch.zeros((), device=device)
            for index in shuffled_batches(tokens, recipe.batch_size, generator):
                batch = tokens.select(index)
                layout = training_layout(batch)
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    loss = loss_fn(batch, layout, labels[index.to(device)])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(clipped, recipe.clip)
                optimizer.step()
                schedule.step()
                total += loss.detach()
                done += 1
                bar.update()
                # Reading the loss waits for the device, so it is read every 50 steps and after each epoch only.
                if done % 50 == 0 or done % per_epoch == 0:
                    if not torch.isfinite(total):
                        raise ConfigError(
                            f"{name}: the loss is not finite at step {done} of {steps}: lower learning_rate"
                        )
                    bar.set_postfix(loss=f"{loss.item():.3f}")
            if evaluate is not None and epoch >= first_kept and (keep == "best" or epoch == recipe.epochs):
                model.eval()
                before = passes.count, passes.flops
                scores.append(evaluate())
                passes.count, passes.flops = before  # evaluation is not training
                if keep == "best" and scores[-1].score > max((one.score for one in scores[:-1]), default=-math.inf):
                    best, best_epoch = {key: value.detach().clone() for key, value in model.state_dict().items()}, epoch
                if recipe.patience is not None and epoch - best_epoch >= recipe.patience:
                    break
            if epoch < recipe.epochs:
                so_far = {"epoch": epoch, "best_epoch": best_epoch, "done": done, "scores": scores}
                cost = {"seconds": now() - start, "passes": passes.count, "flops": passes.flops}
                state.store({**so_far, **cost}, optimizer, generator, best)
        synchronise(device)
    if best is not None:
        model.load_state_dict(best)
    model.eval()
    kept = scores[best_epoch - first_kept] if best is not None else scores[-1] if scores else None
    report = TrainingReport(
        seconds=now() - start,
        steps=done,
        layer_passes=passes.count,
        sample_passes=len(split) * epoch,
        best_epoch=None if best is None else best_epoch,
        dev_scores=tuple(one.score for one in scores),
        flops=passes.flops,
        epochs=recipe.epochs,
        exit_scores=() if kept is None else kept.exits,
        precision=precision,
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
    )
    state.end(asdict(report))
    return report
