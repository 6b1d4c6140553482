"""Join runs and export the result, through the command's `main`."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ba_jax.checkpoints import arrays
from ba_jax.checkpoints.manager import Checkpoints
from ba_jax.config import from_mapping, to_mapping
from ba_jax.convert import join
from ba_jax.convert.safetensors_io import SafetensorsFolder
from ba_jax.convert.torch_pickle import load_state_dict
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.models.lora import merge_lora
from ba_jax.tree import flatten, unflatten
from configs import models
from tests.unit.convert.helpers import TINY, run, user_error

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TOKENIZER = ("audio_encoder", "vq_bridge", "audio_decoder")
FLOW = ("flow_prenet", "flow_unet")
LANGUAGE = ("llm", "audio_embed", "audio_head")
LORA = {"lora_rank": 3, "lora_alpha": 5.0, "lora_targets": ("query", "down")}


def model_config(**llm):
    values = models.get_config("tiny").to_dict()
    values["llm"] |= llm
    return values


def make_run(workdir, variables, model, step=3, **more):
    """Write a WORKDIR like `ba_jax.train`, with its latest checkpoint at `step`."""
    flat = flatten(variables) | {f"params/{n}/w": a for n, a in more.items()}
    with Checkpoints(workdir) as saved:
        train = {"step": np.asarray(step)}
        saved.save(step, unflatten(flat), train, {"stage": "any"})
    model = to_mapping(from_mapping(BaichuanAudioConfig, model))
    config = {"model": model, "stage": {"name": "any"}, "seed": 0}
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


def only(variables, components):
    """Select the variables of these components, as NumPy."""
    flat = flatten(variables)
    kept = {p: np.asarray(a) for p, a in flat.items() if p.split("/")[1] in components}
    return unflatten(kept)


def changed(variables, path, change):
    flat = flatten(variables)
    return unflatten(flat | {path: change(flat[path])})


@pytest.fixture(scope="module")
def variables(imported):
    return arrays.load_variables(imported)


@pytest.fixture(scope="module")
def runs(variables, tmp_path_factory):
    """WORKDIRs with the golden checkpoint's components and modules that only serve training."""
    root = tmp_path_factory.mktemp("runs")
    model, helper = model_config(), np.ones(2, np.float32)
    other = {"llm": {"embedding": np.zeros((9, 4), np.float32)}}
    # The text loss goes through another language model; its projection is of no use afterwards.
    tokenizer = only(variables, TOKENIZER)
    tokenizer["params"] |= other
    values = model_config(vocab_size=9, width=4)
    make_run(root / "tokenizer", tokenizer, values, text_projection=helper)
    # The run holds the frozen tokenizer too.
    make_run(root / "flow", only(variables, TOKENIZER + FLOW), model)
    make_run(root / "vocoder", only(variables, ("vocoder",)), model, discriminators=helper)
    make_run(root / "stage2", only(variables, LANGUAGE), model)
    return root


@pytest.fixture
def all_runs(runs):
    return ",".join(str(runs / name) for name in ("tokenizer", "flow", "vocoder", "stage2"))


