"""Files of torch.save read without torch: equal to torch's own reading, and safe."""

from __future__ import annotations

import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from ba_jax import torch_files
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


def test_an_expanded_tensor_takes_no_memory(save):
    (wide,), _ = load_torch(save([torch.arange(3.0).expand(1 << 40, 3)]))
    assert wide.shape == (1 << 40, 3) and wide[-1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (-1, (1,), (1,)),
        (-6, (6,), (1,)),
        (0, (2,), (-1,)),
        (1, (6,), (1,)),
        (0, (7,), (1,)),
        (0, (2, 2), (1, 5)),
        (0, (-2,), (1,)),
        (1 << 62, (1,), (1,)),
        (0, (1 << 62,), (1,)),
        (0, ("a",), (1,)),
        (0.5, (1,), (1,)),
    ],
)
def test_views_outside_their_storage_are_refused(offset, shape, strides):
    tensor = torch_files._StoredTensor(("0", np.dtype("<f4")), offset, shape, strides)
    with pytest.raises((ValueError, TypeError, OverflowError)):
        torch_files._resolve([tensor], {"0": bytes(24)}, {})


def test_small_files_that_grow_large_are_refused(tmp_path):
    nested = []
    for _ in range(60):  # 2**60 lists, if each were followed
        nested = [nested, nested]
    torch.save(nested, tmp_path / "nested.pt")
    assert len(load_torch(tmp_path / "nested.pt")[0]) == 2
    torch.save(torch.zeros(1 << 20), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old:
        with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
    with pytest.raises(TorchFileError, match=r"b.pt: \d+ bytes, .*expands to 4\d{6} bytes"):
        load_torch(tmp_path / "b.pt")


@pytest.mark.parametrize(
    "head", [b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>"]
)
def test_what_stands_for_a_download_is_named(tmp_path, head):
    (tmp_path / "a.pt").write_bytes(head)
    with pytest.raises(TorchFileError, match="a pointer of git-lfs|a web page"):
        load_torch(tmp_path / "a.pt")
    (tmp_path / "b.pt").symlink_to("gone")
    with pytest.raises(TorchFileError, match="b.pt: a link to gone, which is no file"):
        load_torch(tmp_path / "b.pt")


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
