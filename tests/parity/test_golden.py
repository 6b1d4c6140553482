"""The imported model against the PyTorch reference's numbers, key by key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ba_jax.convert import verify
from ba_jax.convert.engine import ConversionError

DATA = Path(__file__).resolve().parent.parent / "data"
GOLDEN = DATA / "tiny" / "golden.npz"


def test_every_key_of_the_tiny_golden(tiny_checkpoint):
    golden = verify.read_golden(GOLDEN)
    results = verify.verify_model(tiny_checkpoint, golden)
    table = verify.format_results(results)
    assert [r.key for r in results] == list(golden)
    assert not [r for r in results if r.status == "fail"], table
    compared = {r.key for r in results if r.status == "pass"}
    assert set(golden) - compared == verify.INPUTS | verify.UNUSED, table
    assert len(compared) == 34
    for r in results:
        if r.status == "pass" and golden[r.key].dtype.kind == "i":
            assert r.max_abs == 0, r
        elif r.status == "pass":
            assert r.max_rel < 1e-4 and np.prod(r.shape) > 0, r


def test_every_key_of_the_front_end():
    golden = verify.read_golden(DATA / "frontend.npz")
    results = verify.verify_frontend(golden)
    assert [r.status for r in results].count("pass") == 7, verify.format_results(results)
    assert not [r for r in results if r.status == "fail"], verify.format_results(results)


def test_a_changed_golden_fails_with_an_exit_code(tiny_checkpoint, tmp_path, capsys):
    """One value off by more than 1e-4 of the peak, one wrong integer, one unknown key."""
    golden = {k: v.copy() for k, v in verify.read_golden(GOLDEN).items()}
    keep = ("text_ids", "text_logits", "codes", "bridge_len", "dequantized", "decoder_in")
    golden = {k: golden[k] for k in keep}
    golden["text_logits"][0, 3, 5] += 2e-4 * np.abs(golden["text_logits"]).max()
    golden["surprise"] = np.zeros(3)
    path = tmp_path / "golden.npz"
    np.savez(path, **golden)
    arguments = ["--checkpoint", str(tiny_checkpoint), "--golden", str(path)]
    assert verify.main(arguments) == 1
    status = {}
    for line in capsys.readouterr().out.splitlines()[1:-1]:
        status[line.split()[0]] = line
    assert "fail" in status["text_logits"] and "pass" in status["dequantized"]
    assert "no part of the model computes this key" in status["surprise"]
    # Its inputs are not in the file.
    assert "fail: needs the keys ['mel'" in status["codes"]


def test_a_reference_folder_is_imported_first(tmp_path, capsys):
    golden = verify.read_golden(GOLDEN)
    np.savez(tmp_path / "golden.npz", **{k: golden[k] for k in ("text_ids", "text_logits")})
    folder, file = str(DATA / "tiny"), str(tmp_path / "golden.npz")
    assert verify.main(["--checkpoint", folder, "--golden", file]) == 0
    assert "1 pass, 0 fail, 1 input" in capsys.readouterr().out


def test_integers_must_be_equal():
    result = verify.compare("codes", np.array([1, 2, 3]), np.array([1, 2, 4]), 1.0)
    assert result.status == "fail" and result.max_abs == 1
    assert verify.compare("x", np.array([np.nan]), np.array([1.0]), 1.0).status == "fail"
    assert verify.compare("x", np.zeros((2, 1)), np.zeros((1, 2)), 1.0).status == "fail"


def test_unreadable_goldens_are_errors(tmp_path):
    with pytest.raises(ConversionError, match="no such file"):
        verify.read_golden(tmp_path / "none.npz")
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ConversionError, match=r"bad.npz: not a readable .npz"):
        verify.read_golden(bad)
