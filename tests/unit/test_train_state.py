"""The training step, on a stage small enough to follow by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ba_jax import optim
from ba_jax.optim import OptimizerSettings
from ba_jax.stages.base import Aux, Stage, StageError
from ba_jax.train_state import TrainState, new_state, step_function
from ba_jax.tree import flatten, unflatten

RULES = (("frozen/.*", None), ("slow/.*", 0.5), (".*", 1.0))
ROWS, WIDTH = 8, 3
KEY = jax.random.key(7)


class Line(Stage):
    """Least squares over the rows of a mask; the codebook counts these rows."""

    name = "line"

    def __init__(self, noise: float = 0.0):
        self.noise = noise

    def init(self, key):
        keys = iter(jax.random.split(key, 4))
        shapes = {"frozen": (WIDTH,), "slow": (WIDTH,), "fast": (WIDTH,)}
        return {
            "params": {
                name: {"kernel": jax.random.normal(next(keys), shape)}
                for name, shape in shapes.items()
            },
            "codebook": {"seen": jnp.zeros((), jnp.float32)},
            "buffers": {"table": jnp.arange(3)},
        }

    def totals(self, arrays):
        return {"all": jnp.maximum(jnp.sum(arrays["mask_B"], dtype=jnp.float32), 1)}

    def loss(self, variables, arrays, totals, key, step):
        params = variables["params"]
        w_D = sum(params[name]["kernel"] for name in ("frozen", "slow", "fast"))
        error_B = arrays["x_BD"] @ w_D - arrays["y_B"]
        error_B += self.noise * jax.random.normal(key, error_B.shape)
        loss = jnp.sum(jnp.where(arrays["mask_B"], error_B**2, 0)) / totals["all"]
        return loss, Aux({"squares": loss}, jnp.sum(arrays["mask_B"], dtype=jnp.float32))

    def init_extra(self, variables):
        return {"age": jnp.zeros((), jnp.int32)}

    def after(self, codebook, extra, updates, key, step):
        codebook = {"seen": codebook["seen"] + updates}
        return codebook, {"age": extra["age"] + 1}, {"seen": codebook["seen"]}


def batch(seed: int = 0) -> dict[str, np.ndarray]:
    """A batch whose mask marks different numbers of rows in the microbatches."""
    rng = np.random.default_rng(seed)
    mask_B = np.isin(np.arange(ROWS), (0, 3, 5, 6, 7))
    return {
        "x_BD": rng.normal(size=(ROWS, WIDTH)).astype(np.float32),
        "y_B": rng.normal(size=ROWS).astype(np.float32),
        "mask_B": mask_B,
    }


def make(accumulation_steps: int = 1, noise: float = 0.0, **changes):
    """(state, jitted step)."""
    settings = OptimizerSettings(
        **{"rules": RULES, "learning_rate": 0.1, "weight_decay": 0.01, "ema_decay": 0.9, **changes}
    )
    stage = Line(noise)
    variables = stage.init(KEY)
    shapes = {name: leaf.shape for name, leaf in flatten(variables["params"]).items()}
    multipliers = optim.learning_rate_multipliers(shapes, settings.rules)
    trained = {name: rate for name, rate in multipliers.items() if rate is not None}
    optimizer = optim.make_optimizer(settings, trained, shapes, 10)
    state = new_state(variables, stage, multipliers, optimizer, settings)
    rate = optim.learning_rate_schedule(settings, 10)
    return state, jax.jit(step_function(stage, optimizer, settings, rate, accumulation_steps))


@pytest.fixture(scope="module")
def plain():
    return make()


def test_frozen_parameters_have_their_own_type_except_the_tokenizer():
    names = ("llm/w", "llm/head", "audio_encoder/w", "vq_bridge/w")
    params = {"params": unflatten({name: jnp.ones(2) for name in names})}
    multipliers = {name: 1.0 if name == "llm/w" else None for name in names}
    settings = OptimizerSettings(rules=RULES, learning_rate=0.1)
    state = jax.eval_shape(
        lambda: new_state(params, Line(0.0), multipliers, optax.sgd(0.1), settings, jnp.bfloat16)
    )
    assert {name: leaf.dtype.name for name, leaf in (state.trained | state.frozen).items()} == {
        "llm/w": "float32",
        "llm/head": "bfloat16",
        "audio_encoder/w": "float32",
        "vq_bridge/w": "float32",
    }


def test_gradients_and_their_norms(plain):
    """The first step against the explicit gradient; Adam first moves by the learning rate."""
    state, step = plain
    arrays = batch()
    after, metrics = step(state, arrays, KEY)
    w_D = sum(np.asarray(v) for v in (*state.trained.values(), *state.frozen.values()))
    error_B = (arrays["x_BD"] @ w_D - arrays["y_B"]) * arrays["mask_B"]
    gradient_D = 2 * error_B @ arrays["x_BD"] / 5
    norm = np.linalg.norm(gradient_D)
    np.testing.assert_allclose(metrics["loss"], (error_B**2).sum() / 5, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm/fast"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm/slow"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], norm * np.sqrt(2), rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], 0.1, rtol=1e-6)
    for name, rate in (("fast/kernel", 0.1), ("slow/kernel", 0.05)):
        before_D = np.asarray(state.trained[name])
        # The kernels here are vectors, which do not decay.
        np.testing.assert_allclose(
            after.trained[name], before_D - rate * np.sign(gradient_D), atol=1e-5
        )
    assert "grad_norm/frozen" not in metrics
    assert int(after.step) == 1 and int(after.extra["age"]) == 1
    assert float(after.codebook["seen"]) == float(metrics["seen"]) == 5


def test_frozen_parameters_have_no_optimizer_state_and_do_not_change(plain):
    state, step = plain
    assert sorted(state.trained) == ["fast/kernel", "slow/kernel"]
    names = {
        getattr(key, "key", None)
        for path, _ in jax.tree_util.tree_leaves_with_path((state.optimizer, state.ema))
        for key in path
    }
    assert {"fast/kernel", "slow/kernel"} <= names and "frozen/kernel" not in names
    before = np.asarray(state.frozen["frozen/kernel"]).tobytes()
    table = np.asarray(state.buffers["table"]).tobytes()
    for number in range(4):
        state, _ = step(state, batch(number), KEY)
    assert np.asarray(state.frozen["frozen/kernel"]).tobytes() == before
    assert np.asarray(state.buffers["table"]).tobytes() == table


@pytest.mark.parametrize("accumulation_steps", [2, 4, 8])
def test_accumulated_gradients_equal_those_of_the_batch(plain, accumulation_steps):
    """Even if microbatches have unequal numbers of targets, or none."""
    whole, step = plain
    parts, part_step = make(accumulation_steps)
    for number in range(3):
        whole, metrics = step(whole, batch(number), KEY)
        parts, part_metrics = part_step(parts, batch(number), KEY)
        for name, value in metrics.items():
            np.testing.assert_allclose(part_metrics[name], value, rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert float(parts.codebook["seen"]) == 15


def test_keys_of_microbatches_differ_and_depend_on_the_step_alone():
    state, step = make(accumulation_steps=2, noise=1.0)
    twins = {k: np.repeat(v[:4], 2, axis=0) for k, v in batch().items()}  # the halves are equal
    twins["mask_B"] = np.ones(ROWS, bool)
    _, again = step(state, twins, KEY)
    _, first = step(state, twins, KEY)
    assert float(first["loss"]) == float(again["loss"])
    _, other = step(state, twins, jax.random.key(8))
    assert float(first["loss"]) != float(other["loss"])
    # Equal draws in both microbatches would give the loss of one of them.
    params, key = state.variables()["params"], jax.random.split(jax.random.fold_in(KEY, 0))[0]
    half = {k: v[::2] for k, v in twins.items()}
    alone = [
        Line(1.0).loss({"params": params}, half, {"all": 8.0}, jax.random.fold_in(key, n), 0)[0]
        for n in (0, 1)
    ]
    np.testing.assert_allclose(first["loss"], sum(alone), rtol=1e-5)
    assert abs(float(alone[0] - alone[1])) > 1e-3


def test_rows_that_do_not_divide_into_microbatches():
    state, step = make(accumulation_steps=3)
    with pytest.raises(StageError, match="8 rows, train.accumulation_steps = 3"):
        step(state, batch(), KEY)


def assert_only_the_count_changed(before: TrainState, after: TrainState, metrics) -> None:
    assert not bool(metrics["finite"]) and int(after.step) == int(before.step) + 1
    before = before._replace(step=after.step)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_step_that_is_not_finite_changes_nothing(plain, bad):
    """1e30: the error is finite in float32, its square is not."""
    state, step = plain
    state, _ = step(state, batch(), KEY)
    arrays = batch(1)
    arrays["y_B"][0] = bad
    after, metrics = step(state, arrays, KEY)
    assert_only_the_count_changed(state, after, metrics)
    # Masked values do not matter, and the next step works.
    after, metrics = step(after, batch(2), KEY)
    assert bool(metrics["finite"]) and int(after.step) == 3


def test_ema_is_evaluated(plain):
    state, step = plain
    for number in range(3):
        state, _ = step(state, batch(number), KEY)
    shown, trained = state.variables(averaged=True), state.variables()
    name = ("params", "fast", "kernel")
    assert not np.array_equal(shown[name[0]][name[1]][name[2]], trained["params"]["fast"]["kernel"])
    np.testing.assert_array_equal(shown["params"]["fast"]["kernel"], state.ema["fast/kernel"])
    np.testing.assert_array_equal(
        shown["params"]["frozen"]["kernel"], state.frozen["frozen/kernel"]
    )
    without, _ = make(ema_decay=0.0)
    assert without.ema == {} and without.variables(averaged=True).keys() == shown.keys()


@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_the_loss_is_traced_once(monkeypatch, accumulation_steps):
    traces, loss = [], Line.loss

    def counted(self, *args):
        traces.append(args)
        return loss(self, *args)

    monkeypatch.setattr(Line, "loss", counted)
    state, step = make(accumulation_steps)
    step.lower(state, batch(), KEY)
    assert len(traces) == 1
