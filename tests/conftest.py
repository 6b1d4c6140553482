"""Settings shared by all tests: CPU, no implicit rank promotion, a persistent compilation cache.

They are environment variables, so that JAX reads them when a test first imports it and the
command lines that tests start as subprocesses inherit them.
"""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import signal

import hypothesis

ROOT = pathlib.Path(__file__).resolve().parent.parent

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# Most of the time goes into the compiler. tests/parity and the plans compile with optimisations.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # One LLVM module for a program instead of one MLIR pipeline for each fusion: two fifths of the
    # CPU time of tests/unit/stages/test_lm.py. Later versions have no such flag and refuse it.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# The background jobs of a shell ignore SIGINT, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tracing makes many objects, little garbage: 6 % of the CPU time of unit/stages/test_lm.py.
gc.set_threshold(100_000, 20, 100)

# The same examples in every run; compile time must not count against an example's deadline.
hypothesis.settings.register_profile("ba_jax", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ba_jax")

# launch/test.sh installs PyTorch unless told otherwise (EXTRAS=test).
collect_ignore = []
if importlib.util.find_spec("torch") is None:
    collect_ignore = [
        str(path.relative_to(ROOT / "tests"))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"^import torch$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def pytest_terminal_summary(terminalreporter):
    if collect_ignore:
        terminalreporter.write_line(
            f"PyTorch is not installed: {len(collect_ignore)} files that compare with it left out"
        )
