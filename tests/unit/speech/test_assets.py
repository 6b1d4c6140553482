"""Assets: fetched, checked, and put in place atomically."""

from __future__ import annotations

import io
import subprocess
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from ba_jax.speech import assets
from ba_jax.speech.assets import Asset, Package
from ba_jax.speech.interfaces import SpeechToolError
from tests.processes import PATIENCE

FILES = {"one/part.bin": b"first ", "two/part.bin": b"second", "two/v/a.bin": b"A"}


def archive(registry: str, members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    if registry == "pypi":
        with zipfile.ZipFile(out, "w") as file:
            for name, data in members.items():
                file.writestr(name, data)
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as file:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Registry:
    """Stands in for pip and npm: serves two packages and counts requests."""

    def __init__(self):
        self.asked: list[str] = []
        self.fails = False
        self.served = {
            "one-pack": archive("pypi", {"one/part.bin": FILES["one/part.bin"], "x": b""}),
            "two-pack": archive("npm", {n: FILES[n] for n in ("two/part.bin", "two/v/a.bin")}),
        }

    def run(self, command, **_):
        name = command[-1].replace("==", "@").split("@")[0]
        self.asked.append(name)
        if self.fails:
            return subprocess.CompletedProcess(command, 1, "", "no route\nERROR: no network")
        option = "--dest" if "--dest" in command else "--pack-destination"
        folder = Path(command[command.index(option) + 1])
        (folder / "archive").write_bytes(self.served[name])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Registry:
    fake = Registry()
    asset = Asset(
        packages=(Package("pypi", "one-pack", "1.0"), Package("npm", "two-pack", "2.0")),
        files={"whole.bin": ("one/part.bin", "two/part.bin"), "v/": ("two/v/*.bin",)},
        sha256="",
    )
    expected = tmp_path / "expected"
    (expected / "v").mkdir(parents=True)
    (expected / "whole.bin").write_bytes(b"first second")
    (expected / "v" / "a.bin").write_bytes(b"A")
    good = Asset(asset.packages, asset.files, assets.digest(expected))
    bad = Asset(asset.packages, asset.files, "0" * 64)
    missing = Asset(asset.packages, {"other": ("none/such",)}, "1" * 64)
    monkeypatch.setattr(assets, "ASSETS", {"good": good, "bad": bad, "missing": missing})
    monkeypatch.setattr(assets.subprocess, "run", fake.run)
    monkeypatch.setattr(assets.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setenv("BA_JAX_CACHE", str(tmp_path / "cache"))
    return fake


def test_members_are_concatenated_and_cached(registry, tmp_path):
    folder = assets.ensure("good")
    assert (folder / "whole.bin").read_bytes() == b"first second"
    assert (folder / "v" / "a.bin").read_bytes() == b"A"
    assert assets.ensure("good") == folder
    assert registry.asked == ["one-pack", "two-pack"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_wrong_bytes_are_refused_and_not_cached(registry, tmp_path):
    with pytest.raises(SpeechToolError, match="expected 000000"):
        assets.ensure("bad")
    assert list((tmp_path / "cache").iterdir()) == []


def test_errors_say_what_to_do(registry, monkeypatch):
    with pytest.raises(SpeechToolError, match="'other'|none/such"):
        assets.ensure("missing")
    with pytest.raises(SpeechToolError, match="'nothing', expected one of"):
        assets.ensure("nothing")
    registry.fails = True
    with pytest.raises(SpeechToolError, match="ERROR: no network.*give the tool the path"):
        assets.ensure("good")
    registry.fails = False
    monkeypatch.setattr(assets.shutil, "which", lambda name: None)
    with pytest.raises(SpeechToolError, match="two-pack 2.0.*install Node.js"):
        assets.ensure("good")


def test_a_folder_that_cannot_be_written_is_named(registry, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BA_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(SpeechToolError, match="file.*set BA_JAX_CACHE"):
        assets.ensure("good")


def test_two_processes_may_fetch_at_once(registry, tmp_path, monkeypatch):
    barrier = threading.Barrier(2, timeout=PATIENCE)
    collect = assets._collect

    def slow(*arguments):
        collect(*arguments)
        barrier.wait()  # both have their files before either puts them in place

    monkeypatch.setattr(assets, "_collect", slow)
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(assets.ensure("good"))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and results[0] == results[1]
    assert (results[0] / "whole.bin").read_bytes() == b"first second"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [results[0].name]


def test_an_installed_package_is_read_in_place(registry, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "one").mkdir(parents=True)
    (site / "one" / "part.bin").write_bytes(FILES["one/part.bin"])
    info = site / "one_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: one-pack\nVersion: 1.0\n")
    (info / "RECORD").write_text("one/part.bin,,\n")
    monkeypatch.syspath_prepend(str(site))
    assert (assets.ensure("good") / "whole.bin").read_bytes() == b"first second"
    assert registry.asked == ["two-pack"]


def test_the_command_fetches_and_checks_all(registry, monkeypatch, capsys):
    monkeypatch.setattr(assets, "ASSETS", {"good": assets.ASSETS["good"]})
    assets.fetch()
    assert "good: pypi one-pack 1.0, npm two-pack 2.0" in capsys.readouterr().out
    (assets.ensure("good") / "whole.bin").write_bytes(b"rotten")
    with pytest.raises(SpeechToolError, match="delete it"):
        assets.fetch()
