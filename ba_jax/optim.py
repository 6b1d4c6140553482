"""Optimizer: learning-rate multipliers by rule, AdamW with warm-up, gradient clipping, EMA.

Parameters are named `component/.../leaf`. A stage's rules are one ordered list of (regular
expression, multiplier); the first that matches a whole name decides. The multiplier scales the
learning rate; None freezes the parameter, which then has neither gradients nor optimizer state. A
parameter that no rule covers is an error, and so is a rule that decides no parameter.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

from ba_jax.config import expected

SCHEDULES = ("cosine", "linear", "constant")
LARGEST_RATE = 1e30
"""Adam's update is a small multiple of the rate: up to this one it is finite if gradients are."""


class OptimError(ValueError):
    """Invalid optimizer rules or settings."""


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (Loshchilov and Hutter 2019) with its schedule, clipping and parameter average.

    Attributes:
      rules: ordered pairs (regular expression, multiplier or None), see the module.
      learning_rate: peak learning rate.
      warmup_steps: steps of linear warm-up to the peak.
      schedule: decay after the warm-up: "cosine" or "linear" down to `final_learning_rate_ratio`,
        or "constant", which stays at the peak.
      final_learning_rate_ratio: learning rate of the last step, as a fraction of the peak.
      b1, b2, epsilon: Adam's.
      weight_decay: decoupled, multiplied by the learning rate; applies to matrices except
        embeddings.
      clip_norm: clip the gradients of each group to this norm; 0 does not clip.
      clip_groups: regular expressions; the parameters that match one are clipped together, all
        others together.
      ema_decay: decay of the exponential moving average (EMA) of the trained parameters, which
        evaluation and the saved weights use; 0 keeps none. Early in the run the decay is
        min(ema_decay, (1 + step) / (10 + step)).
    """

    rules: tuple[tuple[str, float | None], ...] = ()
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    schedule: str = "cosine"
    final_learning_rate_ratio: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    clip_groups: tuple[str, ...] = ()
    ema_decay: float = 0.0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise OptimError(f"schedule {expected(self.schedule, SCHEDULES)}")
        if not 0 < self.learning_rate <= LARGEST_RATE:
            raise OptimError(
                f"learning_rate = {self.learning_rate}: expected above 0, at most {LARGEST_RATE:g}"
            )
        for name in ("warmup_steps", "clip_norm", "weight_decay", "epsilon"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OptimError(f"{name} = {getattr(self, name)}: expected at least 0")
        for name in ("final_learning_rate_ratio", "ema_decay", "b1", "b2"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptimError(f"{name} = {getattr(self, name)}: expected 0 to 1")
        for pattern, multiplier in self.rules:
            _compile(pattern)
            largest = LARGEST_RATE / self.learning_rate
            if multiplier is not None and not 0 <= multiplier <= largest:
                raise OptimError(
                    f"rule {pattern!r}: multiplier {multiplier}, expected at least 0, or None, and "
                    f"a learning rate of at most {LARGEST_RATE:g}"
                )


def _compile(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise OptimError(f"rule {pattern!r}: not a regular expression ({error})") from None


def learning_rate_multipliers(
    names: Iterable[str], rules: Iterable[tuple[str, float | None]]
) -> dict[str, float | None]:
    """Map each parameter to its learning-rate multiplier, or to None if it is frozen.

    Raises:
      OptimError: a parameter without a rule, a rule that decides no parameter (none matches, or
        earlier rules match them all), or rules that freeze everything.
    """
    patterns = [(_compile(pattern), multiplier) for pattern, multiplier in rules]
    multipliers, used_rules = {}, set()
    for name in names:
        number = next((i for i, (p, _) in enumerate(patterns) if p.fullmatch(name)), None)
        if number is None:
            expected = [p.pattern for p, _ in patterns]
            raise OptimError(f"parameter {name}: no rule covers it; the rules are {expected}")
        used_rules.add(number)
        multipliers[name] = patterns[number][1]
    unused = [p.pattern for i, (p, _) in enumerate(patterns) if i not in used_rules]
    if unused:
        components = sorted({name.split("/")[0] + "/..." for name in multipliers})
        raise OptimError(
            f"rules {unused}: decide no parameter that an earlier rule does not; there are "
            f"{components}"
        )
    if not any(multipliers.values()):
        raise OptimError(f"the rules freeze all {len(multipliers)} parameters: nothing to train")
    return multipliers


def learning_rate_schedule(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Schedule from step to learning rate for a run of `steps` steps."""
    peak, ratio = settings.learning_rate, settings.final_learning_rate_ratio
    warmup_steps = settings.warmup_steps
    decay_steps = max(1, steps - warmup_steps - 1)  # the last step is number steps - 1
    if settings.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, decay_steps, ratio)
    elif settings.schedule == "linear":
        decay = optax.linear_schedule(peak, peak * ratio, decay_steps)
    else:
        decay = optax.constant_schedule(peak)
    if not warmup_steps:
        return decay
    # Linear warm-up starts at peak / warmup_steps, not 0, so that step 1 is not wasted.
    warmup = optax.linear_schedule(peak / warmup_steps, peak, max(1, warmup_steps - 1))
    return optax.join_schedules([warmup, decay], [warmup_steps])


