"""Host memory of a streamed write does not grow with the checkpoint."""

import json
import subprocess
import sys

import pytest

from benchmarks import convert_memory

# A stacked variable like the full model's feed-forward weights, transposed: 256 MiB in slices of
# 32 MiB; all limits are a thirty-second of the usual ones, and the source generates its rows.
SCRIPT = """
import json, sys
import jax, ml_dtypes, numpy as np
from ba_jax.checkpoints import arrays as checkpoint
from ba_jax.convert import engine, importer
from ba_jax.convert.engine import row
from tests.unit.checkpoints.small_checkpoint import lazy

checkpoint.MAX_CHUNK_BYTES, checkpoint.MAX_PENDING_BYTES = 2 << 20, 4 << 20
layers, rows, columns = 8, 8192, 2048
block = np.random.default_rng(0).standard_normal((rows, 64), np.float32)
block = np.tile(block.astype(ml_dtypes.bfloat16), (1, columns // 64))

class Source:
    label = "generated"
    tensors = {
        f"layers.{i}.weight": engine.TensorInfo((rows, columns), block.dtype)
        for i in range(layers)
    }

    def read(self, name, start=0, stop=None):
        return block[start:stop].copy()

table = [row("layers.{layer}.weight", "params/llm/kernel", "o i -> i o", stack=(("layer", 8),))]
shapes = {"params": {"llm": {"kernel": jax.ShapeDtypeStruct((layers, columns, rows), "float32")}}}
plan = engine.make_plan(table, Source(), shapes)
small = {"params": {"llm": {"x": lazy(np.ones(3))}}}
checkpoint.save_streamed(sys.argv[1] + "/small", small)
before = importer.peak_rss()
checkpoint.save_streamed(sys.argv[1] + "/weights", engine.lazy_variables(plan))
written = importer.peak_rss()
reader = checkpoint.Reader(sys.argv[1] + "/weights")
for parts in plan.placements.values():
    start = 0
    for piece in engine.source_rows(parts, reader):
        same = piece.view(np.uint16) == block[start : start + len(piece)].view(np.uint16)
        assert same.all()
        start += len(piece)
    assert start == rows
print(json.dumps({"before": before, "written": written, "read": importer.peak_rss()}))
"""


def test_memory_is_bounded_by_chunks_not_by_arrays(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], check=True, capture_output=True, text=True
    )
    peak = json.loads(done.stdout.splitlines()[-1])
    total = 256 << 20
    size = sum(path.stat().st_size for path in (tmp_path / "weights").rglob("*") if path.is_file())
    assert size >= total
    # Rows read and transposed, 4 MiB of pending writes, and TensorStore's buffers.
    assert peak["written"] - peak["before"] < total / 4, peak
    assert peak["read"] - peak["before"] < total / 4, peak


@pytest.mark.deep
def test_benchmark_runs_at_a_small_size(tmp_path, capsys):
    """Importing and exporting a generated bfloat16 checkpoint restores it."""
    assert convert_memory.main(["--work", str(tmp_path), "--size", "tiny", "--layers", "0"]) == 0
    out = capsys.readouterr().out
    assert "exported files are the generated ones" in out
    assert not list(tmp_path.iterdir())
