"""Detection of other processes. Runs on several hosts: tests/integration/test_train_hosts.py."""

from __future__ import annotations

import os
import signal
import types

import pytest
from absl import flags as absl_flags

from ba_jax import distributed
from ba_jax.distributed import DistributedError, HostLostError, Signals

COMMAND = "python -m ba_jax.train --workdir=x"
FLAGS = ("host:1", 4, 3)


def settings(environment=None, coordinator=None, processes=None, process=None):
    return distributed._settings(environment or {}, coordinator, processes, process)


def explicit(address: str, count: int, index: int) -> dict:
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def variables(**changes) -> dict[str, str]:
    named = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    return {name: value for name, value in (named | changes).items() if value}


def slurm(**changes) -> dict[str, str]:
    named = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8", "SLURM_LOCALID": "1"}
    return named | {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1"} | changes


def test_flags_take_precedence():
    assert settings(variables() | slurm(), "other:2", 2, 0) == (
        explicit("other:2", 2, 0),
        "from flags",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"JAX_COORDINATOR_ADDRESS": "host", "JAX_COORDINATOR_PORT": "1"},
        {"JAX_PROCESS_ID": "", "JOB_COMPLETION_INDEX": "3"},
    ],
)
def test_variables_precede_detection(changes):
    assert settings(variables(**changes) | slurm()) == (explicit("host:1", 4, 3), "from variables")


def test_jax_detects_the_rest():
    assert settings() == ({}, "found by JAX")
    # A Kubernetes job that JAX detects itself, or an address without a count.
    assert settings({"JOB_COMPLETION_INDEX": "3"}) == ({}, "found by JAX")
    assert settings({"JAX_COORDINATOR_ADDRESS": "host:1"}) == ({}, "found by JAX")


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({}, [4, 5, 6, 7]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}, list(range(8))),
        ({"SLURM_STEP_TASKS_PER_NODE": "8"}, [1]),
        ({"SLURM_GPUS_ON_NODE": "0"}, None),
    ],
)
def test_slurm_task_gets_an_equal_share_of_the_gpus(changes, devices):
    arguments, origin = settings(slurm(**changes))
    assert arguments == ({} if devices is None else {"local_device_ids": devices})
    assert origin == "SLURM job 7"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coordinator": "host:1"}, "--coordinator without --processes and --process"),
        ({"processes": 2, "process": 0}, "--processes, --process without --coordinator"),
        ({"process": 0}, "--process without --coordinator and --processes"),
        ({"coordinator": "host", "processes": 2, "process": 0}, "'host': expected HOST:PORT"),
        ({"coordinator": "h:1", "processes": 2, "process": 2}, "--process = 2: expected 0 to 1"),
        ({"environment": variables(JAX_NUM_PROCESSES="")}, "without JAX_NUM_PROCESSES"),
        ({"environment": variables(JAX_PROCESS_ID="")}, "without JAX_PROCESS_ID"),
        ({"environment": variables(JAX_COORDINATOR_ADDRESS="")}, "without JAX_COORDINATOR_ADDRESS"),
        ({"environment": variables(JAX_PROCESS_ID="first")}, "JAX_PROCESS_ID = 'first': expected"),
        ({"environment": slurm(SLURM_GPUS_ON_NODE="3")}, "3 GPUs and 2 tasks on a node"),
    ],
)
def test_missing_or_invalid_setting_is_named(arguments, message):
    with pytest.raises(DistributedError, match=message):
        settings(**arguments)


@pytest.fixture
def flag_values(monkeypatch):
    values = absl_flags.FlagValues()
    monkeypatch.setattr(distributed.flags, "FLAGS", values)
    for kind in ("bool", "string", "integer"):
        define = getattr(absl_flags, f"DEFINE_{kind}")
        monkeypatch.setattr(
            distributed.flags,
            f"DEFINE_{kind}",
            lambda *args, define=define: define(*args, flag_values=values),
        )
    distributed.define_flags()
    return values


def test_flags_without_distributed_are_refused(flag_values):
    flag_values(["x"])
    assert distributed.initialize_from_flags(COMMAND) is None
    flag_values(["x", "--process=1"])
    with pytest.raises(DistributedError, match="--process without --distributed"):
        distributed.initialize_from_flags(COMMAND)


def test_message_if_no_cluster_is_detected(monkeypatch):
    for name in (*variables(), *slurm(), "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "_exit_cleanly_on_abort", lambda: None)

    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(distributed.jax.distributed, "initialize", initialize)
    with pytest.raises(DistributedError, match="expected a TPU pod, SLURM, .*or --coordinator"):
        distributed.initialize(COMMAND)


def test_error_of_a_single_process_is_no_host_loss():
    assert not distributed.is_host_loss(
        ValueError("Gloo all-reduce failed: Connection closed by peer")
    )
    assert distributed.is_host_loss(HostLostError("not all came"))


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("UNKNOWN: Gloo all-reduce failed: [...] Connection closed by peer [127.0.0.1]:4", True),
        ("Timed out while waiting for async_write_complete barrier.", True),
        ("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)", True),
        ("NCCL operation ncclAllReduce failed: remote process exited", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes", False),
        ("No space left on device", False),
    ],
)
def test_errors_that_another_process_explains(monkeypatch, text, loss):
    monkeypatch.setattr(distributed, "_has_other_processes", lambda: True)
    assert distributed.is_host_loss(RuntimeError(text)) == loss


def test_exit_with_error_of_a_single_process(capfd):
    with pytest.raises(SystemExit) as error:
        distributed.exit_with_error(COMMAND, ValueError("wrong"), 1, "more")
    assert str(error.value) == "ba_jax.train: wrong\nmore"
    with pytest.raises(SystemExit) as error:
        distributed.exit_with_error(COMMAND, ValueError("wrong"), 2)
    assert error.value.code == 2
    assert capfd.readouterr().err == "ba_jax.train: wrong\n"


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_stops_unless_it_was_ignored(ignored):
    """Background jobs of a shell start with SIGINT ignored; SIGTERM stops them."""
    handler = signal.SIG_IGN if ignored else signal.default_int_handler
    previous = signal.signal(signal.SIGINT, handler)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.stop is not ignored
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.stop
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize("backend, kept", [("cpu", [(-4, 0), (-1, 2**31 - 1)]), ("tpu", [])])
def test_memory_is_kept_on_cpus_alone(backend, kept, monkeypatch):
    options = []
    library = types.SimpleNamespace(mallopt=lambda *option: options.append(option))
    monkeypatch.setattr(distributed.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(distributed.jax, "default_backend", lambda: backend)
    monkeypatch.setattr(distributed.jax.config, "update", lambda name, value: None)
    distributed.reuse_memory_on_cpu()
    assert options == kept
    monkeypatch.setattr(distributed.ctypes, "CDLL", lambda name: object())  # another C library
    distributed.reuse_memory_on_cpu()
