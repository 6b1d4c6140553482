"""Command lines of all programs: exit code 2 and one line, and paths as people write them."""

import pathlib
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict

from ba_jax import cli
from ba_jax.config import ConfigError
from tests.processes import run_here, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = f"--config={ROOT}/configs"
# Command -> a command line without an error of usage.
COMMANDS = {
    "ba_jax.train": [f"{CONFIGS}/lm_stage2.py:nano_codes", "--workdir=w"],
    "ba_jax.evaluate": [f"{CONFIGS}/eval.py:nano", "--checkpoint=w", "--out=o"],
    "ba_jax.generate": [
        *("asr", f"{CONFIGS}/generate.py:nano", "--checkpoint=w", "--input=i", "--out=o"),
    ],
    "ba_jax.plan": [f"{CONFIGS}/lm_stage2.py:7b", "--topology=v5p:4x4x4", "--json=o"],
    "ba_jax.recipe": [f"{CONFIGS}/recipes.py:nano"],
    "ba_jax.corpora": [f"{CONFIGS}/prepare.py:text", "--out=o"],
    "ba_jax.corpora.tokenize": [f"{CONFIGS}/tokenizer.py:nano", "--checkpoint=w", "--out=o"],
    "ba_jax.data.show": [f"{CONFIGS}/lm_stage2.py:nano_codes"],
    "ba_jax.data.hash": [f"{CONFIGS}/lm_stage2.py:nano_codes"],
    "ba_jax.convert": ["--source=i", "--out=o"],
    "ba_jax.report": ["--runs=w"],
    "ba_jax.evals.paper": ["--runs=w"],
    "ba_jax.evals.paper.constraint": ["--runs=w"],
    "ba_jax.speech.assets": [],
    "configs.models": [],
}
WITH_CONFIG = [name for name, words in COMMANDS.items() if any(CONFIGS in word for word in words)]


@pytest.fixture
def fails(monkeypatch, tmp_path):
    """Run a command in this process, check exit code 2, one line and no file; return the line."""
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))

    def run(name, *words):
        (line,) = run_here(name, *words, code=cli.USAGE)[1].splitlines()
        assert line.startswith(f"{name}: ")
        assert not list(tmp_path.glob("*:*")) and not list(tmp_path.glob("[$~]*"))
        return line.removeprefix(f"{name}: ")

    return run


def sources():
    """Module -> source of every Python file that may be a command."""
    paths = [
        *ROOT.glob("ba_jax/**/*.py"),
        *ROOT.glob("configs/*.py"),
        *ROOT.glob("benchmarks/*.py"),
    ]
    for path in paths:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__main__"), path.read_text()


def test_every_command_is_in_the_table_or_is_a_benchmark_with_a_parser():
    mains = {name: text for name, text in sources() if '\nif __name__ == "__main__":' in text}
    benchmarks = [name for name in mains if name not in COMMANDS]
    assert set(COMMANDS) <= set(mains) and len(benchmarks) >= 7
    for name in benchmarks:
        assert f'cli.Parser("{name}"' in mains[name]


def test_nothing_but_the_module_parses_command_lines():
    for name, text in sources():
        if name != "ba_jax.cli":
            for other in (
                " argparse.ArgumentParser(",
                "app.run(",
                "DEFINE_config",
                "type=Path",
                "type=pathlib",
            ):
                assert other not in text, f"{name} has {other}"


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_flags_and_addresses(name, fails):
    words = COMMANDS[name]
    assert fails(name, *words, "--qqqq=1") == "--qqqq: unknown flag"
    for word in words:
        flag, is_path, _ = word.partition("=")
        if not is_path or flag in ("--config", "--topology"):
            continue
        rest = [other for other in words if other != word]
        near = f"{flag[:-1]}: unknown flag; did you mean {flag}?"
        assert fails(name, *rest, f"{flag[:-1]}=x") == near
        for value, problem in {
            "gs://bucket/x": "expected a path",
            "$NOT_SET/x": "$NOT_SET is not set",
            "": "expected a path",
        }.items():
            line = fails(name, *rest, f"{flag}={value}")
            assert line.startswith(flag) and problem in line


