"""Low-rank adapters: identity at initialisation, freezing by name, merging for export."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.convert.engine import ConversionError
from ba_jax.convert.hf_config import format_baichuan_config
from ba_jax.convert.sources import checkpoint_config
from ba_jax.models import lora
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig
from ba_jax.models.llm import LLMConfig
from ba_jax.tree import flatten, unflatten

SIZES = dict(vocab_size=40, width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn_width=24)
PLAIN = BaichuanAudioConfig(llm=LLMConfig(**SIZES))
TINY = pathlib.Path(__file__).parents[2] / "data" / "tiny"
IDS = np.random.default_rng(0).integers(0, 40, (2, 7)).astype(np.int32)


def adapted(targets=lora.TARGETS) -> BaichuanAudioConfig:
    return BaichuanAudioConfig(
        llm=LLMConfig(**SIZES, lora_rank=3, lora_alpha=5.0, lora_targets=targets)
    )


def logits(model, ids):
    return model.text_logits(model.hidden(ids)[0])


def apply(config, variables):
    model = BaichuanAudio(config)
    return jax.jit(lambda v: model.apply(v, IDS, method=logits))(variables)


@pytest.fixture(scope="module")
def variables():
    """Initial variables of the model with adapters."""
    model = BaichuanAudio(adapted())
    return jax.jit(lambda key: model.init(key, method="initialize"))(jax.random.key(0))


@pytest.fixture(scope="module")
def trained(variables):
    """Adapters away from zero."""
    rng = np.random.default_rng(1)
    flat = flatten(variables)
    return unflatten(
        {
            name: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
            if "lora_" in name
            else leaf
            for name, leaf in flat.items()
        }
    )


def test_fresh_adapters_change_nothing(variables):
    flat = flatten(variables)
    plain = unflatten({name: leaf for name, leaf in flat.items() if "lora_" not in name})
    assert len(flat) - len(flatten(plain)) == 2 * len(lora.TARGETS)
    np.testing.assert_array_equal(apply(adapted(), variables), apply(PLAIN, plain))


def test_shapes_and_first_values(variables):
    layers = variables["params"]["llm"]["layers"]
    for name in lora.TARGETS:
        _, width, features = layers[name]["kernel"].shape
        a, b = layers[f"lora_{name}_a"], layers[f"lora_{name}_b"]
        assert a.shape == (2, width, 3) and b.shape == (2, 3, features)
        assert 0.6 < np.std(a) * width**0.5 < 1.4 and not np.asarray(b).any()


def test_merged_gives_the_same_without_adapters(trained, variables):
    want = apply(adapted(), trained)
    assert np.abs(want - apply(adapted(), variables)).max() > 0.1
    config, merged = lora.merge_lora(adapted(), trained)
    assert config == PLAIN and not any("lora_" in name for name in flatten(merged))
    np.testing.assert_allclose(apply(config, merged), want, atol=1e-5)
    # Without adapters merging is the identity.
    again, same = lora.merge_lora(config, merged)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, same, merged)


def test_each_target_is_scaled_by_alpha_over_rank(trained):
    layers = trained["params"]["llm"]["layers"]
    _, merged = lora.merge_lora(adapted(), trained)
    for name in lora.TARGETS:
        product = np.einsum("lir,lro->lio", layers[f"lora_{name}_a"], layers[f"lora_{name}_b"])
        got = merged["params"]["llm"]["layers"][name]["kernel"] - layers[name]["kernel"]
        np.testing.assert_allclose(got, product * 5 / 3, atol=1e-5)


def test_a_rule_freezes_all_but_the_adapters(variables):
    """Configs use `llm/(?!.*lora).*`; B of every adapter has a gradient from the first step."""
    config = adapted(("query", "down"))
    flat = {
        name: leaf
        for name, leaf in flatten(variables["params"]).items()
        if "lora_" not in name or re.search("lora_(query|down)", name)
    }
    frozen = {n: x for n, x in flat.items() if re.fullmatch(r"llm/(?!.*lora).*", n)}
    train = {n: x for n, x in flat.items() if n not in frozen}
    assert set(train) == {f"llm/layers/lora_{n}_{h}" for n in ("query", "down") for h in "ab"}
    model = BaichuanAudio(config, remat="full")

    @jax.jit
    @jax.grad
    def grads(train):
        held = {"params": unflatten({**train, **frozen})}
        return jnp.sum(jax.nn.log_softmax(model.apply(held, IDS, method=logits))[..., 0])

    for name, grad in grads(train).items():
        assert np.asarray(grad).any() == name.endswith("_b"), name


@pytest.mark.parametrize("rank, targets", [(-1, ("query",)), (2, ()), (2, ("W_pack",))])
def test_bad_settings(rank, targets):
    with pytest.raises(ValueError, match="llm: lora_rank = .* lora_targets = .* each once"):
        LLMConfig(**SIZES, lora_rank=rank, lora_targets=targets)


def test_adapters_must_be_merged_before_export():
    whole = checkpoint_config(TINY)[1]
    assert format_baichuan_config(whole)["hidden_size"] == whole.llm.width
    adapted = dataclasses.replace(whole, llm=dataclasses.replace(whole.llm, lora_rank=2))
    with pytest.raises(ConversionError, match="cannot describe this model's .'llm'"):
        format_baichuan_config(adapted)
