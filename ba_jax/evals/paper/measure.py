"""Measures of the tokenizer and its decoders on recordings: mel errors, words heard, opinions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio import read_audio
from ba_jax.audio.lengths import SAMPLE_RATE, mel_length
from ba_jax.audio.mel import HIFIGAN_MEL, WHISPER_MEL, log_mel, whisper_log_mel
from ba_jax.data.features import decode
from ba_jax.data.record import Part
from ba_jax.evals.base import Bench
from ba_jax.evals.paper.table import Measured
from ba_jax.evals.scoring import bootstrap, sound, text
from ba_jax.evals.suite import EvalError
from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.sampling import batching
from ba_jax.sampling.synthesize import Wave
from ba_jax.types import Failure


@dataclasses.dataclass(frozen=True)
class Speech:
    """Recordings with what is said in them."""

    parts: tuple[Part, ...]
    languages: tuple[str, ...]


def statements(bench: Bench) -> Speech:
    """Sentences of held-out speakers.

    Raises:
      EvalError: none.
    """
    found = [(record.parts[0], record.language) for record in bench.statements]
    return _speech(found, "spoken statement")


def answers(bench: Bench) -> Speech:
    """Held-out answers in the assistant's voices, which the demo's decoder is trained on.

    Raises:
      EvalError: none.
    """
    found = [(d.parts[1], d.language) for d in bench.dialogues if d.parts[1].is_spoken]
    return _speech(found, "spoken answer")


def _speech(found: Sequence[tuple[Part, str]], what: str) -> Speech:
    if not found:
        raise EvalError(f"no {what} in the data")
    parts, languages = zip(*found, strict=True)
    return Speech(parts, languages)


def codes_of(bench: Bench, speech: Speech) -> list[np.ndarray]:
    """Codes of every recording.

    Raises:
      EvalError: one that cannot be encoded or decoded.
    """
    found = bench.segments(speech.parts)
    for own in found:
        if isinstance(own, Failure):
            raise EvalError(own.reason)
    return found


def wer(bench: Bench, waves: Sequence[Wave], speech: Speech, what: str) -> Measured:
    """Units said wrong, as the judge hears them, pooled: words, in Mandarin toneless syllables.

    Raises:
      EvalError: the judge failed.
    """
    heard = bench.hear(waves, speech.languages, what)
    errors, units = [], []
    for part, said, language in zip(speech.parts, heard, speech.languages, strict=True):
        if isinstance(said, Failure):
            raise EvalError(said.reason)
        tally = text.tally(part.text, said, language, text.SAID[language])
        errors.append(tally.errors)
        units.append(tally.units)
    return Measured(sum(errors) / sum(units), bootstrap.ratio(errors, units))


def mel_mae(mels: Sequence[np.ndarray], speech: Speech) -> Measured:
    """Nats, over all bins and frames, of HIFIGAN_MEL mels against the recordings'."""
    totals, frames = [], []
    for mel_TM, part in zip(mels, speech.parts, strict=True):
        wave_S = decode(part.audio, part.seconds, (HIFIGAN_MEL.sample_rate,))[0]
        wanted_TM = log_mel(wave_S, HIFIGAN_MEL)
        count = min(len(mel_TM), len(wanted_TM))
        error_TM = np.abs(mel_TM[:count] - wanted_TM[:count]).mean(axis=1, dtype=np.float64)
        totals.append(float(error_TM.sum()))
        frames.append(count)
    return Measured(sum(totals) / sum(frames), bootstrap.ratio(totals, frames))


def recordings(speech: Speech) -> list[Wave]:
    """The recordings themselves."""
    return [Wave(*read_audio(part.audio)) for part in speech.parts]


OPINIONS = 24
"""Waves that DNSMOS is asked of: it takes 2 s of a core for each."""


def opinions(bench: Bench, waves: Sequence[Wave], speech: Speech) -> dict[str, Measured]:
    """Means of `evals.sound`'s measures, under its names, over OPINIONS waves evenly spread."""
    pairs = list(zip(waves, recordings(speech), strict=True))
    places = sorted({round(p) for p in np.linspace(0, len(pairs) - 1, OPINIONS)})
    measured = list(bench.judge.map(sound.measure, [pairs[place] for place in places]))
    found = {}
    for name in sound.MEASURES:
        values = [own[name] for own in measured if name in own]
        if values:
            found[name] = Measured(sum(values) / len(values), bootstrap.mean(values))
    return found


def hears_fewer(variables: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Variables of a language model that hears the first `count` codebooks of a frame alone.

    Raises:
      ValueError: fewer than 1 or more than there are.
    """
    tables = variables["params"]["audio_embed"]
    if not 1 <= count <= len(tables):
        raise ValueError(f"{count} codebooks, expected 1 to {len(tables)}")
    kept = {
        name: table if int(name.split("_")[1]) < count else jnp.zeros_like(table)
        for name, table in tables.items()
    }
    return {**variables, "params": {**variables["params"], "audio_embed": kept}}


def refined_mels(bench: Bench, speech: Speech, *, quantised: bool) -> list[np.ndarray]:
    """The audio decoder's refined mels (T, M) of recordings, from their features in one pass.

    Args:
      bench: with audio_encoder, vq_bridge and audio_decoder.
      speech: none longer than the longest of `encode_seconds`.
      quantised: through the codebooks, or past them.

    Raises:
      LengthError: a recording that is too long.
    """
    needed = ("audio_encoder", "vq_bridge", "audio_decoder")
    model = BaichuanAudio(bench.model.config.only(*needed))
    variables = {
        collection: {name: tree[name] for name in needed if name in tree}
        for collection, tree in bench.model.variables.items()
    }

    def run(model, mel_BTM, lengths_B):
        x, lengths_B = model.audio_encoder(mel_BTM, lengths_B, None)
        z, lengths_B = model.vq_bridge.features(x, lengths_B)
        if quantised:
            z = model.vq_bridge.quantize(z, lengths_B).z_BNE
        out = model.audio_decoder(model.vq_bridge.project(z), lengths_B, None)
        return out.refined_mel_BTM, out.mel_lengths_B

    jitted = jax.jit(lambda variables, *arrays: model.apply(variables, *arrays, method=run))
    geometry = dataclasses.replace(WHISPER_MEL, n_mels=bench.model.config.audio_encoder.mel_bins)
    mels = [
        whisper_log_mel(decode(part.audio, part.seconds, (SAMPLE_RATE,))[0], geometry)
        for part in speech.parts
    ]
    settings = bench.settings
    buckets = [mel_length(int(s * SAMPLE_RATE)) for s in settings.encode_seconds]
    found: dict[int, np.ndarray] = {}
    sizes = [len(mel) for mel in mels]
    for bucket, some in batching.batches(sizes, buckets, settings.encode_rows, "recording"):
        mel_BTM, lengths_B = batching.pad([mels[i] for i in some], settings.encode_rows, bucket)
        refined_BTM, lengths_B = jax.device_get(jitted(variables, mel_BTM, lengths_B))
        for row, i in enumerate(some):
            found[i] = refined_BTM[row, : lengths_B[row]]
    return [found[i] for i in range(len(mels))]
