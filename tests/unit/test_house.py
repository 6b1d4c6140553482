"""The rules of the house, checked on syntax trees: imports, length of files, and language.

Each rule is a function of (module name, source) that returns its violations, run over every file
it covers and, in a second test, over a source that breaks it.
"""

import ast
import importlib.util
import io
import os
import pathlib
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator

import ml_collections
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A module's layer is that of its longest prefix here; imports go to the same layer or a lower one.
LAYERS = {
    "ba_jax": 0,
    "ba_jax.cli": 0,
    "ba_jax.config": 0,
    "ba_jax.files": 0,
    "ba_jax.json_lines": 0,
    "ba_jax.tree": 0,
    "ba_jax.vocab": 0,
    "ba_jax.types": 0,
    "ba_jax.torch_files": 0,
    "ba_jax.audio": 0,
    "ba_jax.sharding": 0,
    "ba_jax.models": 1,
    "ba_jax.data": 1,
    "ba_jax.losses": 2,
    "ba_jax.optim": 2,
    "ba_jax.checkpoints": 2,
    "ba_jax.metrics": 2,
    "ba_jax.distributed": 2,
    "ba_jax.convert": 2,
    "ba_jax.stages": 3,
    "ba_jax.sampling": 3,
    "ba_jax.speech": 3,
    "ba_jax.corpora": 4,
    "ba_jax.evals": 4,
    "ba_jax.generate": 4,
    "ba_jax.run": 5,
    "ba_jax.resume": 5,
    "ba_jax.run_config": 5,
    "ba_jax.train_state": 5,
    "ba_jax.recipe": 5,
    "ba_jax.train": 5,
    "ba_jax.evaluate": 5,
    "ba_jax.plan": 5,
    "ba_jax.report": 5,
    "ba_jax.evals.paper": 5,
}
ENTRY_LAYER = 5
# Commands inside the lower packages: modules with a `main` that reads flags.
COMMAND = re.compile(r"^def main\(argv", re.MULTILINE)
# Optional extras: what trains or samples imports nothing of them.
EXTRAS = ("ba_jax.speech", "ba_jax.corpora")
MAY_IMPORT_EXTRAS = (*EXTRAS, "ba_jax.evals")
# data feeds workers that fork or spawn: it stands on these alone.
DATA_MAY_IMPORT = (
    "ba_jax.cli",
    "ba_jax.config",
    "ba_jax.files",
    "ba_jax.vocab",
    "ba_jax.types",
    "ba_jax.audio",
    "ba_jax.data",
)
JAX_FAMILY = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
MAX_LINES = 600
LONG_FILES: frozenset[str] = frozenset()
Violations = list[str]


# --- reading the tree ---------------------------------------------------------------------------


def module_name(path: pathlib.Path) -> str:
    """`ba_jax/audio/__init__.py` -> `ba_jax.audio`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(*folders: str) -> dict[str, str]:
    """Module name -> source of every Python file under the folders."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {module_name(path): path.read_text(encoding="utf-8") for path in paths}


BA_JAX = sources("ba_jax")
OTHERS = sources("configs", "benchmarks", "tests")
PACKAGES = {module_name(path) for path in (ROOT / "ba_jax").rglob("__init__.py")}


