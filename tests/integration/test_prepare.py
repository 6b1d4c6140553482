"""The command `python -m ba_jax.corpora`: processes, signals, a Beam pipeline."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import sys

import pytest

from ba_jax.corpora import pool, runner
from ba_jax.corpora.beam import BeamRunner
from ba_jax.corpora.sources.base import SourceError
from ba_jax.data.record import RecordSource
from tests.processes import finish, is_alive, run_here, start, wait_for
from tests.unit.corpora.corpora import config, contents, manifest, put, tone

CLIPS, PER_SHARD = 48, 4
FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> pathlib.Path:
    """A manifest of clips, some of them bad, of two splits."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for n in range(CLIPS):
        put(folder / f"{n}.flac", tone(1.0, 150 + 10 * n, 44100), rate=44100)
        split = "dev" if n % 12 == 11 else "train"
        line = {"id": f"u{n}", "audio": f"{n}.flac", "text": f"Clip {n}.", "split": split}
        lines.append(line | {"speaker": f"s{n % 3}"})
    (folder / "7.flac").write_bytes((folder / "7.flac").read_bytes()[:900])
    lines += [lines[0], "{bad", {"text": "written <C_Q>"}]
    manifest(folder, *lines)
    return folder


def command(corpus: pathlib.Path, out: pathlib.Path | None, *extra: str) -> list[str]:
    words = [
        sys.executable,
        "-m",
        "ba_jax.corpora",
        "--config=configs/prepare.py:manifest",
        f"--config.source.path={corpus / 'm.jsonl'}",
        f"--config.items_per_shard={PER_SHARD}",
        *extra,
    ]
    return words if out is None else [*words, f"--out={out}"]