@pytest.mark.parametrize("name", WITH_CONFIG)
def test_configs_that_cannot_be_read(name, fails, tmp_path):
    words = [word for word in COMMANDS[name] if CONFIGS not in word]
    pathlib.Path("near.py").write_text("def get_config(:\n")
    assert (
        fails(name, *words, "--config=naer.py")
        == "--config=naer.py: no such file; did you mean near.py?"
    )
    assert "SyntaxError" in fails(name, *words, "--config=near.py")
    assert "invalid syntax (near.py, line 1)" in fails(name, *words, "--config=near.py")
    assert "expected a path" in fails(name, *words, "--config=s3://bucket/c.py:nano")
    config = next(word for word in COMMANDS[name] if CONFIGS in word)
    assert fails(name, *words, config, "--config.nosuch=1") == "--config.nosuch: unknown key"
    argument = config.rpartition(":")[2]
    line = fails(name, *words, f"{config[:-1]}")
    assert f"{argument[:-1]!r}, expected one of" in line and f"did you mean {argument}?" in line


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("train", "steps=3", "--config.steps: unknown key; did you mean train.steps?"),
        ("train", "train.stps=3", "did you mean train.steps?"),
        ("train", "init.lm=w", "did you mean init.llm?"),
        ("train", "train.frozen_dtype=x", "did you mean train.frozen_param_dtype?"),
        ("train", "optimizer.average=x", "did you mean optimizer.ema_decay?"),
        ("train", "stage.head_stride=2", "did you mean stage.full_head_every?"),
        ("generate", "generate.rows=2", "did you mean generate.generation.rows?"),
        ("generate", "generate.own_codebooks=2", "generate.generation.feedback_codebooks?"),
        ("evaluate", "eval.read_back=True", "did you mean eval.transcribe_first?"),
        ("train", "train.steps=abc", "--config.train.steps=abc: expected a whole number"),
        ("train", "train.steps=1.5", "--config.train.steps=1.5: expected a whole number"),
        ("train", "train.steps=None", "--config.train.steps=None: expected a whole number"),
        ("train", "train.steps=-1", "config.train: steps = -1, expected at least 1"),
        ("train", "train.steps", "Missing value for flag --config.train.steps"),
        ("train", "train.pictures=x", "expected true or false"),
        ("train", "optimizer.rules[9][1]=1", "--config.optimizer.rules[9][1]: no such entry"),
        ("train", "optimizer.learning_rate=nan", "learning_rate = nan: expected a number"),
        ("train", "stage.name=lmm", "stage.name = 'lmm', expected one of"),
        ("train", "train.attention=splsh", "did you mean splash?"),
        ("train", "workdir", "--config.workdir: unknown key"),
        ("train", "init.llm=gs://b/x", "init.llm = gs://b/x: expected a path"),
        ("train", "data.folder=$NOT_SET/x", "data.folder = $NOT_SET/x: the variable $NOT_SET"),
        ("train", "data.index_cache=~nobody_here", "data.index_cache = ~nobody_here: no home"),
        ("train", "train.compilation_cache=gs://b", "compilation_cache = gs://b: expected a path"),
        ("evaluate", "compilation_cache=gs://b", "compilation_cache = gs://b: expected a path"),
        ("evaluate", "eval.dataset=hdfs://b", "eval.dataset = hdfs://b: expected a path"),
        ("evaluate", "hosts=togethr", "did you mean together?"),
        ("generate", "generate.tokenizer=FILE:/x", "generate.tokenizer = FILE:/x: expected a path"),
        ("recipe", "runs=gs://b", "runs = gs://b: expected a path"),
        ("corpora", "source.path=http://b/x", "source.path = http://b/x: expected a path"),
        ("corpora", "kind=txt", "kind = 'txt', expected one of"),
        ("data.show", "data.kind=packd", "did you mean packed?"),
    ],
)
def test_keys_of_configs(name, word, message, fails):
    assert message in fails(f"ba_jax.{name}", *COMMANDS[f"ba_jax.{name}"], f"--config.{word}")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("train", ["--config.train.steps=2"], "--config.train.steps: expected --config=FILE.py"),
        ("train", COMMANDS["ba_jax.train"][:1], "--workdir: expected a value"),
        ("train", [*COMMANDS["ba_jax.train"], "--process=1"], "--process without --distributed"),
        ("train", [*COMMANDS["ba_jax.train"], "--", "--distributed"], "'--distributed': expected"),
        ("evaluate", [*COMMANDS["ba_jax.evaluate"], "--suite=asrr"], "suite 'asrr', expected one"),
        ("evaluate", [*COMMANDS["ba_jax.evaluate"], "--suite="], "--suite: expected one or more"),
        ("evaluate", [*COMMANDS["ba_jax.evaluate"], "--stage=jugde"], "did you mean judge?"),
        ("evaluate", [*COMMANDS["ba_jax.evaluate"], "--checkpoint=a,,b"], "expected a path"),
        ("generate", ["ars", *COMMANDS["ba_jax.generate"][1:]], "task 'ars', expected one of"),
        ("generate", COMMANDS["ba_jax.generate"][1:], "no task, expected one of"),
        ("plan", [*COMMANDS["ba_jax.plan"], "--topology=v5x:4x4"], "did you mean v5p?"),
        ("plan", [*COMMANDS["ba_jax.plan"], "--rows=-1"], "--rows=-1: "),
        ("corpora", [*COMMANDS["ba_jax.corpora"], "--runner=bem"], "did you mean beam?"),
        ("corpora", ["--config.source.szie=x"], "did you mean source.size?"),
        ("corpora.tokenize", [*COMMANDS["ba_jax.corpora.tokenize"], "--on-error=skp"], "skip?"),
        ("data.show", [*COMMANDS["ba_jax.data.show"], "--member=asrr"], "did you mean asr?"),
        ("data.hash", [*COMMANDS["ba_jax.data.hash"], "--steps=5:2"], "--steps=5:2: expected"),
        ("convert", ["exprot", "--out=o"], "command 'exprot', expected one of"),
        ("convert", ["join", "--checkpoint=a,gs://b", "--out=o"], "--checkpoint: gs://b: expected"),
        ("convert", ["export", "--max-shard-bytes=0"], "--max-shard-bytes: 0, expected at least 1"),
        ("convert", ["--kind=qwen", "--out=o"], "did you mean qwen2?"),
        ("convert", ["--out=o"], "required: --source"),
        ("evals.paper", ["--table=9"], "table 9, expected one of"),
        ("evals.paper", ["--size=nan"], "did you mean nano?"),
        ("speech.assets", ["kokoroo"], "did you mean kokoro?"),
    ],
)
def test_words_beside_the_config(name, words, message, fails):
    assert message in fails(f"ba_jax.{name}", *words)