def writable(folder):
    os.chmod(folder, 0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def test_joined_runs_export_like_the_original(imported, runs, all_runs, tmp_path, capsys):
    joined, scratch = tmp_path / "joined", tmp_path / "scratch"
    assert run("join", "--checkpoint", all_runs, "--out", joined) == 0
    printed = capsys.readouterr().out
    assert f"audio_encoder  from {runs / 'flow'}\n" in printed
    assert f"audio_head     from {runs / 'stage2'}\n" in printed
    assert f"left out of {runs / 'tokenizer'}: text_projection\n" in printed
    assert f"left out of {runs / 'vocoder'}: discriminators\n" in printed
    stored = arrays.Reader(joined).arrays
    assert stored.keys() == arrays.Reader(imported).arrays.keys()

    shutil.copytree(imported, scratch)
    shutil.rmtree(scratch / "source")
    limit = ("--max-shard-bytes", 1_500_000, "--vocoder-format", "safetensors")
    for name in ("joined", "scratch"):
        folder, out = tmp_path / name, tmp_path / f"{name}-out"
        assert run("export", "--checkpoint", folder, "--out", out, *limit) == 0
    files = sorted(p.name for p in (tmp_path / "scratch-out").iterdir() if "model" in p.name)
    assert len(files) == 5  # shards and their index
    for name in (*files, "hift.safetensors", "vocoder_config.json"):
        ours, theirs = (tmp_path / f"{n}-out" / name for n in ("joined", "scratch"))
        if name == "vocoder_config.json":
            ours, theirs = json.loads(ours.read_text()), json.loads(theirs.read_text())
            assert theirs.items() <= ours.items()
        else:
            assert ours.read_bytes() == theirs.read_bytes(), name
    # The exported folder is a model's folder.
    assert run("--source", tmp_path / "joined-out", "--out", tmp_path / "back") == 0


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="writes hift.pt by torch")
def test_layout_vision_and_text_files_come_from_a_release(all_runs, tmp_path, capsys):
    joined, base, out = tmp_path / "joined", tmp_path / "base", tmp_path / "out"
    writable(Path(shutil.copytree(TINY, base, ignore=shutil.ignore_patterns("golden.npz"))))
    vision = {"model.visual_model.patch.weight": np.arange(6, dtype=np.float16)}
    safetensors.numpy.save_file(vision, base / "model-vision.safetensors", {"format": "pt"})
    index = json.loads((base / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(vision, "model-vision.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "tokenizer.json").write_text("{}")
    (base / "modeling_omni.py").write_text("pass\n")
    (base / "rubbish.bin").write_bytes(b"1")
    assert run("join", "--checkpoint", all_runs, "--out", joined) == 0
    assert run("export", "--checkpoint", joined, "--out", out, "--base", base) == 0
    assert f"note: from {base}: modeling_omni.py, tokenizer.json\n" in capsys.readouterr().out
    names = sorted(path.name for path in base.iterdir())
    names.remove("rubbish.bin")
    assert sorted(path.name for path in out.iterdir()) == names
    for name in (
        *SHARDS,
        "model-vision.safetensors",
        "config.json",
        "model.safetensors.index.json",
    ):
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    ours, theirs = (load_state_dict(folder / "hift.pt")[0] for folder in (out, base))
    assert all(np.array_equal(ours[n], theirs[n]) for n in theirs) and len(ours) == len(theirs)

    values = json.loads((base / "config.json").read_text()) | {"vocab_size": 700}
    (base / "config.json").write_text(json.dumps(values))
    error = user_error(capsys, "export", "--checkpoint", joined, "--out", out / "x", "--base", base)
    assert f"{base / 'config.json'}: describes other llm than {joined / 'config.json'}" in error


def test_a_release_fills_what_a_partial_checkpoint_lacks(runs, tmp_path, capsys):
    joined, out = tmp_path / "joined", tmp_path / "out"
    stage2 = runs / "stage2" / "checkpoints" / "3"
    assert run("join", "--checkpoint", stage2, "--out", joined, "--partial") == 0
    assert "flow_unet      missing\n" in capsys.readouterr().out
    assert run("export", "--checkpoint", joined, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "note: not in the checkpoint: audio_encoder, vq_bridge, audio_decoder, flow_" in printed
    assert "no vision, text tokenizer or code; --base adds those" in printed
    alone = SafetensorsFolder(out).tensors
    assert 0 < len(alone) < len(SafetensorsFolder(TINY).tensors)
    assert not any("visual" in n or "audio_decoder" in n for n in alone)
    assert not (out / "hift.pt").exists() and not (out / "vocoder_config.json").exists()
    base = ("--base", TINY, "--overwrite")
    assert run("export", "--checkpoint", joined, "--out", out, *base) == 0
    for name in SHARDS:
        assert (out / name).read_bytes() == (TINY / name).read_bytes()


def test_the_last_run_wins_and_parameters_are_cast(runs, variables, tmp_path):
    flat = flatten(variables)
    path = next(p for p in flat if p.startswith("params/audio_head/"))
    later = changed(only(variables, ("audio_head",)), path, lambda a: a + a)
    make_run(tmp_path / "later", later, model_config())
    both = f"{runs / 'flow'},{runs / 'stage2'},{tmp_path / 'later'}"
    out = tmp_path / "out"
    flags = ("--partial", "--dtype", "float32")
    assert run("join", "--checkpoint", both, "--out", out, *flags) == 0
    reader = arrays.Reader(out)
    expected = 2 * np.asarray(flat[path], np.float32)
    np.testing.assert_array_equal(reader.read(path), expected)
    assert reader.dtype(path) == np.float32
    assert reader.dtype("codebook/vq_bridge/embed_0") == ml_dtypes.bfloat16
    embedding = "params/llm/embedding"
    np.testing.assert_array_equal(reader.read(embedding), np.asarray(flat[embedding], np.float32))


@pytest.fixture(scope="module")
def adapted(variables):
    """The language model in float32 with adapters away from zero, and its config."""
    rng = np.random.default_rng(0)
    parts = flatten(only(variables, LANGUAGE))
    flat = {path: np.asarray(a, np.float32) for path, a in parts.items()}
    layers = "params/llm/layers"
    for name in LORA["lora_targets"]:
        depth, width, features = flat[f"{layers}/{name}/kernel"].shape
        for half, shape in (("a", (width, 3)), ("b", (3, features))):
            flat[f"{layers}/lora_{name}_{half}"] = rng.normal(size=(depth, *shape)).astype("f4")
    return unflatten(flat), model_config(**LORA)


@pytest.mark.parametrize("piece_bytes", [64 << 20, 20_000])
def test_adapters_are_merged_in_pieces(adapted, tmp_path, monkeypatch, capsys, piece_bytes):
    variables, model = adapted
    workdir, out = make_run(tmp_path / "sft", variables, model), tmp_path / "out"
    monkeypatch.setattr(arrays, "MAX_CHUNK_BYTES", piece_bytes)
    monkeypatch.setattr(arrays, "SMALL_BYTES", 0)
    assert run("join", "--checkpoint", workdir, "--out", out, "--partial") == 0
    assert f"merged the adapters of {workdir}" in capsys.readouterr().out
    got = flatten(arrays.load_variables(out))
    _, expected = merge_lora(from_mapping(BaichuanAudioConfig, model), variables)
    expected = flatten(expected)
    assert got.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(got[path], array, rtol=1e-6, atol=1e-6, err_msg=path)
    kernel = "params/llm/layers/query/kernel"
    assert np.abs(got[kernel] - flatten(variables)[kernel]).max() > 0.1
    chunk = arrays.Reader(out).arrays[kernel].chunk_layout.read_chunk.shape
    assert np.prod(chunk) * 4 <= piece_bytes
    assert (chunk != got[kernel].shape) == (piece_bytes == 20_000)
    # The release's config.json knows no adapters.
    assert run("export", "--checkpoint", out, "--out", tmp_path / "hf") == 0


def test_imports_are_joined_too(imported, runs, tmp_path):
    """The vocoder of a release is joined with runs."""
    voice = tmp_path / "voice"
    assert run("--source", TINY / "hift.pt", "--out", voice) == 0
    parts = ",".join(str(p) for p in (runs / "flow", runs / "stage2", voice))
    assert run("join", "--checkpoint", parts, "--out", tmp_path / "out") == 0
    got, whole = (arrays.Reader(folder) for folder in (tmp_path / "out", imported))
    assert got.arrays.keys() == whole.arrays.keys()
    for path in whole.arrays:
        assert got.read(path).tobytes() == whole.read(path).tobytes(), path


def test_missing_components_are_named(runs, tmp_path, capsys):
    parts = f"{runs / 'flow'},{runs / 'stage2'}"
    error = user_error(capsys, "join", "--checkpoint", parts, "--out", tmp_path / "out")
    assert f"{runs / 'flow'}, {runs / 'stage2'}: none holds vocoder; --partial" in error
    assert not (tmp_path / "out").exists()
    lone = make_run(tmp_path / "lone", {}, model_config(), discriminators=np.ones(1))
    error = user_error(capsys, "join", "--checkpoint", lone, "--out", tmp_path / "o", "--partial")
    assert "none holds audio_encoder, vq_bridge" in error and "--partial" not in error


def test_runs_of_different_models_are_refused(runs, variables, tmp_path, capsys):
    join_ = ("join", "--out", tmp_path / "out", "--partial", "--checkpoint")
    # Sizes of a component that both hold must agree.
    values = model_config()
    values["audio_encoder"]["heads"] = 2
    other = make_run(tmp_path / "other", only(variables, TOKENIZER), values)
    error = user_error(capsys, *join_, f"{runs / 'tokenizer'},{other},{runs / 'stage2'}")
    assert f"audio_encoder.heads is 4 in {runs / 'tokenizer'}, 2 in {other}" in error
    # Codes that the language model does not know.
    values = model_config()
    for name in ("audio_embed", "audio_head"):
        values[name]["codebook_sizes"] = (64, 32)
    small = make_run(tmp_path / "small", only(variables, LANGUAGE), values)
    error = user_error(capsys, *join_, f"{runs / 'flow'},{small}")
    assert f"(vq_bridge), (64, 32) in {small} (audio_embed)" in error
    # The wrong order: the tokenizer's language model would win.
    error = user_error(capsys, *join_, f"{runs / 'stage2'},{runs / 'tokenizer'}")
    assert f"llm.width is 128 in {runs / 'stage2'}, 4 in {runs / 'tokenizer'}" in error
    # Heads that the release's config has no key for.
    values = model_config(width=16)
    values["audio_embed"]["width"] = 16
    values["audio_head"] |= {"width": 16, "head_dim": 8}
    odd = make_run(tmp_path / "odd", only(variables, ("flow_unet",)), values)
    assert "cannot describe this model: model.audio_head: width 16" in user_error(
        capsys, *join_, odd
    )
    assert not (tmp_path / "out").exists()


def test_a_run_that_contradicts_its_config_is_refused(variables, runs, tmp_path, capsys):
    join_ = ("join", "--out", tmp_path / "out", "--partial", "--checkpoint")
    wide = make_run(tmp_path / "wide", only(variables, LANGUAGE), model_config(ffn_width=200))
    error = user_error(capsys, *join_, wide)
    assert f"{wide / 'checkpoints' / '3' / 'weights'}: not the expected variables" in error
    assert "misshapen params/llm/layers/gate/kernel: expected (2, 128, 200)" in error
    # Adapters must not be lost because a config has none.
    extra = only(variables, LANGUAGE)
    extra["params"]["llm"]["layers"]["lora_query_a"] = np.ones((2, 128, 3))
    error = user_error(capsys, *join_, make_run(tmp_path / "extra", extra, model_config()))
    assert "holds params/llm/layers/lora_query_a, which its config does not describe" in error

    config = tmp_path / "extra" / "config.json"
    config.unlink()
    error = user_error(capsys, *join_, tmp_path / "extra")
    assert f"extra: no config.json in {tmp_path / 'extra' / 'checkpoints' / '3'} or" in error
    config.write_text(json.dumps({"stage": {}, "model": {"llm": {"width": "wide"}}}))
    error = user_error(capsys, *join_, tmp_path / "extra")
    assert f"{config}: model.llm: missing keys" in error
    error = user_error(capsys, *join_, tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'}: no such folder" in error
    inside = ("join", "--out", runs, "--overwrite", "--checkpoint", runs / "flow")
    assert f"{runs}: holds the run {runs / 'flow'}" in user_error(capsys, *inside)
    assert (runs / "flow" / "config.json").is_file()


def test_blocks_hold_whole_stored_chunks_and_parts_tile_them(monkeypatch):
    monkeypatch.setattr(arrays, "MAX_CHUNK_BYTES", 1000)
    # Small stored chunks are read together, ...
    assert join.read_block((6, 40, 10), (1, 5, 10), 4) == (1, 25, 10)
    # ... a large one once, and written in parts that divide it.
    assert join.read_block((6, 40, 10), (3, 40, 10), 4) == (3, 40, 10)
    assert join.write_chunk((3, 40, 10), 4) == (1, 20, 10)
    assert join.write_chunk((7, 1009), 4) == (1, 1)
    assert join.write_chunk((), 4) == () and join.read_block((), (), 4) == ()
