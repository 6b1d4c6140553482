"""Command lines of all programs: paths in flags, and one line for each error of usage.

Commands with a config have absl's flags (`define_config`, `define_path`, `run`), the others a
`Parser`. A wrong command line or config ends any of them with exit code USAGE and one line on the
standard error: the command's module, the wrong word, and the nearest known one.
"""

from __future__ import annotations

import _thread
import argparse
import importlib.machinery
import importlib.util
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from absl import app, flags

from ba_jax.config import ConfigError, expected, local_path, nearest, nearest_key

if TYPE_CHECKING:
    from ml_collections import ConfigDict

USAGE = 2
"""Exit code of a wrong command line or config."""
INTERRUPTED = 128 + 2
"""Exit code after Ctrl-C, a shell's for SIGINT."""

# Messages of absl and ml_collections that do not say what is expected.
_MESSAGES = {
    r"=None: Flag --.*": ": expected a value",
    r"invalid literal for int.*": "expected a whole number",
    r"could not convert string to float.*": "expected a number",
    r"\('Non-boolean.*": "expected true or false",
    r" Currently supported types.*": "",
}


def fail(name: str, error: BaseException | str, code: int = USAGE) -> int:
    """Print an error of a command, and return its exit code."""
    print(f"{name}: {error}", file=sys.stderr)
    return code


def interrupted(name: str) -> int:
    """Tell that a command was interrupted and can be resumed, and return its exit code."""
    return fail(name, "interrupted; run the same command again to resume", INTERRUPTED)


def _not_empty(text: str) -> str:
    if not text.strip():
        raise ConfigError("'': expected a path")
    return local_path(text)


# --- absl ---------------------------------------------------------------------------------------


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return _not_empty(argument)


class _PathsParser(flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        return [_not_empty(path) for path in super().parse(argument) or [""]]


def define_path(name: str, default: str | None, help: str) -> None:
    """Define a flag whose value is a path."""
    flags.DEFINE(_PathParser(), name, default, help, serializer=flags.ArgumentSerializer())


def define_paths(name: str, default: list[str] | None, help: str) -> None:
    """Define a flag whose value is paths, separated by commas."""
    flags.DEFINE(_PathsParser(), name, default, help, serializer=flags.ListSerializer(","))


class _ConfigParser(flags.ArgumentParser):
    """Loads a config, FILE.py:ARGUMENT, and checks the keys that the command line sets in it."""

    def parse(self, argument: str) -> ConfigDict:
        from ml_collections.config_flags.config_flags import GetType

        config = load_config(argument)
        keys = list(_keys(config))
        for word in sys.argv[1:]:
            if match := re.match(r"--?(?:no)?config\.([^=]*)", word):
                key, bracket, _ = match[1].partition("[")
                if key not in keys:
                    raise ConfigError(f"--config.{key}: unknown key{nearest_key(key, keys)}")
                try:
                    bracket and GetType(match[1], config)
                except (LookupError, TypeError, ValueError) as error:
                    raise ConfigError(f"--config.{match[1]}: no such entry ({error})") from None
        return config


def _keys(config: Mapping[str, Any]) -> Iterator[str]:
    """Dotted keys of a config, those of sections too."""
    for key, value in config.items():
        yield key
        if hasattr(value, "items"):
            yield from (f"{key}.{inner}" for inner in _keys(value))


def load_config(place: str) -> ConfigDict:
    """The locked result of `get_config` in FILE.py, given ARGUMENT if `place` is FILE.py:ARGUMENT.

    Raises:
      ConfigError: no such file, an error in it, or an argument that it refuses.
    """
    from ml_collections import ConfigDict

    name, *argument = _not_empty(place).split(":", 1)
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{place}: no such file{nearest(name, path.parent.glob('*.py'))}")
    loader = importlib.machinery.SourceFileLoader("ba_jax_config", name)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module
    try:
        loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError("no function get_config in it")
        config = module.get_config(*argument)
        if not isinstance(config, ConfigDict):
            raise ConfigError(f"its get_config gave {config!r}, expected a ConfigDict")
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"line {frame.lineno}: " for frame in frames if frame.filename == name][-1:]
        raise ConfigError(f"{place}: {''.join(where)}{type(error).__name__}: {error}") from error
    return config.lock()


