"""The scripts of launch/ with stub tools: dry runs, restarts and failures."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from tests.processes import PATIENCE, is_alive, wait_for

PODS = pathlib.Path(__file__).parents[2] / "docs" / "pods.md"
LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
TRAIN = ("python", "-m", "ba_jax.train", "--config=configs/lm_stage2.py:7b", "--distributed")
WORKDIR = "--workdir=/mnt/my bucket/it's $HOME"
"""Holds everything that must be quoted: spaces, a quote, a dollar."""
POD = {"NAME": "stage2", "PROJECT": "p", "ZONE": "us-east5-a", "TYPE": "v5p-128", "BUCKET": "b"}
GKE = {
    "NAME": "stage2",
    "PROJECT": "p",
    "ZONE": "us-east5-a",
    "TYPE": "v6e-256",
    "CLUSTER": "c",
    "STORAGE": "b",
}


def start(script, *arguments, tools=None, root=LAUNCH.parent, **settings):
    """A script as a process whose output is collected; `tools` comes first on PATH."""
    path = f"{tools}:/usr/bin:/bin" if tools else "/usr/bin:/bin"
    environment = {"PATH": path, "HOME": "/nowhere", "LC_ALL": "C", **settings}
    command = ["bash", str(root / "launch" / f"{script}.sh"), *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def call(script, *arguments, **settings):
    """(exit code, output) of a script."""
    process = start(script, *arguments, **settings)
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def dry_run(script, *arguments, **settings):
    """The commands that a script prints, split as a shell would."""
    code, output = call(script, *arguments, **settings)
    assert code == 0, output
    return [shlex.split(line) for line in output.splitlines() if not line.startswith("#")]


def write_tool(folder, name, text):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\nset -eu\n{text}\n")
    path.chmod(0o755)


# Dry runs.


@pytest.mark.parametrize("script", sorted(path.stem for path in LAUNCH.glob("*.sh")))
def test_every_script_begins_with_its_documentation(script):
    lines = (LAUNCH / f"{script}.sh").read_text().splitlines()
    is_sourced = script in ("common", "tpu_flags", "venv")
    assert (lines[0] == "#!/usr/bin/env bash") != is_sourced
    assert sum(line.startswith("#") for line in lines[:8]) >= 2
    if script in ("restart", "on_host", "local_mesh", "slurm", "setup_tpu", "run_pod", "xpk"):
        code, output = call(script, "--help")
        assert code == 0 and "--dry-run" in output and "set -euo" not in output


def test_setup_tpu_dry_run(tmp_path):
    commands = dry_run("setup_tpu", "--dry-run", BUCKET="b", MOUNT="/mnt/x y")
    assert [c[:2] for c in commands if c[0] == "sudo"] == [
        *[["sudo", "add-apt-repository"], ["sudo", "apt-get"], ["sudo", "apt-get"]],
        *[["sudo", "apt-get"], ["sudo", "apt-get"], ["sudo", "mkdir"], ["sudo", "chown"]],
    ]
    venv = str(LAUNCH.parent / ".venv")
    assert ["python3.11", "-m", "venv", venv] in commands
    install = [f"{venv}/bin/python", "-m", "pip", "install", "--quiet", "--constraint"]
    assert [*install, "launch/constraints.txt", "--editable", ".[tpu]"] in commands
    mount = next(c for c in commands if c[0] == "gcsfuse")
    assert mount[-2:] == ["b", "/mnt/x y"] and "--rename-dir-limit=200000" in mount
    assert "--metadata-cache-ttl-secs=0" in mount
    compile(commands[-1][2], "check", "exec")
    assert "jax.devices()" in commands[-1][2]
    bare = dry_run("setup_tpu", "--dry-run", "--no-mount", "--no-check")
    assert not any(c[0] == "gcsfuse" or "-c" in c for c in bare)


@pytest.mark.parametrize("slices", [1, 2])
def test_run_pod_dry_run(slices):
    settings = {**POD, "SLICES": str(slices), "SPOT": "yes", "CREATE_FLAGS": "--internal-ips"}
    commands = dry_run("run_pod", "run", "--dry-run", "--delete", *TRAIN, WORKDIR, **settings)
    gcloud = ["gcloud", "compute", "tpus", "queued-resources"]
    where = ["--zone=us-east5-a", "--project=p"]
    nodes = ["--node-id=stage2"] if slices == 1 else ["--node-count=2", "--node-prefix=stage2"]
    create = [*gcloud, "create", "stage2", *where, "--accelerator-type=v5p-128"]
    create += ["--runtime-version=v2-alpha-tpuv5", *nodes, "--spot", "--internal-ips"]
    assert commands[1] == create
    delete = [*gcloud, "delete", "stage2", *where, "--force", "--quiet"]
    assert commands[2] == commands[-1] == delete
    archive = str(LAUNCH.parent / ".cache" / "ba_jax.tar.gz")
    everywhere = ["--node=all", "--worker=all", "--batch-size=all"]
    assert commands[-4] == [*[*gcloud, "scp", archive, "stage2:ba_jax.tar.gz", *where, *everywhere]]
    setup, run = commands[-3], commands[-2]
    alive = "--ssh-flag=-oServerAliveInterval=30"
    assert setup[:-1] == run[:-1] == [*gcloud, "ssh", "stage2", *where, *everywhere, alive]
    assert "env BUCKET=b bash ba_jax/launch/setup_tpu.sh" in setup[-1]
    words = shlex.split(run[-1].removeprefix("--command="))  # by the hosts' shell
    assert words[:3] == ["cd", "ba_jax", "&&"] and words[-6:] == [*TRAIN, WORKDIR]
    assert "launch/on_host.sh" in words
    for other in ("create", "status", "stop", "delete"):
        assert all(
            c[0] in ("gcloud", "tar", "mkdir")
            for c in dry_run("run_pod", other, "--dry-run", **POD)
        )


@pytest.mark.parametrize(
    ("kind", "runtime"),
    [("v5litepod-256", "v2-alpha-tpuv5-lite"), ("v6e-256", "v2-alpha-tpuv6e")],
)
def test_run_pod_knows_the_runtime(kind, runtime):
    commands = dry_run("run_pod", "create", "--dry-run", **{**POD, "TYPE": kind})
    assert f"--runtime-version={runtime}" in commands[1]


def test_xpk_dry_run_prints_the_commands_that_run(tmp_path):
    shutil.copytree(LAUNCH, tmp_path / "tree" / "launch")
    write_tool(tmp_path / "tools", "xpk", f'printf "%s\\0" "$@" >>{tmp_path}/calls')
    for arguments in (["run", *TRAIN, WORKDIR], ["attach"], ["status"], ["delete"]):
        settings = {**GKE, "BUCKET": "b", "root": tmp_path / "tree"}
        printed = dry_run("xpk", arguments[0], "--dry-run", *arguments[1:], **settings)[-1]
        code, output = call("xpk", *arguments, tools=tmp_path / "tools", **settings)
        assert code == 0, output
        called = (tmp_path / "calls").read_text().split("\0")[:-1]
        (tmp_path / "calls").unlink()
        assert ["xpk", *called] == printed
        if arguments[0] == "run":
            assert {"--restart-on-exit-codes=75", "--max-restarts=50", "--tpu-type=v6e-256"} < {
                *called
            }
            command = called[-1].removeprefix("--command=")
            assert "setup_tpu.sh --no-mount --no-check && exec bash launch/restart.sh" in command
            assert shlex.split(command)[-6:] == [*TRAIN, WORKDIR]
    assert (tmp_path / "tree" / ".cache" / "tree" / "launch" / "restart.sh").exists()
    image = dry_run("xpk", "run", "--dry-run", *TRAIN, IMAGE="gcr.io/p/i", **GKE)
    assert len(image) == 1 and "--docker-image=gcr.io/p/i" in image[0]
    assert "--command=exec bash launch/restart.sh " + " ".join(TRAIN) == image[0][-1]


@pytest.mark.parametrize(
    ("processes", "gpus", "tasks", "environment"),
    [
        ("gpu", 8, 32, []),
        ("node", 8, 4, ["env", "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7"]),
        ("gpu", 0, 4, ["env", "JAX_PLATFORMS=cpu"]),
    ],
)
def test_slurm_dry_run(processes, gpus, tasks, environment):
    settings = {"SLURM_JOB_NUM_NODES": "4", "PROCESSES": processes}
    if gpus:
        settings["SLURM_GPUS_ON_NODE"] = str(gpus)
    srun, stop, requeue = dry_run("slurm", "--dry-run", *TRAIN, WORKDIR, **settings)
    assert srun[:4] == ["srun", "--nodes=4", f"--ntasks={tasks}", f"--ntasks-per-node={tasks // 4}"]
    restart = ["bash", str(LAUNCH / "restart.sh"), "--once"]
    assert srun[-9 - len(environment) :] == [*environment, *restart, *TRAIN, WORKDIR]
    assert stop == ["scancel", "--signal=TERM", "JOB"] and requeue == ["scontrol", "requeue", "JOB"]


def test_local_mesh_dry_run():
    (command,) = dry_run("local_mesh", "--dry-run", 8, "python", "a b.py", XLA_FLAGS="--xla_x")
    flags = "XLA_FLAGS=--xla_x --xla_force_host_platform_device_count=8"
    assert command == ["env", "JAX_PLATFORMS=cpu", flags, "python", "a b.py"]
    options = ("--processes", "--devices=4", "--port=25000", "--dry-run")
    two = dry_run("local_mesh", 2, *options, *TRAIN[:-1], WORKDIR)
    for number, command in enumerate(two):
        assert command[2] == "XLA_FLAGS=--xla_force_host_platform_device_count=4"
        assert command[3:] == [
            *[*TRAIN[:-1], WORKDIR, "--distributed", "--coordinator=127.0.0.1:25000"],
            *["--processes=2", f"--process={number}"],
        ]


@pytest.mark.parametrize(
    ("script", "arguments", "settings", "names"),
    [
        ("setup_tpu", [], {}, "BUCKET"),
        ("setup_tpu", [], {"BUCKET": "gs://b"}, "gs://b"),
        ("setup_tpu", [], {"BUCKET": "b", "MOUNT": "x"}, "MOUNT=x"),
        ("run_pod", [], POD, "subcommand"),
        ("run_pod", ["start"], POD, "start"),
        ("run_pod", ["run"], POD, "no command"),
        ("run_pod", ["run", "--what", "x"], POD, "--what"),
        ("run_pod", ["delete", "--delete"], POD, "--delete"),
        *[("run_pod", ["run", "x"], {**POD, name: ""}, name) for name in POD],
        ("run_pod", ["run", "x"], {**POD, "TYPE": "tpu7x-128"}, "xpk.sh"),
        ("run_pod", ["run", "x"], {**POD, "TYPE": "v9-8"}, "RUNTIME"),
        ("run_pod", ["run", "x"], {**POD, "SPOT": "true"}, "SPOT=true"),
        ("run_pod", ["run", "x"], {**POD, "SLICES": "0"}, "SLICES=0"),
        *[("xpk", ["run", "x"], {**GKE, name: ""}, name) for name in GKE],
        ("xpk", ["attach"], GKE, "BUCKET"),
        ("xpk", ["run", "x"], {**GKE, "NAME": "Stage_2"}, "Stage_2"),
        ("xpk", ["run", "x"], {**GKE, "IMAGE": "a", "BASE_IMAGE": "b"}, "IMAGE"),
        ("slurm", ["x"], {}, "sbatch"),
        ("slurm", ["--dry-run", "x"], {"PROCESSES": "core"}, "PROCESSES=core"),
        ("slurm", ["--dry-run"], {}, "no command"),
        ("local_mesh", ["x", "y"], {}, "N=x"),
        ("local_mesh", ["0", "y"], {}, "N=0"),
        ("local_mesh", ["2"], {}, "no command"),
        ("local_mesh", ["2", "--devices=2", "y"], {}, "--processes"),
        ("restart", [], {}, "no command"),
        ("restart", ["--restarts=many", "x"], {}, "--restarts=many"),
        ("restart", ["--never", "x"], {}, "--never"),
        ("restart", ["--dry-run", "x", "--workdir=gs://b/x"], {}, "gs://b/x: expected a path"),
        ("restart", ["--dry-run", "x", "--workdir=$NOT_SET/x"], {}, "$NOT_SET is not set"),
        ("restart", ["--dry-run", "x", "--workdir=~nobody_here"], {}, "no home folder of ~nobody"),
        ("on_host", [], {}, "no command"),
    ],
)
def test_missing_or_invalid_arguments_are_named(script, arguments, settings, names):
    code, output = call(script, *arguments, **settings)
    assert code == 2 and names in output, output


def test_the_restart_loop_looks_where_the_command_writes():
    for path, place in {
        "~/a": "/home/ann/a",
        "$RUNS/a": "/data/a",
        "${RUNS}$/$RUNS$RUNS": "/data$//data/data",
        "~": "/home/ann",
        "a~/b": "a~/b",
    }.items():
        code, output = call(
            "restart", "--dry-run", "x", "--workdir", path, HOME="/home/ann", RUNS="/data"
        )
        assert code == 0 and output.splitlines()[0].endswith(f" in {shlex.quote(place)}"), output


def documented_commands():
    """(script, arguments with --dry-run, settings) of each command with a script of launch/."""
    settings = {}
    for line in PODS.read_text().split("```")[1].replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["export"]:
            settings.update(word.split("=") for word in words[1:])
        at = next((i for i, word in enumerate(words) if word.startswith("launch/")), None)
        if at is not None and "--dry-run" not in words:
            first = next(i for i, word in enumerate(words) if not re.match("[A-Z]+=", word))
            variables = dict(word.split("=") for word in words[:first])
            script = words[at].removeprefix("launch/").removesuffix(".sh")
            rest = words[at + 1 :]
            rest.insert(1 if script in ("run_pod", "xpk") else 0, "--dry-run")
            yield script, rest, {**settings, **variables}


def test_commands_of_docs_pods():
    scripts = set()
    for script, arguments, settings in documented_commands():
        assert dry_run(script, *arguments, **settings)
        scripts.add(script)
    assert scripts == {"local_mesh", "restart", "setup_tpu", "run_pod", "xpk", "slurm"}


# The restart loop.


def loop(*arguments, **settings):
    return call("restart", "--delay=0", *arguments, **settings)


@pytest.fixture
def run(tmp_path):
    """Make (fake training command with a --workdir, the workdir) from its exit codes in order.

    A code after `+` writes a checkpoint first, after `!` the file `done`.
    """

    def make(*codes):
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        workdir = tmp_path / "run dir"
        (workdir / "checkpoints" / "3.orbax-tmp").mkdir(parents=True)
        write_tool(
            tmp_path / "bin",
            "train",
            f"""
            cd {shlex.quote(str(workdir))}
            code=$(head -n 1 ../codes)
            sed -i 1d ../codes
            echo "argument: $2"
            case $code in +*) mkdir checkpoints/$(($(ls checkpoints | wc -l) * 100)) ;; esac
            case $code in *!*) touch done ;; esac
            code=${{code#+}}
            code=${{code#!}}
            [ "$code" -lt 128 ] || kill -s $((code - 128)) $$
            exit "$code"
            """,
        )
        return [str(tmp_path / "bin" / "train"), f"--workdir={workdir}", "two words"], workdir

    return make


@pytest.mark.parametrize(
    ("codes", "code", "starts"),
    [
        (["+75", "+137", "!0"], 0, 3),  # a lost host, a crash, done
        (["+0", "+0", "!0"], 0, 3),  # stopped by signals that others sent
        (["1", "!0"], 1, 1),  # somebody has to look
        (["+75", "2", "!0"], 2, 2),
        (["75", "134", "75", "!0"], 1, 3),  # twice again without a checkpoint, then no more
        (["75", "75", "+75", "75", "75", "!0"], 0, 6),  # a checkpoint counts from the start
    ],
    ids=str,
)
def test_restarts_until_done(run, codes, code, starts):
    command, _ = run(*codes)
    status, output = loop("--restarts=2", *command)
    assert (status, output.count("argument: two words")) == (code, starts), output
    assert ("gives up" in output) == (starts == 3 and code == 1)


def test_a_permanent_failure_ends_the_other_loops(run):
    command, workdir = run("75", "1", "75", "+75", "!0")
    for code in (75, 1):  # two processes under srun, say: the highest code is 75
        assert call("restart", "--once", *command)[0] == code
    assert (workdir / "failed").read_text().endswith(" ended with 1\n")
    # Another host's loop; the failure is recorded while it runs.
    other = ["bash", "-c", f"echo host 3 ended with 2 >'{workdir}/failed'; exit 75", "x"]
    code, output = loop(*other, f"--workdir={workdir}")
    assert code == 1 and "as host 3 ended with 2" in output
    assert loop(*command)[0] == 0  # a new start forgets it


def test_a_command_without_a_workdir_ends_at_exit_code_0(tmp_path):
    status = tmp_path / "status"
    code, output = loop(f"--status={status}", "bash", "-c", "echo once")
    assert (code, output, status.read_text()) == (0, "once\n", "0\n")


@pytest.mark.parametrize("given", [{}, {"LIBTPU_INIT_ARGS": ""}, {"LIBTPU_INIT_ARGS": "--own=1"}])
def test_libtpu_gets_its_arguments(given):
    """Those in the environment come first, none as well."""
    _, output = loop("bash", "-c", 'echo "$LIBTPU_INIT_ARGS"', **given)
    arguments = output.split()
    if given:
        assert arguments == given["LIBTPU_INIT_ARGS"].split()
    else:
        assert "--xla_enable_async_all_gather=true" in arguments
        assert all(re.fullmatch(r"--xla_\w+=true", argument) for argument in arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_the_loop(tmp_path, number):
    name = number.name.removeprefix("SIG")
    command = f"trap 'echo traced' USR1; trap 'echo saved {name}; exit 0' {name}; echo up; "
    command += "while :; do sleep 0.1; done"
    process = start("restart", f"--workdir={tmp_path}", "bash", "-c", command)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "traced\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75  # not done
    assert output.startswith(f"saved {name}\n") and output.count("saved") == 1


def test_a_signal_between_two_starts_ends_the_loop(tmp_path):
    process = start("restart", "--delay=60", f"--workdir={tmp_path}", "bash", "-c", "exit 75")
    assert "starts again in 60 s" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) == 75


# A single host.


def test_on_host_outlives_its_connection(tmp_path):
    (tmp_path / "go").write_text("")
    command = ["bash", "-c", f"echo up; while [ -e {tmp_path}/go ]; do sleep 0.1; done; echo end"]
    first = start("on_host", *command, HOME=str(tmp_path))
    assert first.stdout.readline() == "up\n"
    assert call("on_host", "--ended", HOME=str(tmp_path))[0] == 1
    os.killpg(first.pid, signal.SIGKILL)  # as sshd ends the processes of a session
    code, output = call("on_host", "other", "command", HOME=str(tmp_path))
    assert code == 2 and "up" in output
    again = start("on_host", *command, HOME=str(tmp_path))
    assert "attached" in again.stdout.readline()
    (tmp_path / "go").unlink()
    # Not `communicate`, which loses lines that `readline` has buffered.
    assert (again.stdout.read(), again.wait(PATIENCE)) == ("up\nend\n", 0)
    assert call("on_host", "--ended", HOME=str(tmp_path))[0] == 0


@pytest.mark.parametrize("by", ["--stop", "the host"])
def test_exit_codes_of_a_stop_and_of_a_host_that_ends(tmp_path, by):
    command = "trap 'echo saved; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    command = ["bash", "-c", command, "x", f"--workdir={tmp_path}"]
    process = start("on_host", *command, HOME=str(tmp_path))
    assert process.stdout.readline() == "up\n"
    if by == "--stop":
        code, output = call("on_host", "--stop", HOME=str(tmp_path))
        assert code == 0 and "saved" in output and "ended with 75" in output
    else:
        os.kill(int((tmp_path / ".ba_jax_run" / "pid").read_text()), signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert "saved" in output and process.returncode == (75 if by == "--stop" else 76)


@pytest.fixture
def tree(tmp_path):
    """A tree to install, and a maker of interpreters that log their commands to `calls`."""
    shutil.copytree(LAUNCH, tmp_path / "tree" / "launch")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(LAUNCH.parent / name, tmp_path / "tree")

    def make_python(version, folder=tmp_path / "tools"):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"python{version}"
        write_tool(
            folder,
            path.name,
            f"""[ "$1" = -c ] && case $2 in *version_info*) echo {version} && exit ;; esac
            echo "python $*" >>{tmp_path}/calls
            [ "$2" != venv ] || {{ mkdir -p "$3/bin"; cp {path} "$3/bin/python"; }}""",
        )

    tmp_path.joinpath("tools").mkdir()
    write_tool(tmp_path / "tools", "sudo", f'echo "sudo $*" >>{tmp_path}/calls')
    return {"root": tmp_path / "tree", "tools": tmp_path / "tools"}, make_python


def test_setup_tpu_skips_finished_parts(tmp_path, tree):
    settings, make_python = tree
    settings["BUCKET"] = "b"
    log, mounted = tmp_path / "calls", tmp_path / "mounted"
    make_python("3.11")
    write_tool(
        settings["tools"], "gcsfuse", f'echo "gcsfuse ${{*: -2}}" >>{log}; echo b >{mounted}'
    )
    write_tool(settings["tools"], "findmnt", f"cat {mounted}")
    code, output = call("setup_tpu", **settings)
    assert code == 0, output
    calls = [line.split(" ")[:3] for line in log.read_text().splitlines()]
    venv = [["python", "-m", "venv"], ["python", "-m", "pip"]]
    mount = [["sudo", "mkdir", "-p"], ["sudo", "chown", calls[3][2]], ["gcsfuse", "b", "/mnt/b"]]
    check = [["python", "-c", "import"]]
    assert calls[: len(venv + mount + check)] == venv + mount + check
    log.unlink()
    code, output = call("setup_tpu", **settings)
    assert code == 0 and log.read_text().startswith("python -c import jax"), output
    mounted.write_text("another\n")
    code, output = call("setup_tpu", **settings)
    assert code == 2 and "has another, expected b" in output


BARE = ("setup_tpu", "--no-mount", "--no-check")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"PYTHON": "python3.14"}, "python3.14 is 3.14, expected Python 3.11, 3.12, 3.13;"),
        ({"PYTHON": "python9"}, "python9 is no Python that runs, expected Python 3.11,"),
        ({"PYTHON": "python3.12"}, "VENV=.venv-3.12"),
        ({"VERSIONS": "oldest"}, "VERSIONS=oldest: expected locked, newest or lowest"),
    ],
)
def test_an_interpreter_or_versions_that_cannot_be_taken(tree, settings, message):
    places, make_python = tree
    for version in ("3.11", "3.12", "3.14"):
        make_python(version)
    assert call(*BARE, PYTHON="python3.11", **places)[0] == 0
    code, output = call(*BARE, **places, **settings)
    assert code == 2 and message in output.splitlines()[-1], output


def test_an_interpreter_is_looked_for_where_pyenv_keeps_it(tmp_path, tree):
    places, make_python = tree
    write_tool(tmp_path / "tools", "python3.13", "echo 'pyenv: 3.13 is not chosen' >&2; exit 127")
    make_python("3.13", tmp_path / "home" / ".pyenv" / "versions" / "3.13.0" / "bin")
    code, output = call(*BARE, PYTHON="python3.13", HOME=str(tmp_path / "home"), **places)
    assert code == 0, output


@pytest.mark.parametrize(
    ("versions", "options"),
    [
        ("locked", "--constraint {root}/launch/constraints.txt"),
        ("newest", "--upgrade --upgrade-strategy eager"),
        ("lowest", "--constraint {root}/.venv/lowest.txt"),
    ],
)
def test_versions_that_are_installed(tmp_path, tree, versions, options):
    places, make_python = tree
    make_python("3.12")
    code, output = call(*BARE, PYTHON="python3.12", VERSIONS=versions, **places)
    assert code == 0, output
    command = (tmp_path / "calls").read_text().splitlines()[-1]
    options = options.format(root=places["root"])
    assert command == f"python -m pip install --quiet {options} --editable .[tpu]"
    if versions == "lowest":
        lines = (places["root"] / ".venv" / "lowest.txt").read_text().splitlines()
        assert "flax==0.12.8" in lines and all(re.fullmatch(r"[\w-]+==[\d.]+", x) for x in lines)


# A pod.


GCLOUD = """
shift 3
echo "$1" >>$pod/calls
case $1 in
  describe)
    [ -e $pod/state ] || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }
    cat $pod/state
    [ "$(cat $pod/state)" != WAITING_FOR_RESOURCES ] || echo ACTIVE >$pod/state
    ;;
  create)
    [ -z "${REFUSED:-}" ] || { echo "ERROR: no quota" >&2; exit 1; }
    echo WAITING_FOR_RESOURCES >$pod/state
    mkdir -p $pod/0 $pod/1
    ;;
  delete) rm -rf $pod/state $pod/0 $pod/1 ;;
  scp) for host in 0 1; do cp "$2" "$pod/$host/"; done ;;
  ssh)
    command=${*: -1}
    command=${command#--command=}
    command=${command/bash ba_jax\\/launch\\/setup_tpu.sh/echo setup >>$pod/calls}
    pids=() code=0
    for host in 0 1; do
      [ -d $pod/$host ] || exit 1
      (cd $pod/$host && HOME=$PWD host=$host exec bash -c "$command") &
      pids+=($!)
    done
    for pid in "${pids[@]}"; do wait $pid || code=$?; done
    # Hosts that are gone answer with nothing.
    case $(cat $pod/state) in ACTIVE) exit $code ;; *) exit 255 ;; esac
    ;;