def is_under(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def imported_names(name: str, node: ast.AST, packages: Iterable[str]) -> list[str]:
    """Absolute names that one node imports; `from a import b` counts as both `a` and `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            up = node.level - (name in packages)
            anchor = name.split(".")[: len(name.split(".")) - up]
            base = ".".join(anchor + ([base] if base else []))
        return [base] + [f"{base}.{alias.name}" for alias in node.names if alias.name != "*"]
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        called = node.func.id if isinstance(node.func, ast.Name) else called
        literal = node.args and isinstance(node.args[0], ast.Constant)
        if called in ("import_module", "__import__") and literal:
            return [str(node.args[0].value)]
    return []


def nodes_run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes but those inside functions and under `if TYPE_CHECKING` or `if __name__ ...`."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and (
            "TYPE_CHECKING" in ast.unparse(node.test) or "__name__" in ast.unparse(node.test)
        ):
            stack.extend(node.orelse)
            continue
        yield node
        stack.extend(ast.iter_child_nodes(node))


def imports(
    name: str, source: str, *, at_import: bool = False, packages: Iterable[str] = PACKAGES
) -> list[str]:
    """Everything a module imports, lazily too unless `at_import`."""
    tree = ast.parse(source)
    nodes = nodes_run_at_import(tree) if at_import else ast.walk(tree)
    return [target for node in nodes for target in imported_names(name, node, packages)]


# --- the rules ----------------------------------------------------------------------------------


def commands(modules: dict[str, str]) -> set[str]:
    """Modules that are commands: a `__main__`, or a `main` that takes the command line."""
    return {n for n, s in modules.items() if n.endswith(".__main__") or COMMAND.search(s)}


COMMANDS = commands(BA_JAX)


def layer(module: str) -> int | None:
    """The layer of a module, or None if no row of LAYERS but the bare package covers it."""
    if module in COMMANDS:
        return ENTRY_LAYER
    rows = [prefix for prefix in LAYERS if prefix != "ba_jax" and is_under(module, prefix)]
    if rows:
        return LAYERS[max(rows, key=len)]
    return LAYERS["ba_jax"] if module == "ba_jax" else None


def check_layers(name: str, source: str) -> Violations:
    """Imports run downwards only, lazy ones included; every module has a layer."""
    own_layer = layer(name)
    if own_layer is None:
        return [f"{name}: in no layer; add it to LAYERS"]
    violations = []
    for target in imports(name, source):
        # `from ba_jax.vocab import X` yields ba_jax.vocab.X too: same row, no harm.
        target_layer = layer(target) if is_under(target, "ba_jax") else None
        if target_layer is not None and target_layer > own_layer:
            violations.append(f"{name} (layer {own_layer}) imports {target} (layer {target_layer})")
        if target.split(".")[0] in ("tests", "benchmarks"):
            violations.append(f"{name} imports {target}")
    return violations


def check_extras(name: str, source: str) -> Violations:
    """Speech tools and corpus making are extras: what trains or samples does not import them."""
    if any(is_under(name, allowed) for allowed in MAY_IMPORT_EXTRAS):
        return []
    targets = [t for t in imports(name, source) if any(is_under(t, extra) for extra in EXTRAS)]
    return [f"{name} imports {target}" for target in targets]


def find_cycle(modules: dict[str, str]) -> list[str]:
    """A circle of files that import each other, lazily and for types too, or []."""
    edges: dict[str, list[str]] = {}
    for name, source in modules.items():
        targets = {t for t in imports(name, source) if t in modules and t != name}
        # `from package import module` imports the module, not what the package re-exports.
        packages = {t for t in targets if any(o.startswith(t + ".") for o in targets)}
        edges[name] = sorted(targets - packages)
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :] + [node]
        if node in done:
            return []
        for target in edges[node]:
            if cycle := visit(target, path + [node]):
                return cycle
        done.add(node)
        return []

    return next((cycle for node in sorted(edges) if (cycle := visit(node, []))), [])


def class_names(modules: dict[str, str]) -> dict[str, list[str]]:
    """Public class name -> the modules that define it."""
    names: dict[str, list[str]] = {}
    for module, source in modules.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                names.setdefault(node.name, []).append(module)
    return names


# Sentences that begin so have to be read twice; see CONTRIBUTING.md.
BAD_OPENING = re.compile(r"(?:^|(?<=[.!?:] ))(What|Of|As|Where|How)\b")
BAD_VARIABLES = {"found", "said", "told", "one"}


def prose(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring, text below an assignment, and run of comment lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                yield node.lineno, node.value.value
    run: list[str] = []
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("#: ") for t in tokens if t.type == tokenize.COMMENT}
    for line, text in comments.items():
        run = [*run, text] if line - 1 in comments else [text]
        if line + 1 not in comments:
            yield line, " ".join(run)


def check_openings(name: str, source: str) -> Violations:
    """No sentence begins with a word of BAD_OPENING; a verb or a noun phrase comes first."""
    return [
        f"{name}:{line}: {text[match.start() :].strip()[:70]}"
        for line, raw in prose(source)
        for text in [" ".join(raw.split())]
        for match in BAD_OPENING.finditer(text)
    ]


def check_variables(name: str, source: str) -> Violations:
    """No variable, argument or function has a name of BAD_VARIABLES; the name tells its content."""
    attributes = {ast.Name: "id", ast.arg: "arg", ast.FunctionDef: "name"}
    lines = {
        node.lineno
        for node in ast.walk(ast.parse(source))
        if getattr(node, attributes.get(type(node), ""), None) in BAD_VARIABLES
    }
    return [f"{name}:{line}" for line in sorted(lines)]


def check_data(name: str, source: str) -> Violations:
    """data imports vocab, types and audio alone, and nothing of JAX, not even lazily."""
    if not is_under(name, "ba_jax.data"):
        return []
    violations = []
    for target in imports(name, source):
        if target.split(".")[0] in JAX_FAMILY:
            violations.append(f"{name} imports {target}")
        elif is_under(target, "ba_jax") and target != "ba_jax":
            if not any(is_under(target, allowed) for allowed in DATA_MAY_IMPORT):
                violations.append(f"{name} imports {target}")
    return violations


def check_jax_free(modules: dict[str, str], packages: set[str]) -> Violations:
    """Importing data, audio, vocab or types loads no JAX, directly or through what they import."""
    roots = [name for name in modules if any(is_under(name, root) for root in DATA_MAY_IMPORT)]
    violations, seen, stack = [], set(), [(name, [name]) for name in roots]
    while stack:
        name, chain = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        for target in imports(name, modules[name], at_import=True, packages=packages):
            if target.split(".")[0] in JAX_FAMILY:
                violations.append(" -> ".join(chain + [target]))
            # Importing a.b.c runs a, a.b and a.b.c.
            parts = target.split(".")
            for end in range(1, len(parts) + 1):
                parent = ".".join(parts[:end])
                if parent in modules:
                    stack.append((parent, chain + [parent]))
    return violations


def check_torch(name: str, source: str) -> Violations:
    """torch is imported in ba_jax/convert only, and there inside functions only."""
    heavy = ("torch", "safetensors.torch", "transformers", "torchaudio")

    def is_torch(target: str) -> bool:
        return any(is_under(target, prefix) for prefix in heavy)

    if is_under(name, "ba_jax.convert"):
        targets = imports(name, source, at_import=True)
        return [f"{name} imports {target} at import" for target in targets if is_torch(target)]
    return [f"{name} imports {target}" for target in imports(name, source) if is_torch(target)]


def check_configs(name: str, source: str) -> Violations:
    """ml_collections and configs/ are for entry points; below them models take dataclasses."""
    if layer(name) == ENTRY_LAYER or name == "ba_jax.cli":
        return []
    banned = ("ml_collections", "configs")
    return [
        f"{name} imports {target}"
        for target in imports(name, source)
        if target.split(".")[0] in banned
    ]


def check_no_work_at_import(name: str, source: str) -> Violations:
    """A module's top level defines; it does not print, configure, open or allocate on a device."""
    violations = []
    for statement in ast.parse(source).body:
        is_call = isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant)
        if is_call or isinstance(statement, ast.For | ast.While | ast.With | ast.Delete):
            violations.append(
                f"{name}:{statement.lineno}: {ast.unparse(statement).splitlines()[0]}"
            )
    return violations