def define_config(help: str, default: str | None = None) -> None:
    """Define `--config=FILE.py:ARGUMENT`, and `--config.a.b=c` for each of its keys."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file("config", None, help)
    flags.FLAGS["config"].parser = _ConfigParser()
    if default:
        flags.FLAGS.set_default("config", default)
    else:
        flags.mark_flag_as_required("config")


def run(
    name: str,
    define_flags: Callable[[], None],
    main: Callable[[list[str]], int | None],
    words: int = 0,
) -> NoReturn:
    """Parse the command line and run a command.

    Args:
      name: module of the command, for messages.
      define_flags: defines its flags.
      main: called with the program's name and the words beside the flags; returns the exit code.
      words: the most words that it takes.
    """

    # --help lists the flags that functions of this module define as those of their callers.
    flags.disclaim_key_flags()

    def parse(argv: list[str]) -> list[str]:
        try:
            define_flags()
            rest = flags.FLAGS([argv[0], *map(_with_underscores, argv[1:])])
            if len(rest) > words + 1:
                raise ConfigError(f"{rest[words + 1]!r}: expected only flags")
            return rest
        except (flags.Error, LookupError, AttributeError, TypeError, ValueError) as error:
            sys.exit(fail(name, _in_one_line(error)))

    def checked(argv: list[str]) -> int | None:
        try:
            return main(argv)
        except ConfigError as error:
            return fail(name, error)

    sys.unraisablehook = _interrupt_again
    app.run(checked, flags_parser=parse)


def _interrupt_again(unraisable: Any) -> None:
    """Deliver Ctrl-C again after a callback, such as JAX's of garbage collection, swallowed it."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def _with_underscores(word: str) -> str:
    """Replace hyphens in the name of a flag, except in keys of a config."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--") or flag.startswith("--config"):
        return word
    return "--" + flag[2:].replace("-", "_") + equals + value


def _in_one_line(error: Exception) -> str:
    """The message of an error of flags, with the nearest word that is known."""
    if isinstance(error, flags.UnrecognizedFlagError):
        if error.flagname.startswith("config."):
            return f"--{error.flagname}: expected --config=FILE.py before it"
        known = [f"--{name}" for name in flags.FLAGS]
        return f"--{error.flagname}: unknown flag{nearest(f'--{error.flagname}', known)}"
    text = " ".join(str(error).split()).removeprefix("flag ")
    for pattern, replacement in _MESSAGES.items():
        text = re.sub(pattern, replacement, text)
    if isinstance(error.__context__, ConfigError):  # raised by a parser of this module
        problem = str(error.__context__)
        return problem if problem.startswith("--") else f"{text.split('=')[0]}={problem}"
    if match := re.match(r"--(\w+)=(.*): value should be one of <(.*)>", text):
        return f"--{match[1]}={expected(match[2], match[3].split('|'))}"
    return text


# --- argparse -----------------------------------------------------------------------------------


def path(text: str) -> Path:
    """Convert an argument of a `Parser` to a path."""
    try:
        return Path(_not_empty(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def paths(text: str) -> list[Path]:
    """Convert an argument of a `Parser` to paths, which commas separate."""
    return [path(part) for part in text.split(",")]


def at_least(least: float) -> Callable[[str], float]:
    """Make a converter to numbers, of the type of their lower bound."""

    def number(text: str) -> float:
        value = type(least)(text)
        if not value >= least:
            raise argparse.ArgumentTypeError(f"{text}, expected at least {least}")
        return value

    return number


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line, with the nearest flag or choice.

    Args:
      name: module of the command, for messages.
      description: for --help.
      command: subcommand.
    """

    def __init__(self, name: str, description: str | None, command: str = ""):
        program = f"python -m {name} {command}".rstrip()
        super().__init__(prog=program, description=description, allow_abbrev=False)
        self._name = name

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        args = sys.argv[1:] if args is None else args
        for word in args:  # before an error of a flag that is missing for this reason
            flag, known = word.split("=")[0], self._option_string_actions
            if flag.startswith("--") and flag not in known:
                self.error(f"{flag}: unknown flag{nearest(flag, known)}")
        values, rest = self.parse_known_args(args, namespace)
        if rest:
            self.error(f"{rest[0]!r}: expected only flags")
        return values

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, expected(value, action.choices))

    def error(self, message: str) -> NoReturn:
        """End the command with one line."""
        sys.exit(fail(self._name, message.removeprefix("argument ")))