esac
"""


@pytest.fixture
def pod(tmp_path):
    """(folder, settings): a gcloud with a pod of two hosts, which are folders."""
    shutil.copytree(LAUNCH, tmp_path / "tree" / "launch")
    folder = tmp_path / "pod"
    folder.mkdir()
    write_tool(tmp_path / "tools", "gcloud", f"pod={folder}\n{GCLOUD}")
    settings = {"tools": tmp_path / "tools", "root": tmp_path / "tree", "POLL": "0"}
    return folder, {**POD, **settings, "DELAY": "0", "RESTARTS": "1"}


def on_each_host(folder, text):
    """A command for each host of a pod; $host is its number, $turn counts the pod's starts."""
    script = folder / "command"
    script.write_text(
        f"pod={folder}\necho x >>$pod/starts-$host\nturn=$(wc -l <$pod/starts-$host)\n{text}"
    )
    return ["bash", script, f"--workdir={folder}/run"]


def calls(folder):
    return (folder / "calls").read_text().split()


def test_a_preempted_pod_is_requested_again(pod):
    folder, settings = pod
    command = on_each_host(
        folder,
        """
        echo "host $host, turn $turn"
        mkdir -p $pod/run/checkpoints/$turn
        if [ $turn = 1 ]; then
          # Both are taken away together.
          touch $pod/here-$host
          until [ -e $pod/here-0 ] && [ -e $pod/here-1 ]; do sleep 0.1; done
          echo SUSPENDED >$pod/state
          kill -s KILL $(cat $HOME/.ba_jax_run/pid) $$
        fi
        touch $pod/run/done
        """,
    )
    code, output = call("run_pod", "run", "--delete", *command, **settings)
    assert code == 0, output
    for line in ("host 0, turn 1", "host 1, turn 2", "stage2 is SUSPENDED", "stage2 is ACTIVE"):
        assert line in output
    names = [name for name in calls(folder) if name not in ("describe", "setup")]
    assert names[:4] == ["create", "scp", "ssh", "ssh"]
    assert names[-6:] == ["delete", "create", "scp", "ssh", "ssh", "delete"]
    assert calls(folder).count("setup") == 4 and not (folder / "state").exists()


