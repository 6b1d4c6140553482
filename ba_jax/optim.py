"""The optimiser: which parameters train and how fast, AdamW with warm-up, clipping, averages.

Parameters are named `component/.../leaf`. A stage's rules are one ordered list of (regular
expression, rate): the first that matches a whole name decides; a number multiplies the learning
rate, None freezes. A parameter that no rule covers is an error, and so is a rule that decides none.
Frozen parameters have neither gradients nor optimiser state.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("cosine", "linear", "constant")


class OptimError(ValueError):
    """Rules or settings that cannot be trained with."""


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (Loshchilov and Hutter 2019) and what goes around it.

    Attributes:
      rules: pairs (regular expression, rate or None), see the module.
      learning_rate: its peak.
      warmup: steps from 0 to the peak, linear.
      schedule: afterwards, to `final` of the peak at the last step: "cosine", "linear", or
        "constant", which stays at the peak.
      final: share of the peak that is left at the end.
      b1, b2, epsilon: of Adam.
      weight_decay: decoupled, times the learning rate; matrices alone, and no embedding.
      clip: largest norm of a group's gradients; 0 does not clip.
      clip_groups: regular expressions; parameters of one are clipped together, the rest together.
      average: decay of the running average of the trained parameters that evaluation and the
        saved weights use; 0 keeps none. Early on it is min(average, (1 + step) / (10 + step)).
    """

    rules: tuple[tuple[str, float | None], ...]
    learning_rate: float
    warmup: int = 0
    schedule: str = "cosine"
    final: float = 0.1
    b1: float = 0.9
    b2: float = 0.98
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    clip_groups: tuple[str, ...] = ()
    average: float = 0.0

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise OptimError(f"schedule {self.schedule!r}, expected one of {SCHEDULES}")
        if not 0 < self.learning_rate < math.inf:
            raise OptimError(f"learning_rate = {self.learning_rate}: expected above 0")
        for name in ("warmup", "clip", "weight_decay", "epsilon"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OptimError(f"{name} = {getattr(self, name)}: expected at least 0")
        for name in ("final", "average", "b1", "b2"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptimError(f"{name} = {getattr(self, name)}: expected 0 to 1")
        for pattern, rate in self.rules:
            _compiled(pattern)
            if rate is not None and not 0 <= rate < math.inf:
                raise OptimError(f"rule {pattern!r}: rate {rate}, expected at least 0, or None")


def _compiled(pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise OptimError(f"rule {pattern!r}: not a regular expression ({error})") from None


def rates(
    names: Iterable[str], rules: Iterable[tuple[str, float | None]]
) -> dict[str, float | None]:
    """What multiplies the learning rate of each parameter; None: it is frozen.

    Raises:
      OptimError: a parameter without a rule, a rule that decides no parameter (none matches, or
        earlier rules take them all), or nothing to train.
    """
    compiled = [(_compiled(pattern), rate) for pattern, rate in rules]
    found, deciding = {}, set()
    for name in names:
        number = next((i for i, (p, _) in enumerate(compiled) if p.fullmatch(name)), None)
        if number is None:
            expected = [p.pattern for p, _ in compiled]
            raise OptimError(f"parameter {name}: no rule covers it; the rules are {expected}")
        deciding.add(number)
        found[name] = compiled[number][1]
    idle = [p.pattern for i, (p, _) in enumerate(compiled) if i not in deciding]
    if idle:
        raise OptimError(
            f"rules {idle}: decide no parameter that an earlier rule does not; there are "
            f"{_some(found)}"
        )
    if all(rate is None or rate == 0 for rate in found.values()):
        raise OptimError(f"the rules freeze all {len(found)} parameters: nothing to train")
    return found


def _some(names: Iterable[str]) -> list[str]:
    tops = sorted({name.split("/")[0] + "/..." for name in names})
    return tops


def schedule(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Step to learning rate, over a run of `steps` steps."""
    peak, end = settings.learning_rate, settings.learning_rate * settings.final
    # The last step's number is steps - 1.
    rest = max(1, steps - settings.warmup - 1)
    if settings.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, settings.final)
    elif settings.schedule == "linear":
        after = optax.linear_schedule(peak, end, rest)
    else:
        after = optax.constant_schedule(peak)
    if not settings.warmup:
        return after
    # From the first step on: a rate of 0 would waste it.
    rising = optax.linear_schedule(peak / settings.warmup, peak, max(1, settings.warmup - 1))
    return optax.join_schedules([rising, after], [settings.warmup])


def clip_by_group(limit: float, groups: Mapping[str, int]) -> optax.GradientTransformation:
    """Scales each group of gradients (a flat dict) to a norm of at most `limit`."""

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
    """Weight decay acts on it: a matrix, neither an embedding nor a norm's or a bias's vector.

    Stacked layers add an axis in front, which does not make a vector a matrix.
    """
    leaf = name.rsplit("/", 1)[-1]
    vectors = ("scale", "bias", "kernel_g", "alpha")
    return leaf not in vectors and "embedding" not in leaf and len(shape) > 1


def make_optimizer(
    settings: OptimizerSettings,
    trained: Mapping[str, float],
    shapes: Mapping[str, tuple[int, ...]],
    steps: int,
) -> optax.GradientTransformation:
    """Updates for a flat dict of the trained parameters.

    Args:
      settings: how.
      trained: name -> what multiplies its learning rate.
      shapes: of the parameters.
      steps: of the run, for the schedule.

    The state has the same tree whatever is on or off, so that a run may go on with another setting.

    Raises:
      OptimError: a group of `clip_groups` without a parameter.
    """
    patterns = [_compiled(pattern) for pattern in settings.clip_groups]
    groups = {
        name: next((i for i, p in enumerate(patterns) if p.fullmatch(name)), -1) for name in trained
    }
    empty = [p.pattern for i, p in enumerate(patterns) if i not in groups.values()]
    if empty:
        raise OptimError(f"clip_groups {empty}: hold no parameter that trains")
    decayed = {name: is_decayed(name, tuple(shapes[name])) for name in trained}

    def scale(updates, state, params=None):
        return {name: update * trained[name] for name, update in updates.items()}, state

    return optax.chain(
        clip_by_group(settings.clip, groups) if settings.clip else optax.identity(),
        optax.scale_by_adam(settings.b1, settings.b2, settings.epsilon),
        optax.add_decayed_weights(settings.weight_decay, mask=decayed),
        optax.GradientTransformation(lambda params: optax.EmptyState(), scale),
        optax.scale_by_learning_rate(schedule(settings, steps)),
    )


def averaged(
    average: Mapping[str, jax.Array],
    params: Mapping[str, jax.Array],
    decay: float,
    step: jax.Array,
) -> dict[str, jax.Array]:
    """The running average after a step, float32 (see `OptimizerSettings.average`)."""
    step = step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return {
        name: decay * average[name] + (1 - decay) * params[name].astype(jnp.float32)
        for name in average
    }
