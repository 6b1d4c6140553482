"""Names under the prefixes of wrappers and training loops."""

from __future__ import annotations

import pytest

from ba_jax.convert.names import release_names

EXPECTED = {
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
}
LEFT_OUT = ("model.visual_model.",)


@pytest.mark.parametrize(
    "rename",
    [
        str,
        "module.{}".format,
        "_orig_mod.{}".format,
        "module._orig_mod.{}".format,
        "_orig_mod.module.{}".format,
        "model.{}".format,
        "ema.{}".format,
        "ema_model.module.{}".format,
        "base_model.model.{}".format,
        "language_model.{}".format,
        "state_dict.{}".format,
        lambda name: name.removeprefix("model."),
        lambda name: f"module.{name.removeprefix('model.')}",
        lambda name: f"language_model.{name.removeprefix('model.')}",
        lambda name: name.replace("model.", "model._orig_mod."),
        lambda name: name.replace("model.", "model.language_model.", 1),
        lambda name: name.replace(".mlp", "._fsdp_wrapped_module._checkpoint_wrapped_module.mlp"),
    ],
)
def test_prefixes_are_understood(rename):
    expected = {*EXPECTED, "model.visual_model.patch.weight"}
    names = {rename(name): name for name in expected}
    assert release_names(names, EXPECTED, LEFT_OUT) == names


@pytest.mark.parametrize(
    "name",
    [
        "rotary.inv_freq",
        "model.layers.2.mlp.up_proj.weight",
        "module.model.layers.2.mlp.up_proj.weight",
        "weight",
        "",
        ".",
    ],
)
def test_other_names_stay(name):
    names = release_names([*EXPECTED, name], EXPECTED)
    assert names == {known: known for known in (*EXPECTED, name)}


def test_two_copies_get_the_same_names():
    names = [f"{copy}.{name}" for copy in ("student", "teacher") for name in EXPECTED]
    assert sorted(release_names(names, EXPECTED).values()) == sorted([*EXPECTED] * 2)
    names = [*EXPECTED, *(f"ema.{name}" for name in EXPECTED)]
    assert sorted(release_names(names, EXPECTED).values()) == sorted([*EXPECTED] * 2)