@pytest.mark.parametrize("code", [1, 2])
def test_a_permanent_failure_ends_the_run(pod, code):
    folder, settings = pod
    command = on_each_host(folder, f"exit {code}")
    status, output = call("run_pod", "run", *command, **settings)
    assert status == code and "delete" not in calls(folder), output
    assert (folder / "starts-0").read_text() == "x\n"


def test_a_crash_is_restarted_on_the_host(pod):
    folder, settings = pod
    command = on_each_host(
        folder, "[ $turn = 2 ] || exit 75\nmkdir -p $pod/run\ntouch $pod/run/done"
    )
    code, output = call("run_pod", "run", *command, **settings)
    assert code == 0 and calls(folder).count("create") == 1, output


def test_stop_and_resume(pod):
    folder, settings = pod
    command = on_each_host(
        folder,
        """
        mkdir -p $pod/run
        [ $turn = 1 ] || { touch $pod/run/done; exit 0; }
        trap 'exit 0' TERM
        touch $pod/ready-$host
        while :; do sleep 0.1; done
        """,
    )
    process = start("run_pod", "run", *command, **settings)
    wait_for(lambda: all((folder / f"ready-{host}").exists() for host in (0, 1)))
    code, output = call("run_pod", "stop", **settings)
    assert code == 0 and output.count("ended with 75") == 2, output
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, output
    code, output = call("run_pod", "run", *command, **settings)
    assert code == 0 and calls(folder).count("create") == 1, output