def test_flags_are_parsed_to_expanded_paths(monkeypatch):
    values = flags.FlagValues()
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("RUNS", "/data/runs")
    parser = cli.Parser("x", None)
    parser.add_argument("--out", type=cli.path)
    parser.add_argument("--runs", type=cli.paths)
    parsed = parser.parse_args(["--out=~/x", "--out=~/y", "--runs=$RUNS/a,${RUNS}/b"])
    assert str(parsed.out) == "/home/ann/y"  # the last of two, as with absl's flags
    assert list(map(str, parsed.runs)) == ["/data/runs/a", "/data/runs/b"]
    monkeypatch.setattr(cli.flags, "DEFINE", _defined_in(values))
    cli.define_path("out", None, "")
    cli.define_paths("runs", ["~/z"], "")
    values(["x", "--out=~/x", "--out=~/y"])
    assert values.out == "/home/ann/y" and values.runs == ["/home/ann/z"]


def _defined_in(values):
    define = flags.DEFINE
    return lambda *args, **options: define(*args, flag_values=values, **options)


def test_a_config_with_an_error_names_the_line(tmp_path):
    path = tmp_path / "c.py"
    for text, message in {
        "x = 1": "no function get_config in it",
        "def get_config(): return {}": "its get_config gave {}, expected a ConfigDict",
        "def get_config(size=''):\n    return unknown": "line 2: NameError: name 'unknown'",
        "import no_such_module": "line 1: ModuleNotFoundError: No module named",
    }.items():
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"c.py: {message}"):
            cli.load_config(str(path))
    path.write_text(
        "from ml_collections import ConfigDict\ndef get_config(a): return ConfigDict({'a': a})"
    )
    assert cli.load_config(f"{path}:b:c") == ConfigDict({"a": "b:c"}).lock()


def test_an_interrupt_that_a_callback_swallows_is_delivered_again(monkeypatch):
    class Collected:
        def __del__(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "unraisablehook", cli._interrupt_again)
    with pytest.raises(KeyboardInterrupt):
        Collected()
        wait_for(lambda: False)