def check_length(name: str, source: str) -> Violations:
    """A file past MAX_LINES needs a reason, and then a place in LONG_FILES."""
    lines = source.count("\n")
    return [f"{name}: {lines} lines"] if lines > MAX_LINES and name not in LONG_FILES else []


MODULE_RULES = (
    check_layers,
    check_extras,
    check_openings,
    check_variables,
    check_data,
    check_torch,
    check_configs,
    check_no_work_at_import,
    check_length,
)
LANGUAGE_RULES = (check_openings, check_variables)

# --- the tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", MODULE_RULES, ids=lambda rule: rule.__name__)
def test_ba_jax_keeps_the_rule(rule):
    assert BA_JAX, "no sources found"
    assert [line for name, source in BA_JAX.items() for line in rule(name, source)] == []


@pytest.mark.parametrize("rule", LANGUAGE_RULES, ids=lambda rule: rule.__name__)
def test_configs_benchmarks_and_tests_keep_the_rule(rule):
    assert [line for name, source in OTHERS.items() for line in rule(name, source)] == []


BROKEN = [
    (check_layers, "ba_jax.models.llm", "from ba_jax.sampling import loop"),
    (check_layers, "ba_jax.models.llm", "def f():\n    import ba_jax.convert.engine"),
    (check_layers, "ba_jax.audio.mel", "from ..models import layers"),
    (check_layers, "ba_jax.losses.lm", "from ba_jax import train"),
    (check_layers, "ba_jax.losses.lm", "importlib.import_module('ba_jax.stages.lm')"),
    (check_layers, "ba_jax.models.llm", "import tests.helpers"),
    (check_layers, "ba_jax.utils", ""),
    (check_openings, "ba_jax.models.llm", 'def f():\n    """Return x. What else it does."""'),
    (check_openings, "ba_jax.models.llm", "x = 1\n# As in\n# the paper."),
    (check_variables, "ba_jax.models.llm", "found = []"),
    (check_variables, "ba_jax.models.llm", "def f(told):\n    pass"),
    (check_variables, "tests.unit.test_run", "def one():\n    pass"),
    (check_data, "ba_jax.data.loader", "def f():\n    import jax"),
    (check_data, "ba_jax.data.loader", "from flax import linen"),
    (check_data, "ba_jax.data.loader", "from ba_jax.models import layers"),
    (check_torch, "ba_jax.models.llm", "def f():\n    import torch.nn as nn"),
    (check_torch, "ba_jax.convert.engine", "import torch"),
    (check_torch, "ba_jax.convert.engine", "from safetensors.torch import load_file"),
    (check_configs, "ba_jax.models.llm", "from ml_collections import ConfigDict"),
    (check_configs, "ba_jax.stages.lm", "def f():\n    from configs import models"),
    (check_no_work_at_import, "ba_jax.models.llm", "jax.config.update('jax_enable_x64', True)"),
    (check_no_work_at_import, "ba_jax.vocab", "with open('x') as f:\n    X = f.read()"),
    (check_length, "ba_jax.models.llm", "x = 1\n" * (MAX_LINES + 1)),
]


