"""Vocoder files: names, pickles that are damaged, and pickles that would run code."""

import os
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

from ba_jax.convert.sources import open_vocoder
from ba_jax.convert.torch_pickle import load_state_dict, save_state_dict
from tests.unit.convert.helpers import assert_refused

STATE = {
    "conv_pre.weight_g": torch.randn(4, 1, 1),
    "conv_pre.weight_v": torch.randn(4, 3, 7),
    "conv_pre.bias": torch.randn(4),
    "resblocks.0.activations1.0.alpha": torch.randn(4).bfloat16(),
}


def refused(path, *words):
    assert_refused(lambda: open_vocoder(path), path, *words)


def renamed(name):
    """The newer naming of weight norm, as the whole GAN holds it."""
    name = name.replace("weight_g", "parametrizations.weight.original0")
    return "generator." + name.replace("weight_v", "parametrizations.weight.original1")


@pytest.mark.parametrize("rename", [str, renamed, lambda name: f"module.{renamed(name)}"])
def test_both_namings_give_the_same_tensors(tmp_path, rename):
    state = {rename(name): tensor for name, tensor in STATE.items()}
    torch.save(state, tmp_path / "hift.pt")
    source = open_vocoder(tmp_path / "hift.pt")
    assert list(source.tensors) == list(STATE)
    assert source.original == dict(zip(STATE, state, strict=True))
    for name, tensor in STATE.items():
        got = source.read(name)
        assert got.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(got.astype(np.float32), tensor.float().numpy())
    np.testing.assert_array_equal(
        source.read("conv_pre.weight_v", 1, 3), STATE["conv_pre.weight_v"][1:3].numpy()
    )


def test_saved_pickles_equal_the_originals(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).bfloat16()
    torch.save(module.state_dict(), tmp_path / "a.pt")
    arrays, metadata = load_state_dict(tmp_path / "a.pt")
    assert arrays["0.weight"].dtype == ml_dtypes.bfloat16
    save_state_dict(tmp_path / "b.pt", arrays.items(), metadata)
    got = torch.load(tmp_path / "b.pt", weights_only=True)
    assert list(got) == list(module.state_dict())
    assert got._metadata == module.state_dict()._metadata
    for name, tensor in module.state_dict().items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor)


def test_both_namings_at_once(tmp_path):
    state = {"ups.0.weight_g": torch.ones(1), renamed("ups.0.weight_g"): torch.ones(1)}
    torch.save(state, tmp_path / "hift.pt")
    refused(
        tmp_path / "hift.pt",
        "duplicate tensors, expected one copy: ups.0.weight_g",
        "generator.ups.0.parametrizations.weight.original0",
    )


class Planted:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("form", ["zip", "plain", "nested"])
def test_planted_pickle_does_not_run(tmp_path, form):
    planted, path = tmp_path / "planted", tmp_path / "hift.pt"
    if form == "zip":
        torch.save({"conv_pre.bias": Planted(planted)}, path)
    elif form == "nested":
        torch.save({**STATE, "more": [{"deep": Planted(planted)}]}, path)
    else:
        path.write_bytes(pickle.dumps(Planted(planted), protocol=2))
    refused(path, "refused", "mkdir")
    assert not planted.exists()
    # The attack works on a loader that trusts the file.
    torch.load(path, weights_only=False) if form != "plain" else pickle.loads(path.read_bytes())
    assert planted.exists()


def test_environment_cannot_switch_safety_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"a": Planted(tmp_path / "planted")}, tmp_path / "hift.pt")
    refused(tmp_path / "hift.pt", "refused")
    assert not (tmp_path / "planted").exists()


def test_truncated_zip(tmp_path):
    path = tmp_path / "hift.pt"
    torch.save(STATE, path)
    data = path.read_bytes()
    for size in (len(data) // 2, len(data) - 5, 100, 3, 0):
        path.write_bytes(data[:size])
        refused(path)


def test_garbage(tmp_path):
    path = tmp_path / "hift.pt"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    refused(path)
    refused(tmp_path / "nowhere.pt", "no such file")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ([torch.ones(1)], "holds a list, expected a dict"),
        (torch.ones(1), "holds a Tensor, expected a dict"),
        ({"a": torch.ones(1), "step": 3}, "'step' is a int, expected a tensor"),
        ({"a": None}, "'a' is a NoneType"),
        ({"state": {"a": torch.ones(1)}}, "'state' is a dict"),
        ({3: torch.ones(1)}, "3 is a Tensor"),
        ({"a": torch.eye(3).to_sparse()}, "_rebuild_sparse_tensor"),
    ],
)
def test_not_a_state_dict(tmp_path, value, word):
    torch.save(value, tmp_path / "hift.pt")
    refused(tmp_path / "hift.pt", word)


def test_file_that_is_too_large(tmp_path):
    path = tmp_path / "hift.pt"
    with open(path, "wb") as file:
        file.truncate(3 << 30)  # sparse
    refused(path, str(3 << 30))


def test_only_writing_needs_torch(tmp_path, monkeypatch):
    torch.save(STATE, tmp_path / "hift.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    arrays, metadata = load_state_dict(tmp_path / "hift.pt")
    assert list(arrays) == list(STATE)
    assert_refused(
        lambda: save_state_dict(tmp_path / "out.pt", arrays.items(), metadata),
        "needs torch",
        "ba_jax[convert]",
    )
