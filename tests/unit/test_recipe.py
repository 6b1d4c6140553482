"""The recipe runner, on commands that write files, and the recipes themselves."""

import importlib
import json
import pathlib
import re
import signal
import sys

import pytest

from ba_jax.recipe import RecipeError, Runner, Step
from configs import recipes
from tests.processes import finish, start, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write(text="x", name="out.txt"):
    """Make a command that creates its folder and appends to a file there."""
    return ("sh", "-c", f'mkdir -p "$0" && echo {text} >>"$0"/{name}', "{out}")


def test_steps_run_in_the_order_of_their_needs(tmp_path):
    log = tmp_path / "order"

    def step(name, *words, **options):
        return Step(name, [("sh", "-c", f"echo {name} >>{log}", *words)], **options)

    steps = [
        step("last", "{first}", "{runs/second}", always=True),
        step("runs/second", "{first}"),
        step("first"),
    ]
    Runner(tmp_path / "out", steps, jobs=2).run()
    assert log.read_text().split() == ["first", "runs/second", "last"]
    minutes = json.loads((tmp_path / "out" / "minutes.json").read_text())
    assert set(minutes) == {"first", "runs/second", "last", "total"}
    assert len((tmp_path / "out" / "commands.txt").read_text().splitlines()) == 3
    Runner(tmp_path / "out", steps).run()  # all but `always` are complete
    assert log.read_text().split()[3:] == ["last"]


def test_a_step_is_complete_if_its_output_exists(tmp_path):
    step = Step("a", [write()], complete="out.txt")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "out.txt").write_text("by hand")
    Runner(tmp_path, [step]).run()
    assert (tmp_path / "a" / "out.txt").read_text() == "by hand"
    with pytest.raises(RecipeError, match="b: .*missing although.*run the recipe again to resume"):
        Runner(tmp_path, [Step("b", [write()], complete="other.txt")]).run()


def test_what_stands_on_a_step_that_runs_again_runs_again(tmp_path):
    """A longer run replaces a shorter one; its evaluation must not stay."""
    log = tmp_path / "order"

    def steps(complete):
        return [
            Step("other", [write()]),
            Step("eval", [("sh", "-c", f"echo eval >>{log}", "{run}")]),
            Step("run", [write(name=complete), ("sh", "-c", f"echo run >>{log}")], complete),
        ]

    Runner(tmp_path, steps("10")).run()
    Runner(tmp_path, steps("10")).run()
    assert log.read_text().split() == ["run", "eval"]
    Runner(tmp_path, steps("20")).run()
    assert log.read_text().split() == ["run", "eval"] * 2
    assert (tmp_path / "other" / "out.txt").read_text() == "x\n"


def test_the_last_state_of_a_progress_bar_is_kept(tmp_path, capsys):
    Runner(tmp_path, [Step("a", [("printf", r"10%%\r50%%\r100%%\nend\r\n")])]).run()
    assert capsys.readouterr().out == "[a] 100%\n[a] end\n"
    assert (tmp_path / "logs" / "a.log").read_text().splitlines()[1:] == ["100%", "end"]


def test_a_failed_command_ends_the_recipe_and_names_its_log(tmp_path):
    steps = [
        Step("bad", [("sh", "-c", "echo why; exit 3"), write()]),
        Step("after", [write()], after=("bad",)),
    ]
    with pytest.raises(RecipeError, match=r"bad: exit status 3; see .*logs/bad.log"):
        Runner(tmp_path, steps).run()
    assert "why" in (tmp_path / "logs" / "bad.log").read_text()
    assert not (tmp_path / "bad").exists() and not (tmp_path / "after").exists()


def test_a_failure_stops_concurrent_steps(tmp_path):
    patient = f"trap 'echo saved >{tmp_path}/saved; exit 0' TERM; touch {tmp_path}/up; "
    patient += "while :; do sleep 0.05; done"
    steps = [
        Step("patient", [("sh", "-c", patient)]),
        Step("bad", [("sh", "-c", f"until [ -e {tmp_path}/up ]; do sleep 0.05; done; exit 1")]),
    ]
    with pytest.raises(RecipeError, match="bad: exit status 1"):
        Runner(tmp_path, steps, jobs=2).run()
    assert (tmp_path / "saved").read_text() == "saved\n"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Step("a", []), Step("a", [])], "expected each name once"),
        ([Step("a", [], after=("b",))], r"step a: needs \['b'\]"),
        ([Step("a", [], after=("b",)), Step("b", [("x", "{a}")])], "need each other"),
    ],
)
def test_invalid_recipes(tmp_path, steps, message):
    with pytest.raises(RecipeError, match=message):
        Runner(tmp_path, steps).run()


