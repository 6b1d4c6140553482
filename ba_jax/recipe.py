"""Run a recipe: a chain of commands, each once, resumable.

    python -m ba_jax.recipe --config=configs/recipes.py:nano
    python -m ba_jax.recipe --config=configs/recipes.py:full --dry-run

configs/recipes.py has the recipes. A step runs when the steps that it needs are complete, up to
`jobs` side by side. Interrupt it at any time (Ctrl-C, SIGTERM) and run the same command again:
complete steps are skipped, the others resume; what needs a step that runs is run again too. The
folder of the outputs gets logs/STEP.log, done/STEP (seconds of each step), minutes.json and
commands.txt for the report.

Exit codes: 0, all steps are complete; 1, a step failed (its log is named); 2, wrong command line;
130, interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from absl import flags

from ba_jax import cli
from ba_jax.files import write_whole

_PLACE = re.compile(r"\{([^{}]*)\}")
# absl's log lines below warnings: they stay in the log file.
_QUIET = re.compile(r"[ID]\d{4} ")


class RecipeError(RuntimeError):
    """A recipe that cannot run, or a step that failed."""


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of a recipe.

    Attributes:
      name: unique; also the folder of its output below the recipe's.
      commands: run one after the other. In their words `{out}` stands for the step's folder,
        `{NAME}` for the folder NAME (of another step, which is then needed first), `{}` for the
        folder of all outputs. "python" is this interpreter.
      complete: file or folder in the step's folder that exists once the step is complete; "": the
        step is complete once its commands have ended without an error.
      after: steps that are needed first and that no word of the commands names.
      always: run it even if it is complete.
    """

    name: str
    commands: Sequence[Sequence[str]]
    complete: str = ""
    after: tuple[str, ...] = ()
    always: bool = False

    def places(self) -> set[str]:
        """Names of the folders that the commands mention."""
        words = (word for command in self.commands for word in command)
        return {name for word in words for name in _PLACE.findall(word)} - {"out", ""}

    def filled(self, out: Path, folder: Callable[[str], Path]) -> list[list[str]]:
        """Return the commands with each placeholder replaced by its folder.

        Args:
          out: folder of this step.
          folder: name -> folder; "" is the folder of all outputs.
        """

        def place(match: re.Match) -> str:
            return str(out if match[1] == "out" else folder(match[1]))

        return [[_PLACE.sub(place, word) for word in command] for command in self.commands]


def needed(step: Step, names: Sequence[str]) -> list[str]:
    """Names of the steps that have to be complete before `step`, in the order of `names`."""
    wanted = step.places() | set(step.after)
    return [name for name in names if name in wanted]


def is_complete(step: Step, folder: Path, marks: Path) -> bool:
    """Whether a step's output is there.

    Args:
      step: the step.
      folder: folder of its output.
      marks: folder of the marks of steps that name no file of their output.
    """
    if step.complete:
        return (folder / step.complete).exists()
    return (marks / step.name).exists()


def printable(command: Sequence[str]) -> str:
    """Quote a command as a line for a shell."""
    return shlex.join(command)


