"""Files of torch.save read without torch: equal to torch's own reading, and safe."""

from __future__ import annotations

import os
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch

from ba_jax.torch_files import TorchFileError, load_torch


@pytest.fixture(params=(True, False), ids=("zip", "legacy"))
def save(request, tmp_path):
    """Saves a value in one of the two formats; returns the path."""

    def save(value):
        path = tmp_path / "a.pt"
        torch.save(value, path, _use_new_zipfile_serialization=request.param)
        return path

    return save


def test_nested_containers_and_scalars(save):
    content, metadata = load_torch(save({"step": 3, "names": ["a", ("b", 1.5)], "none": None}))
    assert content == {"step": 3, "names": ["a", ["b", 1.5]], "none": None} and metadata is None


def test_state_dicts_keep_their_metadata(save):
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    content, metadata = load_torch(save(state))
    assert list(content) == list(state) and metadata == state._metadata
    for name, tensor in state.items():
        np.testing.assert_array_equal(content[name], tensor.numpy())


def test_views_types_and_parameters(save):
    whole = torch.arange(24).reshape(4, 6)
    tensors = [whole.T, whole[1:3, 2], whole.half(), torch.tensor(2.5), whole.bfloat16()]
    path = save([*tensors, torch.nn.Parameter(torch.ones(2)), torch.zeros(0, 3)])
    transposed, part, half, scalar, brain, parameter, empty = load_torch(path)[0]
    np.testing.assert_array_equal(transposed, whole.numpy().T)
    np.testing.assert_array_equal(part, [8, 14])
    assert half.dtype == np.float16 and scalar == 2.5 and brain.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(brain.astype(int), whole.numpy())
    np.testing.assert_array_equal(parameter, [1, 1])
    assert empty.shape == (0, 3)


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def test_a_file_that_asks_for_code_is_refused_unrun(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TorchFileError, match="a.pt: refused.*asks for posix.system"):
        load_torch(save({"model_state": Attack()}))
    assert not (tmp_path / "attacked").exists()


def test_other_tensors_are_refused(save):
    with pytest.raises(TorchFileError, match="asks for torch._utils._rebuild_sparse_tensor"):
        load_torch(save({"a": torch.eye(3).to_sparse()}))


@pytest.mark.parametrize("data", [b"", b"text", pickle.dumps({"a": 1}), pickle.dumps(1 << 70)])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "other.pt").write_bytes(data)
    with pytest.raises(TorchFileError, match="other.pt: .*not a torch file"):
        load_torch(tmp_path / "other.pt")


def test_damaged_large_and_missing_files_are_refused(save, tmp_path):
    path = save({"a": torch.arange(1000)})
    with pytest.raises(TorchFileError, match="expected a torch pickle under 9"):
        load_torch(path, max_bytes=9)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(TorchFileError, match="truncated or not a torch file"):
        load_torch(path)
    with pytest.raises(TorchFileError, match="gone.pt: no such file"):
        load_torch(tmp_path / "gone.pt")