def test_an_interrupt_is_forwarded_and_the_command_resumes(tmp_path):
    code = (
        "import sys; from ba_jax import recipe; from ba_jax.recipe import Runner, Step\n"
        f"wait = '''trap \"exit 0\" TERM; touch {tmp_path}/up; while :; do sleep 0.05; done'''\n"
        f"recipe.load = lambda config: Runner(recipe.Path({str(tmp_path)!r}), [\n"
        "    Step('a', [('sh', '-c', wait)], complete='x')])\n"
        "recipe.cli.run('ba_jax.recipe', recipe.define_flags, recipe.main)\n"
    )
    command = [sys.executable, "-c", code, "--config=configs/recipes.py:nano"]
    process = start(command)
    wait_for((tmp_path / "up").exists, process)
    process.send_signal(signal.SIGINT)
    _, errors = finish(process, 130)
    assert "run the same command again to resume" in errors


RECIPES = {
    "nano": recipes.nano("nano_whisper"),
    "long": recipes.nano("nano", long=True),
    "7b": recipes.full("7b"),
    "1b5": recipes.full("1b5", base="release"),
    "constraint": recipes.steps(recipes.get_config("constraint"))[1],
}


@pytest.mark.parametrize("steps", RECIPES.values(), ids=RECIPES)
def test_modules_configs_and_folders_of_the_recipes_exist(tmp_path, steps):
    """Each command names a module and a config that exist, each folder a step or its parent."""
    runner = Runner(tmp_path, steps)
    names = {step.name for step in steps} | {"raw"}
    for step in steps:
        for place in step.places():
            assert place in names or any(name.startswith(place + "/") for name in names), place
    for _, command in runner.commands():
        if command[0] != "python":
            continue
        path = ROOT / command[2].replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
        configs = [re.match(r"--config=configs/(\w+)\.py:(\w+)", word) for word in command]
        for match in filter(None, configs):
            module = importlib.import_module(f"configs.{match[1]}")
            config = module.get_config(match[2])
            for word in command:
                if key := re.match(r"--config\.([\w.]+)=", word):
                    assert key[1].rsplit(".", 1)[-1] in _section(config, key[1]), word


def _section(config, key):
    """The section of a config that holds a dotted key."""
    for name in key.split(".")[:-1]:
        config = config[name]
    return config


def test_the_constraint_is_swept_from_the_tokenizer_to_its_language_model():
    config = recipes.get_config("constraint")
    config["values"], config.tokenizer_steps, config.lm_steps = (0.0, 1e-3), 4, 5
    root, steps = recipes.steps(config)
    steps = {step.name: step for step in steps}
    chain = [step.name for step in recipes.nano("nano_whisper")]
    own = [f"{b}/{part}" for b in ("0", "0.001") for part in ("tokenizer", "codes", "lm")]
    assert list(steps) == [*chain[: chain.index("tokenizer")], *own, "table"]
    assert root == "runs/constraint" and set(steps["table"].after) == {"0/lm", "0.001/lm"}
    assert "--config.stage.l2_shrink=0.001" in steps["0.001/tokenizer"].commands[0]
    assert [steps[f"0.001/{name}"].complete for name in ("tokenizer", "lm")] == [
        "checkpoints/4/weights",
        "checkpoints/5/weights",
    ]
    assert {"text", "0.001/tokenizer", "0.001/codes"} <= steps["0.001/lm"].places()


def test_settings_of_the_recipes():
    for name in recipes.ARGUMENTS:
        root, steps = recipes.steps(recipes.get_config(name))
        assert root and steps
    with pytest.raises(ValueError, match="model 'big', expected one of .'nano', 'nano_whisper'"):
        recipes.nano("big")
    with pytest.raises(ValueError, match="size '3b', expected one of .'1b5', '7b'"):
        recipes.full("3b")