class Runner:
    """Runs the steps of a recipe.

    Args:
      root: folder of all outputs.
      steps: in the order of preference where several could run.
      jobs: commands that run side by side.

    Raises:
      RecipeError: two steps of one name, or a step that needs an unknown one.
    """

    def __init__(self, root: Path, steps: Sequence[Step], jobs: int = 1):
        names = [step.name for step in steps]
        if len(set(names)) < len(names):
            raise RecipeError(f"steps {names}: expected each name once")
        for step in steps:
            if unknown := sorted(set(step.after) - set(names)):
                raise RecipeError(f"step {step.name}: needs {unknown}, expected some of {names}")
        if jobs < 1:
            raise RecipeError(f"jobs = {jobs}, expected at least 1")
        self.root, self.steps, self.jobs = root, list(steps), jobs
        self._marks = root / "done"
        self._processes: dict[str, subprocess.Popen] = {}
        self._stopping = False
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def folder(self, name: str) -> Path:
        """Folder of a step's output, or of a group of them; "" is the root."""
        return self.root / name

    def commands(self) -> list[tuple[str, list[str]]]:
        """(step, command) of the whole recipe, in order."""
        return [
            (step.name, command)
            for step in self.steps
            for command in step.filled(self.folder(step.name), self.folder)
        ]

    def run(self) -> None:
        """Run all steps that are not complete.

        Raises:
          RecipeError: a step failed; the steps that run beside it have been stopped.
          KeyboardInterrupt: interrupted; running steps have saved what they save on SIGTERM.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{printable(command)}\n" for _, command in self.commands())
        write_whole(self.root / "commands.txt", lines)
        names = [step.name for step in self.steps]
        todo = self._incomplete(names)
        for name in names:
            if name not in todo:
                print(f"[{name}] complete", flush=True)
        running: dict[Future, str] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while todo or running:
                    busy = set(running.values())
                    for name, step in todo.items():
                        is_ready = not set(needed(step, names)) & set(todo)
                        if is_ready and name not in busy and len(running) < self.jobs:
                            running[pool.submit(self._run_step, step)] = name
                            busy.add(name)
                    if not running:
                        raise RecipeError(f"steps {sorted(todo)} need each other")
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        del todo[running.pop(future)]
                        future.result()
            except BaseException:
                self._stop()
                raise

    def _incomplete(self, names: Sequence[str]) -> dict[str, Step]:
        """Steps to run, by name: without complete output, or after a step that runs."""
        todo: dict[str, Step] = {}
        size = -1
        while size < len(todo):
            size = len(todo)
            for step in self.steps:
                done = is_complete(step, self.folder(step.name), self._marks) and not step.always
                if not done or set(needed(step, names)) & set(todo):
                    todo[step.name] = step
        return {name: todo[name] for name in names if name in todo}

    def _run_step(self, step: Step) -> None:
        out, started = self.folder(step.name), time.monotonic()
        log = self.root / "logs" / f"{step.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        for command in step.filled(out, self.folder):
            if code := self._call(step.name, command, log):
                raise RecipeError(f"{step.name}: exit status {code}; see {log}")
        if step.complete and not is_complete(step, out, self._marks):
            raise RecipeError(
                f"{step.name}: {out / step.complete} is missing although its commands ended without"
                " an error: it was stopped; run the recipe again to resume"
            )
        mark = self._marks / step.name
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_whole(mark, f"{time.monotonic() - started:.0f}\n")
        self._write_minutes()

    def _call(self, name: str, command: Sequence[str], log: Path) -> int:
        """Run a command; its output goes to the log and, but for log lines, to the screen."""
        words = [sys.executable, *command[1:]] if command[0] == "python" else list(command)
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"$ {printable(command)}\n")
            file.flush()
            with self._lock:
                if self._stopping:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    words,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # a Ctrl-C reaches it once, from `_stop`
                )
                self._processes[name] = process
            with process:
                for line in process.stdout:
                    # A progress bar rewrites its line: its last state is kept.
                    text = line.decode("utf-8", "replace").rstrip("\r\n").rsplit("\r", 1)[-1]
                    file.write(f"{text}\n")
                    file.flush()
                    if not _QUIET.match(text):
                        print(f"[{name}] {text}", flush=True)
            with self._lock:
                del self._processes[name]
            return process.returncode

    def _stop(self) -> None:
        """SIGTERM to all running commands; training saves and ends."""
        with self._lock:
            self._stopping = True
            for process in self._processes.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)

    def _write_minutes(self) -> None:
        """Minutes of each step and in total, over all calls, for the report."""
        with self._lock:
            now = time.monotonic()
            clock = self._marks / ".total"
            total = float(clock.read_text()) if clock.exists() else 0.0
            total += now - self._started
            self._started = now
            write_whole(clock, f"{total:.1f}\n")
            marks = (p for p in sorted(self._marks.rglob("*")) if p.is_file() and p != clock)
            minutes = {
                str(p.relative_to(self._marks)): round(float(p.read_text()) / 60, 2) for p in marks
            }
            minutes["total"] = round(total / 60, 2)
            write_whole(self.root / "minutes.json", json.dumps(minutes, indent=1) + "\n")


def load(config: Mapping) -> Runner:
    """The runner of a recipe's settings (configs/recipes.py).

    Raises:
      RecipeError, ValueError: invalid settings.
    """
    from configs import recipes

    root, steps = recipes.steps(config)
    return Runner(Path(root), steps, config.jobs)


def define_flags() -> None:
    """Define the flags of the command."""
    cli.define_config("configs/recipes.py:RECIPE.")
    flags.DEFINE_bool("dry_run", False, "Print the commands, run none.")


def main(argv: list[str]) -> int:
    """Run the recipe, or print it."""
    try:
        runner = load(flags.FLAGS.config)
    except (RecipeError, ValueError) as error:
        return cli.fail("ba_jax.recipe", error)
    if flags.FLAGS.dry_run:
        for name, command in runner.commands():
            print(f"# {name}\n{printable(command)}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        runner.run()
    except RecipeError as error:
        return cli.fail("ba_jax.recipe", error, 1)
    except KeyboardInterrupt:
        return cli.interrupted("ba_jax.recipe")
    return 0


if __name__ == "__main__":
    cli.run("ba_jax.recipe", define_flags, main)
