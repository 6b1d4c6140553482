"""Folders as people have them: prefixes, tied weights, files that are missing or no download."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from ba_jax.convert import sources
from ba_jax.convert.safetensors_io import INDEX_FILE, SINGLE_FILE, SafetensorsFile
from tests.unit.convert.helpers import (
    QWEN2,
    TINY,
    assert_refused,
    qwen2_arrays,
    run,
    user_error,
    write_folder,
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def arrays():
    return qwen2_arrays()


def exported(tmp_path):
    """Weights of `tmp_path / "source"` after import and export."""
    assert run("--source", tmp_path / "source", "--out", tmp_path / "in") == 0
    assert run("export", "--checkpoint", tmp_path / "in", "--out", tmp_path / "again") == 0
    file = SafetensorsFile(tmp_path / "again" / SINGLE_FILE)
    return {name: file.read(name) for name in file.tensors}


def test_weights_under_a_prefix_are_exported_without_it(tmp_path, arrays, capsys):
    renamed = {f"module._orig_mod.{name}": array for name, array in arrays.items()}
    write_folder(tmp_path / "source", QWEN2, renamed)
    again = exported(tmp_path)
    assert again.keys() == arrays.keys()
    assert all(np.array_equal(again[name], array) for name, array in arrays.items())
    line = f"27 tensors renamed, as `module._orig_mod.{EMBEDDING} -> {EMBEDDING}`."
    assert line in capsys.readouterr().out.splitlines()


def test_names_of_another_model_take_a_line(tmp_path, arrays, capsys):
    folder = write_folder(
        tmp_path / "x", QWEN2, {n.replace(".", "/"): a for n, a in arrays.items()}
    )
    message = user_error(capsys, "--source", folder, "--out", tmp_path / "out")
    word = f"tensors: model/embed_tokens/weight and others, expected {EMBEDDING} and others"
    assert word in message and len(message.splitlines()) == 1
    twice = arrays | {f"ema.{name}": array for name, array in arrays.items()}
    folder = write_folder(tmp_path / "y", QWEN2, twice)
    word = (
        f"27 duplicate tensors, expected one copy: {EMBEDDING} as {EMBEDDING} and ema.{EMBEDDING}"
    )
    assert_refused(lambda: sources.open_source(folder), folder, word)


def test_a_tied_head_is_left_out_if_it_is_equal(tmp_path, capsys):
    tied = qwen2_arrays(tie_word_embeddings=True)
    tied[HEAD] = tied[EMBEDDING]
    values = QWEN2 | {"tie_word_embeddings": True}
    folder = write_folder(tmp_path / "source", values, tied)
    assert exported(tmp_path).keys() == tied.keys()
    names = [SINGLE_FILE, "config.json"]
    assert [(tmp_path / "again" / n).read_bytes() for n in names] == [
        (folder / n).read_bytes() for n in names
    ]
    changed = tied[HEAD].copy()
    changed[-1, -1] += 1
    for i, head in enumerate((changed, tied[HEAD][:-1], tied[HEAD].astype(np.float16))):
        folder = write_folder(tmp_path / f"faulty{i}", values, tied | {HEAD: head})
        message = user_error(capsys, "--source", folder, "--out", tmp_path / "out")
        assert f"{folder}: {HEAD} is not equal to {EMBEDDING}" in message
    del tied[HEAD]
    folder = write_folder(tmp_path / "untied", QWEN2, tied)
    message = user_error(capsys, "--source", folder, "--out", tmp_path / "out")
    assert message == f"ba_jax.convert: {folder}: missing tensor {HEAD} (99, 32)\n"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["hift.pt"], "vocoder"),
        (["hift.safetensors", "._hift.safetensors", "cosyvoice2.yaml", "flow.pt"], "vocoder"),
        (["model.bin", "config.json", "tokenizer.json"], "ctranslate2"),
        (["hift.pt", "model-00001-of-00002.safetensors"], None),
        (["hift.pt", INDEX_FILE], None),
        (["hift.pt", "pytorch_model.bin"], None),
        (["hift.pt", "tokenizer.json"], None),
        (["hift.pt", "modeling_omni.py"], None),
        (["model.safetensors"], None),
    ],
)
def test_a_model_without_its_config_is_no_vocoder(tmp_path, files, kind):
    for name in files:
        (tmp_path / name).touch()
    if kind is not None:
        assert sources.detect_kind(tmp_path) == kind
    else:
        words = (tmp_path / "config.json", "no such file", files[-1], "--kind vocoder")
        assert_refused(lambda: sources.detect_kind(tmp_path), *words)


def test_links_of_a_cache(tmp_path):
    """Hugging Face's cache keeps links, whose targets can be lost."""
    blobs, folder = tmp_path / "m" / "blobs", tmp_path / "m" / "snapshots" / "3f2a"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    for number, name in enumerate(os.listdir(TINY)):
        shutil.copyfile(TINY / name, blobs / str(number))
        (folder / name).symlink_to(f"../../blobs/{number}")
    assert [part.config.components[-1] for part in sources.open_source(folder).parts] == [
        "audio_head",
        "vocoder",
    ]
    assert_refused(lambda: sources.open_source(tmp_path / "m"), f"; did you mean {folder}?")
    for name in ("hift.pt", "config.json"):
        (folder / name).resolve().unlink()
        word = f"{folder / name}: a link to ../../blobs/"
        assert_refused(lambda: sources.open_source(folder), word, "which is no file")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"
PAGE = b"\n<!DOCTYPE html>\n<html><body>404</body></html>"


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "not valid JSON"),
        (b'{"model_type": "qwen2"', "not valid JSON"),
        (b"[]", "is a list, expected an object"),
        (b"null", "expected an object"),
        (b'{"model_type": "qwen2", "model_type": "omni"}', "duplicate names ['model_type']"),
        (b'{"model_type": ["qwen2"]}', "model_type is ['qwen2'], expected one of"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"{" + b'"a": {' * 100_000, "not valid JSON"),
        (POINTER, "a pointer of git-lfs"),
        (PAGE, "a web page"),
        (b"Entry not found", "the answer of a server"),
    ],
)
def test_damaged_config_files(tmp_path, data, word):
    (tmp_path / "config.json").write_bytes(data)
    message = assert_refused(lambda: sources.open_source(tmp_path), tmp_path / "config.json", word)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_damage(tmp_path, arrays, codec):
    folder = write_folder(tmp_path / "x", QWEN2, arrays)
    (folder / "config.json").write_text(json.dumps(QWEN2), codec)
    assert sources.open_source(folder).kind == "qwen2"


@pytest.mark.parametrize(("data", "word"), [(POINTER, "git lfs pull"), (PAGE, "a web page")])
@pytest.mark.parametrize("name", [SINGLE_FILE, "hift.pt", "model.bin"])
def test_weights_that_are_no_download(tmp_path, name, data, word):
    (tmp_path / "config.json").write_text(json.dumps(QWEN2))
    (tmp_path / name).write_bytes(data)
    kind = {"hift.pt": "vocoder"}.get(name)
    assert_refused(lambda: sources.open_source(tmp_path, kind), tmp_path / name, word)
