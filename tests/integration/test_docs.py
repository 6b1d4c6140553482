"""README and docs: commands run, or say why not; modules, configs, keys and links exist.

A fenced block of commands whose first line begins with `# Not run by a test:` is not run, but its
commands are checked like all others. docs/pods.md is run by test_launch, with --dry-run.
"""

from __future__ import annotations

import importlib
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from tests.processes import PATIENCE

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "# Not run by a test: "
TEST_COMMAND = "launch/test.sh"  # this run is part of it
COMPARED = "python -m ba_jax.convert verify --checkpoint "
"""Compares every part of the model, which tests/parity/test_golden.py does."""


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The fenced code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[list[str]]:
    """The words of each command of a block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def section(config, key: str):
    """The section of a config that holds a dotted key."""
    for name in key.split(".")[:-1]:
        config = config[name]
    return config


def all_commands() -> list[tuple[str, list[str]]]:
    return [(p.name, c) for p in PAGES for b in blocks(p, "bash") for c in commands(b)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_pages_commands_name_things_that_exist(page):
    for name, words in all_commands():
        if name != page.name:
            continue
        for script in (word for word in words if re.match(r"launch/\w+\.sh$", word)):
            assert (ROOT / script).exists(), script
        if words[:2] != ["python", "-m"]:
            continue
        module = words[2]
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
        for match in (re.match(r"--config=configs/(\w+)\.py:(\w+)", word) for word in words):
            if match is None:
                continue
            config = importlib.import_module(f"configs.{match[1]}").get_config(match[2])
            for word in words:
                if key := re.match(r"--config\.([\w.]+)=", word):
                    assert key[1].rsplit(".", 1)[-1] in section(config, key[1]), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_that_a_page_names_exist(page):
    """`section.key` and `--config.section.key` in running text, for the sections of a run."""
    from configs import common, eval, generate

    run = common.base("nano", "lm")
    sections = {name: run[name] for name in ("train", "optimizer", "mesh", "checkpoint", "init")}
    sections |= {"eval": eval.get_config("nano").eval}
    sections |= {"generate": generate.get_config("nano").generate}
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for name, key in re.findall(r"`(?:--config\.)?(\w+)\.([a-z_]+)[`=]", text):
        if name in sections and f"{name}.{key}" not in ("train.py", "generate.py", "eval.py"):
            assert key in sections[name], f"{name}.{key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_paths_of_a_page_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:ba_jax|configs|tests|launch|docs|notebooks)/[\w./]+)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path
    for path in re.findall(r"`(\w+/[\w/]+\.py)`", text):
        places = (ROOT / path, ROOT / "ba_jax" / path)
        assert "NAME" in path or any(place.exists() for place in places), path


def runnable(page: pathlib.Path) -> list[str]:
    """Blocks that the test runs; commands of README that a page of docs has too run there."""
    if page.stem == "pods":
        return []
    elsewhere = {
        tuple(words)
        for other in PAGES
        if page.stem == "README" and other != page
        for block in runnable(other)
        for words in commands(block)
    }
    return [
        block
        for block in blocks(page, "bash")
        if not block.startswith(NOT_RUN)
        and TEST_COMMAND not in block
        and not elsewhere.issuperset(map(tuple, commands(block)))
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda p: p.stem)
def test_a_pages_commands_run(page, tmp_path):
    environment = os.environ | {
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    }
    for block in [*runnable(page), *(_as_command(code) for code in blocks(page, "python"))]:
        lines = [line for line in block.splitlines() if not line.startswith(COMPARED)]
        script = "\n".join(lines).replace("/tmp/ba_jax_docs", str(tmp_path))
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert result.returncode == 0, f"{block}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"


def _as_command(code: str) -> str:
    return f"python - <<'PYTHON'\n{code}\nPYTHON"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