@pytest.mark.parametrize(("rule", "name", "source"), BROKEN)
def test_rule_catches(rule, name, source):
    assert rule(name, source) != []


FINE = [
    (check_layers, "ba_jax.sampling.loop", "from ba_jax.models import llm\nimport numpy"),
    (check_layers, "ba_jax.types", "from ba_jax import vocab"),
    (check_layers, "ba_jax.evals.runner", "from ba_jax.sampling import loop"),
    (check_extras, "ba_jax.evals.judges.recogniser", "from ba_jax.speech import whisper"),
    (check_openings, "ba_jax.models.llm", 'def f():\n    """Whatever it is."""'),
    (check_variables, "tests.unit.test_run", "def test_what_is_found():\n    x = y.found"),
    (check_data, "ba_jax.data.loader", "import grain\nfrom ba_jax.audio import mel"),
    (check_torch, "ba_jax.convert.engine", "def f():\n    import torch"),
    (check_configs, "ba_jax.train", "from ml_collections import config_flags"),
    (check_no_work_at_import, "ba_jax.train", "if __name__ == '__main__':\n    main()"),
    (check_length, "ba_jax.models.llm", "x = 1\n" * MAX_LINES),
]


@pytest.mark.parametrize(("rule", "name", "source"), FINE)
def test_rule_lets_pass(rule, name, source):
    assert rule(name, source) == []


