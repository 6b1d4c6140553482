"""Runs that exist, and the commands that train missing ones."""

import ast
import json
import pathlib

import pytest

from ba_jax.config import ConfigError
from ba_jax.evals.paper.__main__ import main, parse_arguments, parse_numbers
from ba_jax.evals.paper.runs import NanoRuns, RunError
from configs import recipes


def finish(folder, steps=None):
    """Leave a run's folder as its command does."""
    name = folder.name.split("_")[0]
    steps = recipes.NANO_STEPS.get(name, (0, 0))[0] if steps is None else steps
    if folder.name == "codes":
        (folder / "spliced_2").mkdir(parents=True)
        (folder / "spliced_2" / "dataset_info.json").touch()
    elif folder.name == "whisper":
        (folder / "weights").mkdir(parents=True)
    else:
        (folder / "checkpoints" / str(steps) / "weights").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"train": {"steps": steps}}))


@pytest.fixture
def trained(tmp_path):
    """(runs, their commands): each command leaves a finished run."""
    commands = []

    def execute(command):
        commands.append(command)
        targets = [a.split("=", 1)[1] for a in command if a.startswith(("--workdir=", "--out="))]
        if "--out" in command:
            targets = [command[command.index("--out") + 1]]
        for target in map(pathlib.Path, targets):
            finish(target.parent if target.name == "spliced_2" else target)

    return NanoRuns([tmp_path / "runs", tmp_path / "own"], "nano", execute), commands


def test_complete_runs_are_used(tmp_path, trained):
    runs, commands = trained
    finish(tmp_path / "runs" / "stage2", steps=1750)
    assert runs.get("stage2") == tmp_path / "runs" / "stage2" and not commands
    assert runs.steps("stage2") == 1750 and runs.steps("text") is None


def test_missing_runs_are_trained_after_the_runs_they_start_from(tmp_path, trained):
    runs, commands = trained
    assert runs.get("stage2") == tmp_path / "own" / "stage2"
    modules = [command[2] for command in commands]
    names = [
        next((a for a in c if a.startswith("--workdir=")), "=/x").split("/")[-1] for c in commands
    ]
    assert modules.count("ba_jax.train") == 6 and modules.count("ba_jax.corpora.tokenize") == 3
    assert names[0] == "text" and names[-3:] == ["stage1", "words", "stage2"]
    own = tmp_path / "own"
    last = commands[-1]
    assert "--config=configs/lm_stage2.py:nano_codes" in last
    assert f"--config.init.llm={own / 'words'}" in last
    assert f"--config.data.folder={own / 'codes'}" in last
    assert "--config.train.steps=660" in last
    tokenizer = commands[names.index("tokenizer")]
    assert f"--config.init.audio_encoder={own / 'understanding'}" in tokenizer
    understanding = commands[names.index("understanding")]
    assert f"--config.init.audio_encoder={own / 'whisper'}" in understanding
    assert "--config=configs/tokenizer.py:nano_whisper" in tokenizer
    count = len(commands)
    assert runs.get("flow") and runs.get("single") and len(commands) == count + 2
    assert f"--config.init.audio_embed={own / 'tokenizer'}" in commands[-1]


def test_a_tokenizer_of_fewer_codebooks(tmp_path, trained):
    runs, commands = trained
    finish(tmp_path / "runs" / "understanding")
    folder = runs.tokenizer_of(4)
    assert folder.name == "tokenizer_4" and len(commands) == 1
    sizes = [a.split("=")[1] for a in commands[0] if "vq_bridge.codebook_sizes" in a]
    assert len(ast.literal_eval(sizes[0])) == 4
    assert runs.tokenizer_of(4) == folder and len(commands) == 1


def test_runs_that_cannot_be_made(tmp_path, trained):
    runs, _ = trained
    with pytest.raises(RunError, match="run 'stage3', expected one of"):
        runs.get("stage3")
    stopped = NanoRuns([tmp_path], "nano", lambda command: None)
    with pytest.raises(RunError, match="text: the command ended, but the run is not complete"):
        stopped.get("text")
    finish(tmp_path / "there" / "understanding")
    stopped = NanoRuns([tmp_path / "there", tmp_path], "nano", lambda command: None)
    with pytest.raises(RunError, match="tokenizer_4: the command ended, but the run is not"):
        stopped.tokenizer_of(4)
    stopped = NanoRuns([tmp_path], "nano", lambda command: None)
    # a run that was stopped is none
    finish(tmp_path / "text", steps=300)
    (tmp_path / "text" / "config.json").write_text('{"train": {"steps": 600}}')
    with pytest.raises(RunError, match="not complete"):
        stopped.get("text")
    with pytest.raises(ConfigError, match="size '7b', expected one of"):
        NanoRuns([tmp_path], "7b")


def test_command_line(capsys, tmp_path):
    assert parse_numbers("1..3,5, 2") == [1, 2, 3, 5]
    given = parse_arguments(["--table=4", "--runs=a", "--retrain"])
    assert (given.table, str(given.runs), given.retrain, given.size) == ("4", "a", True, "nano")
    for table, message in (
        ("x", "expected numbers and ranges"),
        ("7..9", r"table 9, expected one of"),
    ):
        assert main([f"--table={table}", f"--out={tmp_path}"]) == 2
        assert message in capsys.readouterr().err
    assert main(["--table=4", "--size=big", f"--out={tmp_path}"]) == 2
    assert "size 'big'" in capsys.readouterr().err