def clip_by_group(limit: float, groups: Mapping[str, int]) -> optax.GradientTransformation:
    """Scale each group of gradients (a flat dict) down to a norm of at most `limit`."""

    def update(updates, state, params=None):
        norms = group_norms(updates, groups)
        scales = {g: jnp.minimum(1.0, limit / jnp.maximum(n, 1e-12)) for g, n in norms.items()}
        scaled = {k: (u * scales[groups[k]]).astype(u.dtype) for k, u in updates.items()}
        return scaled, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def group_norms(values: Mapping[str, jax.Array], groups: Mapping[str, object]) -> dict:
    """Euclidean norm of each group of arrays, float32."""
    squares: dict = {}
    for name, value in values.items():
        square = jnp.sum(jnp.square(value.astype(jnp.float32)))
        squares[groups[name]] = squares.get(groups[name], 0.0) + square
    return {group: jnp.sqrt(square) for group, square in squares.items()}


def is_decayed(name: str, shape: tuple[int, ...]) -> bool:
    """Whether weight decay applies: to matrices, but not to embeddings, norms and biases.

    Stacked layers add an axis in front, so the names of vectors count, not only the shape.
    """
    leaf = name.rsplit("/", 1)[-1]
    vectors = ("scale", "bias", "kernel_g", "alpha")
    return leaf not in vectors and "embedding" not in leaf and len(shape) > 1


def make_optimizer(
    settings: OptimizerSettings,
    multipliers: Mapping[str, float],
    shapes: Mapping[str, tuple[int, ...]],
    steps: int,
) -> optax.GradientTransformation:
    """Build the optimizer for a flat dict of the trained parameters.

    The state has the same tree whatever is on or off, so that a run may be resumed with other
    settings.

    Args:
      settings: see `OptimizerSettings`.
      multipliers: learning-rate multiplier of each trained parameter.
      shapes: shapes of the parameters.
      steps: length of the run, for the schedule.

    Raises:
      OptimError: a pattern of `clip_groups` that matches no trained parameter.
    """
    patterns = [_compile(pattern) for pattern in settings.clip_groups]
    groups = {
        name: next((i for i, p in enumerate(patterns) if p.fullmatch(name)), -1)
        for name in multipliers
    }
    empty = [p.pattern for i, p in enumerate(patterns) if i not in groups.values()]
    if empty:
        raise OptimError(f"clip_groups {empty}: match no parameter that trains")
    decayed = {name: is_decayed(name, tuple(shapes[name])) for name in multipliers}

    def scale(updates, state, params=None):
        return {name: update * multipliers[name] for name, update in updates.items()}, state

    return optax.chain(
        clip_by_group(settings.clip_norm, groups) if settings.clip_norm else optax.identity(),
        optax.scale_by_adam(settings.b1, settings.b2, settings.epsilon),
        optax.add_decayed_weights(settings.weight_decay, mask=decayed),
        optax.GradientTransformation(lambda params: optax.EmptyState(), scale),
        optax.scale_by_learning_rate(learning_rate_schedule(settings, steps)),
    )


def update_ema(
    ema: Mapping[str, jax.Array],
    params: Mapping[str, jax.Array],
    decay: float,
    step: jax.Array,
) -> dict[str, jax.Array]:
    """Moving average of the parameters after a step, float32; see `OptimizerSettings.ema_decay`."""
    step = step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return {
        name: decay * ema[name] + (1 - decay) * params[name].astype(jnp.float32) for name in ema
    }