def test_no_class_name_twice():
    twice = {name: homes for name, homes in class_names(BA_JAX).items() if len(homes) > 1}
    assert twice == {}


def test_no_cycles_between_files():
    assert find_cycle(BA_JAX) == []


def test_cycle_is_caught():
    modules = {
        "ba_jax.types": "from ba_jax import vocab",
        "ba_jax.vocab": "def f():\n    from ba_jax.audio import mel",
        "ba_jax.audio.mel": "if TYPE_CHECKING:\n    from ba_jax.types import Batch",
    }
    assert find_cycle(modules) != []


def test_imports_of_data_are_jax_free():
    assert check_jax_free(BA_JAX, PACKAGES) == []


def test_jax_free_rule_follows_the_chain():
    modules = {
        "ba_jax": "",
        "ba_jax.audio": "from . import mel",
        "ba_jax.audio.mel": "import ba_jax.types",
        "ba_jax.types": "import jax.numpy as jnp",
    }
    packages = {"ba_jax", "ba_jax.audio"}
    assert any(line.endswith("jax.numpy") for line in check_jax_free(modules, packages))
    modules["ba_jax.types"] = "if TYPE_CHECKING:\n    import jax\ndef f():\n    import jax"
    assert check_jax_free(modules, packages) == []


def run_python(code: str, cwd: pathlib.Path) -> str:
    """Runs code in a fresh interpreter that finds the tree but writes no bytecode into it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_data_loads_no_jax(tmp_path):
    roots = [name for name in BA_JAX if any(is_under(name, root) for root in DATA_MAY_IMPORT)]
    assert {"ba_jax.audio", "ba_jax.vocab", "ba_jax.types"} <= set(roots)
    banned = sorted(JAX_FAMILY | {"torch", "ml_collections", "librosa", "tensorflow"})
    code = f"import sys, {', '.join(roots)}\nprint([m for m in {banned} if m in sys.modules])"
    assert run_python(code, tmp_path).strip() == "[]"


def test_importing_ba_jax_has_no_side_effects(tmp_path):
    code = (
        "import os, sys, threading\n"
        "before = dict(os.environ), list(sys.path)\n"
        "import ba_jax\n"
        "assert (dict(os.environ), list(sys.path)) == before\n"
        "assert threading.active_count() == 1\n"
        "print(sorted(m for m in ('jax', 'numpy', 'flax', 'torch') if m in sys.modules))"
    )
    assert run_python(code, tmp_path).strip() == "[]"
    assert list(tmp_path.iterdir()) == []


def test_importing_every_module_starts_no_backend_and_no_torch(tmp_path):
    names = [name for name in BA_JAX if not name.endswith("__main__")]
    # JAX refuses to change the number of CPU devices once a backend has been initialised.
    code = (
        f"import sys, {', '.join(names)}\n"
        "import jax\n"
        "assert 'torch' not in sys.modules\n"
        "jax.config.update('jax_num_cpu_devices', 3)\n"
        "print(len(jax.devices()))"
    )
    assert run_python(code, tmp_path).strip() == "3"
    assert list(tmp_path.iterdir()) == []


def load_config(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(f"house_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Those with a `get_config`; the others hold what these share.
CONFIGS = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if "def get_config(" in path.read_text()
)


def config_cases() -> list[tuple[str, str]]:
    """(config, argument) of every argument that a config's ARGUMENTS names."""
    return [
        (stem, argument)
        for stem in CONFIGS
        for argument in load_config(ROOT / "configs" / f"{stem}.py").ARGUMENTS
    ]


@pytest.mark.parametrize(("stem", "argument"), config_cases())
def test_every_config_is_instantiated(stem, argument):
    config = load_config(ROOT / "configs" / f"{stem}.py").get_config(argument)
    assert isinstance(config, ml_collections.ConfigDict)
    assert len(config) > 0


@pytest.mark.parametrize("stem", CONFIGS)
def test_config_refuses_an_unknown_argument(stem):
    with pytest.raises((ValueError, KeyError), match="no-such-size"):
        load_config(ROOT / "configs" / f"{stem}.py").get_config("no-such-size")
