"""Measure host memory and speed of conversion on a generated checkpoint with the release's names.

    python -m benchmarks.convert_memory --work DIR [--size 7b] [--layers 4] [--dtype BF16]

Writes random weights of the given size (the release's tensors, fewer language-model layers, and a
stand-in for its vision weights) as shards, imports them in one process and exports them in another,
and prints peak resident memory, seconds and MB/s of each. Exits with 1 if a peak reaches
`--limit-gb` (3) or the exported files differ from the generated ones. It needs three times the
checkpoint's size on disk: 8 GB for 4 layers, 21 GB for the full 28 layers.
"""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ba_jax import cli
from ba_jax.config import from_mapping
from ba_jax.convert import engine, export, hf_config, tables
from ba_jax.convert.engine import TensorInfo
from ba_jax.convert.safetensors_io import DTYPES, INDEX_FILE, make_header, write_file
from ba_jax.models.baichuan_audio import BaichuanAudioConfig, variable_shapes
from configs.models import SIZES, get_config

VISION = TensorInfo((16, 1 << 20), DTYPES["BF16"])


def reference_config(size: str, layers: int | None) -> dict:
    """Make a config.json of the release's form with the sizes of `configs/models.py`."""
    sizes = get_config(size)
    sizes.llm.layers = layers or sizes.llm.layers
    return hf_config.format_baichuan_config(from_mapping(BaichuanAudioConfig, sizes))


def generate(folder: Path, values: dict, dtype: np.dtype, shard_bytes: int) -> int:
    """Write random weights as shards; return their bytes."""
    config = hf_config.parse_baichuan_config(values)
    placements = engine.expand(tables.rows_for(config), variable_shapes(config))
    infos = {
        name: TensorInfo(parts[0].source_shape, dtype) for name, parts in sorted(placements.items())
    }
    infos["model.visual_model.patch_embed.weight"] = VISION
    shards: list[dict[str, TensorInfo]] = [{}]
    for name, info in infos.items():
        if sum(i.nbytes for i in shards[-1].values()) + info.nbytes > shard_bytes and shards[-1]:
            shards.append({})
        shards[-1][name] = info
    rng = np.random.default_rng(0)
    block = rng.standard_normal(1 << 22, np.float32)

    def pieces(name: str):
        info = infos[name]
        values, missing = block.astype(info.dtype), info.nbytes // info.dtype.itemsize
        values = np.roll(values, int(rng.integers(len(values))))
        while missing:
            yield values[: min(missing, len(values))]
            missing -= min(missing, len(values))

    folder.mkdir(parents=True)
    weight_map = {}
    for i, shard in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, make_header(shard, {"format": "pt"}), shard, pieces)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(info.nbytes for info in infos.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    return total


def measure(arguments: list[str]) -> tuple[int, float]:
    """Run `python -m ba_jax.convert ...`; return peak resident bytes (VmHWM) and seconds."""
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(
        [sys.executable, "-m", "ba_jax.convert", *arguments], stdout=subprocess.DEVNULL
    )
    # The high-water mark only grows: the last sample before the process ends is its peak.
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        peak = max(peak, int(match[1]) * 1024 if match else 0)
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"convert {arguments} failed with exit code {process.returncode}")
    return peak, time.monotonic() - started


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser("benchmarks.convert_memory", __doc__.splitlines()[0])
    parser.add_argument("--work", type=cli.path, required=True, help="folder on a disk with room")
    parser.add_argument("--size", choices=SIZES, default="7b", help="size in configs/models.py")
    parser.add_argument(
        "--layers", type=cli.at_least(0), default=4, help="language-model layers; 0: all"
    )
    parser.add_argument("--dtype", choices=("BF16", "F16", "F32"), default="BF16")
    parser.add_argument("--limit-gb", type=cli.at_least(0.0), default=3.0)
    parser.add_argument("--keep", action="store_true", help="keep the written folders")
    args = parser.parse_args(argv)
    source, checkpoint, again = (args.work / n for n in ("source", "checkpoint", "exported"))
    for folder in (source, checkpoint, again):
        if folder.exists():
            raise SystemExit(f"{folder}: exists already, expected a new folder")
    try:
        values = reference_config(args.size, args.layers or None)
        started = time.monotonic()
        total = generate(source, values, DTYPES[args.dtype], export.DEFAULT_SHARD_BYTES)
        print(f"generated {total / 1e9:.2f} GB in {time.monotonic() - started:.0f} s")
        print(f"{'step':8s}{'peak RSS, MiB':>15s}{'seconds':>10s}{'MB/s':>8s}")
        ok = True
        for step, arguments in (
            ("import", ["--source", str(source), "--out", str(checkpoint)]),
            (
                "export",
                ["export", "--checkpoint", str(checkpoint), "--out", str(again)]
                + ["--base", str(source)],
            ),
        ):
            peak, seconds = measure(arguments)
            ok &= peak < args.limit_gb * 1e9
            print(f"{step:8s}{peak / 2**20:15.0f}{seconds:10.1f}{total / seconds / 1e6:8.0f}")
        names = sorted(path.name for path in source.iterdir())
        different = filecmp.cmpfiles(source, again, names, shallow=False)[1:]
        print("exported files are", "the generated ones" if not any(different) else different)
        return 0 if ok and not any(different) else 1
    finally:
        if not args.keep:
            for folder in (source, checkpoint, again):
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