def here(words: list[str], code: int = 0) -> tuple[str, str]:
    """Run a command in this process, without workers."""
    return run_here(*words[2:], "--workers=0", code=code)


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> pathlib.Path:
    """The dataset made by a single process."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    runner.prepare(config("manifest", PER_SHARD, path=corpus / "m.jsonl"), out, workers=0)
    return out


def same(out: pathlib.Path, other: pathlib.Path) -> None:
    """The same files with the same bytes, but for prepare.json, which holds the whole config."""
    expected, actual = contents(out), contents(other)
    assert sorted(expected) == sorted(actual)
    assert [
        name for name in expected if expected[name] != actual[name] and name != "prepare.json"
    ] == []


def claims(out: pathlib.Path) -> list[tuple[int, str]]:
    """(process, item) of every shard that is being made."""
    results = []
    for path in (out / ".prepare").glob("*.claim"):
        try:
            pid, _, item = path.read_text("utf-8").partition("\n")[0].partition(" ")
        except OSError:
            continue  # just finished
        if pid:
            results.append((int(pid), item))
    return results


def done(out: pathlib.Path) -> list[pathlib.Path]:
    return sorted((out / ".prepare").glob("*.json"))


# --- processes ----------------------------------------------------------------------------------


def test_the_number_of_workers_changes_nothing(corpus, undisturbed, tmp_path):
    out, err = finish(start(command(corpus, tmp_path / "out", "--workers=2")))
    same(tmp_path / "out", undisturbed)
    assert "# manifest: 48 records" in out and "48 records, 0.01 h in" in out
    assert "manifest: 100%" in err, "no progress bar"
    reasons = json.loads((tmp_path / "out" / "report.json").read_text())["reasons"]
    assert {reason: row["records"] for reason, row in reasons.items()} == {
        "duplicate id": 1,
        "malformed JSON": 1,
        "truncated audio": 1,
    }
    for line in (1, 8, CLIPS + 1, CLIPS + 2, CLIPS + 3):
        assert (f"{corpus / 'm.jsonl'}:{line}" in out) == (line != 2)


def test_a_run_killed_with_sigkill_resumes(corpus, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start(command(corpus, out, "--workers=2", "--quiet"))
    wait_for(lambda: len(done(out)) >= 3 and claims(out))
    workers = {pid for pid, _ in claims(out)}
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in done(out)}
    assert 3 <= len(kept) < CLIPS // PER_SHARD
    assert not (out / "dataset_info.json").exists()
    # Its workers end with it, so that none writes during the next run.
    wait_for(lambda: not any(is_alive(pid) for pid in workers))
    shards = {p: p.stat().st_mtime_ns for p in out.glob("*.array_record*")}
    here(command(corpus, out, "--quiet"))
    same(out, undisturbed)
    redone = [p for p, when in shards.items() if p.stat().st_mtime_ns != when]
    assert len(redone) <= len(shards) - len(kept), "shards that were complete were made again"


def test_a_worker_that_dies_is_reported_and_the_run_can_be_resumed(corpus, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start(command(corpus, out, "--workers=2", "--quiet"))
    wait_for(lambda: len(done(out)) >= 1 and claims(out))
    pid, _ = claims(out)[0]
    os.kill(pid, signal.SIGKILL)
    _, err = finish(process, FAILED)
    assert "a worker process died" in err and f"process {pid} (exit code -9) at item u" in err
    assert "of split 'train', items u" in err or "of split 'dev', items u" in err
    assert "run the same command again to resume" in err
    here(command(corpus, out, "--quiet"))
    same(out, undisturbed)


def test_an_interrupted_run_can_be_resumed(corpus, undisturbed, tmp_path):
    out = tmp_path / "out"
    process = start(command(corpus, out, "--workers=2", "--quiet"))
    wait_for(lambda: claims(out))
    workers = {pid for pid, _ in claims(out)}
    process.send_signal(signal.SIGINT)
    _, err = finish(process, INTERRUPTED)
    assert err.strip().endswith("interrupted; run the same command again to resume")
    assert "Traceback" not in err
    assert not any(is_alive(pid) for pid in workers)
    here(command(corpus, out, "--quiet"))
    same(out, undisturbed)


# --- the command line ---------------------------------------------------------------------------


def test_dry_run_writes_nothing(corpus, tmp_path):
    before = contents(corpus)
    out, _ = here(command(corpus, tmp_path / "out", "--dry-run"))
    assert "49 items listed, nothing written" in out
    assert f"{corpus / 'm.jsonl'}:{CLIPS + 2}: malformed JSON" in out
    assert list(tmp_path.iterdir()) == [] and contents(corpus) == before


def test_wrong_command_lines(corpus, tmp_path):
    cases = [
        (
            ["--config.source.foldr=/data"],
            USER_ERROR,
            "--config.source.foldr: unknown key; did you mean source.folder?",
        ),
        (["--size=large"], USER_ERROR, "a source of kind 'manifest' has no size"),
        (["--config.max_rejected=0.01"], FAILED, "expected at most max_rejected = 1.0%"),
    ]
    for number, (extra, code, words) in enumerate(cases):
        out, err = here(command(corpus, tmp_path / str(number), "--quiet", *extra), code)
        assert words in err and "Traceback" not in err
    _, err = here(command(corpus, None), USER_ERROR)
    assert "--out: expected the folder" in err
    _, err = here([*command(corpus, None)[:3], "--size=giant", "--dry-run"], USER_ERROR)
    assert "size = 'giant', expected one of ('embedded', 'large', 'assistant')" in err


def test_a_run_with_all_items_rejected_fails(tmp_path):
    manifest(tmp_path, "{", '{"id": "a", "audio": "gone.wav", "text": "x"}')
    _, err = here(command(tmp_path, tmp_path / "out", "--quiet"), FAILED)
    assert "no record was written: 2 rejected, see report.md" in err


# --- Beam ---------------------------------------------------------------------------------------


def test_beam_gives_the_same_bytes(corpus, undisturbed, tmp_path):
    options = ("--runner=beam", "--beam-options=--runner=DirectRunner")
    out, err = finish(start(command(corpus, tmp_path / "out", *options)))
    same(tmp_path / "out", undisturbed)
    assert "48 records, 0.01 h in" in out
    assert "prism" not in err.lower(), "Beam looked for a runner to download"
    assert len(RecordSource(tmp_path / "out", "dev")) == 4


def test_beam_resumes_a_local_run(corpus, undisturbed, tmp_path):
    out = tmp_path / "out"
    run_config = config("manifest", PER_SHARD, path=corpus / "m.jsonl")
    plan = runner.make_plan(run_config)

    def make_five(plan, jobs, directory):
        pool.make_shards(plan, jobs[:5], directory, 0, False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.prepare(run_config, out, run_jobs=make_five)
    assert len(done(out)) == 5
    seen = []
    options = "--runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_threading"

    def rest(plan, jobs, directory):
        seen.extend(jobs)
        BeamRunner(options)(plan, jobs, directory)

    runner.prepare(run_config, out, run_jobs=rest)
    assert len(seen) == len(plan.jobs) - 5
    same(out, undisturbed)


def test_beam_names_the_failed_shard(corpus, tmp_path, monkeypatch):
    from ba_jax.corpora import beam, shards

    def failing(job, source, directory, fingerprint):
        raise shards.PrepareError("item 'u1': lost")

    monkeypatch.setattr(beam, "make_shard", failing)
    run_config = config("manifest", 100, path=corpus / "m.jsonl")
    with pytest.raises(runner.PrepareError, match="the pipeline failed.*split 'dev'.*u1.: lost"):
        runner.prepare(run_config, tmp_path / "out", run_jobs=BeamRunner())
    with pytest.raises(SourceError, match="none of"):
        runner.prepare(run_config, tmp_path / "out", run_jobs=BeamRunner("--nonsense=1"))