def test_refused_requests_end_the_script(pod):
    folder, settings = pod
    code, output = call("run_pod", "run", "true", FAILURES="3", REFUSED="yes", **settings)
    assert code == 1 and output.count("no quota") == 3 and "3 requests failed" in output, output


# SLURM.


@pytest.mark.parametrize("ends", ["in time", "by the limit", "by scancel"])
def test_slurm_job(tmp_path, ends):
    shutil.copytree(LAUNCH, tmp_path / "launch")
    spool = tmp_path / "spool" / "launch"
    spool.mkdir(parents=True)
    shutil.copy(LAUNCH / "slurm.sh", spool / "slurm.sh")  # as SLURM does
    tools = tmp_path / "tools"
    # Like the real srun: a SIGTERM to it would kill its tasks.
    srun = """
    while [[ $1 == -* ]]; do shift; done
    "$@" &
    echo $! >pid
    trap 'kill -s KILL $(cat pid)' TERM
    wait $(cat pid)
    """
    write_tool(tools, "srun", srun)
    write_tool(tools, "scancel", '[ "$*" = "--signal=TERM 7" ]; kill -s TERM $(cat pid)')
    write_tool(tools, "scontrol", f'echo "$*" >>{tmp_path}/calls')
    command = f"trap 'echo saved; exit 0' TERM; [ '{ends}' != 'in time' ] || touch $1/done; "
    command += "echo up; until [ -e $1/done ]; do sleep 0.1; done"
    process = start(
        "slurm",
        *["bash", "-c", command, "x", str(tmp_path), f"--workdir={tmp_path}"],
        root=tmp_path / "spool",
        tools=tools,
        SLURM_JOB_ID="7",
        SLURM_SUBMIT_DIR=str(tmp_path),
    )
    assert process.stdout.readline() == "up\n"
    if ends != "in time":
        process.send_signal(signal.SIGUSR2 if ends == "by the limit" else signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert ("saved" in output) == (ends != "in time"), output
    assert process.returncode == (75 if ends == "by scancel" else 0)
    assert (tmp_path / "calls").exists() == (ends == "by the limit")
    if ends == "by the limit":
        assert (tmp_path / "calls").read_text() == "requeue 7\n"


# The local machine.


def test_local_mesh_of_simulated_devices():
    code, output = call(
        "local_mesh", 4, sys.executable, "-c", "import jax; print(jax.device_count(), 'devices')"
    )
    assert code == 0 and "4 devices" in output


def test_local_mesh_of_processes():
    script = 'echo "out of $# words: ${*: -1}"; echo "of $2" >&2'
    code, output = call("local_mesh", 2, "--processes", "bash", "-c", script, "x", "a b", "c d")
    assert code == 0, output
    assert sorted(output.splitlines()) == [
        *["[0] of c d", "[0] out of 6 words: --process=0"],
        *["[1] of c d", "[1] out of 6 words: --process=1"],
    ]


@pytest.mark.parametrize("grace", [0, 20])
def test_local_mesh_ends_when_a_process_fails(tmp_path, grace):
    script = f"""
    echo $$ >{tmp_path}/pid${{*: -1}}
    trap '[ {grace} = 0 ] || {{ echo saved; exit 0; }}' TERM
    touch {tmp_path}/ready${{*: -1}}
    until [ -e {tmp_path}/ready--process=0 ]; do sleep 0.1; done
    [ ${{*: -1}} = --process=0 ] || kill -s KILL $$
    while :; do sleep 0.1; done
    """
    code, output = call(
        "local_mesh", 2, "--processes", f"--grace={grace}", "bash", "-c", script, "x"
    )
    assert code == 137 and ("[0] saved" in output) == bool(grace), output
    assert not is_alive(int((tmp_path / "pid--process=0").read_text()))


def test_local_mesh_returns_a_permanent_exit_code(tmp_path):
    up = shlex.quote(str(tmp_path / "up"))
    first = f"until [ -e {up} ]; do sleep 0.05; done; exit 75"
    script = f"[ ${{*: -1}} = --process=1 ] || {{ {first}; }}; trap '' TERM; touch {up}; "
    script += "sleep 0.5; exit 1"
    code, output = call("local_mesh", 2, "--processes", "bash", "-c", script, "x")
    assert code == 1, output


def test_local_mesh_forwards_signals(tmp_path):
    script = f"trap 'echo saved; exit 0' TERM; touch {tmp_path}/up${{*: -1}}; "
    script += "while :; do sleep 0.1; done"
    process = start("local_mesh", 2, "--processes", "bash", "-c", script, "x")
    wait_for(lambda: len(list(tmp_path.glob("up*"))) == 2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert sorted(output.splitlines()) == ["[0] saved", "[1] saved"]
