"""Measures of the tokenizer and its decoders on recordings: mel errors, word errors, opinions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio import read_audio
from ba_jax.audio.lengths import SAMPLE_RATE, mel_length
from ba_jax.audio.mel import HIFIGAN_MEL, WHISPER_MEL, whisper_log_mel
from ba_jax.data.features import decode
from ba_jax.data.record import Part
from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalError
from ba_jax.evals.paper.table import Measurement
from ba_jax.evals.scoring import bootstrap, mel, sound, text
from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.sampling import batching
from ba_jax.sampling.synthesize import Wave
from ba_jax.speech.languages import language_pack
from ba_jax.types import Failure


@dataclasses.dataclass(frozen=True)
class Speech:
    """Recordings with their texts."""

    parts: tuple[Part, ...]
    languages: tuple[str, ...]


def statements(bench: Bench) -> Speech:
    """Return sentences of held-out speakers; raises EvalError if there is none."""
    pairs = [(record.parts[0], record.language) for record in bench.records.statements]
    return _make_speech(pairs, "spoken statement")


def answers(bench: Bench) -> Speech:
    """Return held-out answers in the assistant's voices, on which the demo's decoder is trained.

    Raises EvalError if there is none.
    """
    pairs = [(d.parts[1], d.language) for d in bench.records.dialogues if d.parts[1].is_spoken]
    return _make_speech(pairs, "spoken answer")


def _make_speech(pairs: Sequence[tuple[Part, str]], kind: str) -> Speech:
    if not pairs:
        raise EvalError(f"no {kind} in the data")
    return Speech(*zip(*pairs, strict=True))


def raise_failures(results: Sequence[Any]) -> Sequence[Any]:
    """Return the results; raise EvalError for the first that is a failure."""
    for result in results:
        if isinstance(result, Failure):
            raise EvalError(result.reason)
    return results


def encode(bench: Bench, speech: Speech) -> Sequence[np.ndarray]:
    """Return the codes of every recording; raises EvalError if one cannot be encoded."""
    return raise_failures(bench.encode_segments(speech.parts))


def word_error_rate(bench: Bench, waves: Sequence[Wave], speech: Speech, task: str) -> Measurement:
    """Pool the errors that the judge hears in words, in Mandarin in toneless syllables.

    Raises EvalError if the judge fails.
    """
    heard = raise_failures(bench.hear(waves, speech.languages, task))
    return _pool(
        text.tally(part.text, result, language, language_pack(language).spoken_unit)
        for part, result, language in zip(speech.parts, heard, speech.languages, strict=True)
    )


def mel_error(mels: Sequence[np.ndarray], speech: Speech) -> Measurement:
    """Compare HIFIGAN_MEL mels with the recordings', in nats over all bins and frames."""
    return _pool(
        mel.mel_error(mel_TM, mel.recorded_mel(part, HIFIGAN_MEL))
        for mel_TM, part in zip(mels, speech.parts, strict=True)
    )


def _pool(pairs: Iterable[tuple[float, int]]) -> Measurement:
    """Return the sum of the first over the sum of the second numbers."""
    errors, units = zip(*pairs, strict=True)
    return Measurement(sum(errors) / sum(units), bootstrap.ratio_interval(errors, units))


def recordings(speech: Speech) -> list[Wave]:
    """Read the recordings."""
    return [Wave(*read_audio(part.audio)) for part in speech.parts]


OPINIONS = 24
"""Number of waves that DNSMOS rates: each takes 2 s of a core."""


def opinions(bench: Bench, waves: Sequence[Wave], speech: Speech) -> dict[str, Measurement]:
    """Average the measures of `ba_jax.evals.scoring.sound` over OPINIONS waves, evenly spread."""
    pairs = list(zip(waves, recordings(speech), strict=True))
    places = sorted({round(p) for p in np.linspace(0, len(pairs) - 1, OPINIONS)})
    measured = list(bench.judge.map(sound.measure, [pairs[place] for place in places]))
    results = {}
    for name in sound.MEASURES:
        values = [measures[name] for measures in measured if name in measures]
        if values:
            interval = bootstrap.mean_interval(values)
            results[name] = Measurement(sum(values) / len(values), interval)
    return results


def keep_codebooks(variables: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Zero the embeddings of all but a frame's first `count` codebooks."""
    tables = variables["params"]["audio_embed"]
    if not 1 <= count <= len(tables):
        raise ValueError(f"{count} codebooks, expected 1 to {len(tables)}")
    kept = {
        name: table if int(name.split("_")[1]) < count else jnp.zeros_like(table)
        for name, table in tables.items()
    }
    return {**variables, "params": {**variables["params"], "audio_embed": kept}}


def keep_quantized(variables: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Zero the rows of all but the first `count` codebooks: the others add nothing."""
    bridge = dict(variables["codebook"]["vq_bridge"])
    for name, rows in bridge.items():
        if name.startswith("embed_") and name[6:].isdigit() and int(name[6:]) >= count:
            bridge[name] = jnp.zeros_like(rows)
    return {**variables, "codebook": {**variables["codebook"], "vq_bridge": bridge}}


def refined_mels(bench: Bench, speech: Speech, *, quantized: bool) -> list[np.ndarray]:
    """Decode recordings to the audio decoder's refined mels (T, M), from their features.

    Raises LengthError for a recording longer than the longest of `encode_seconds`.
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
        if quantized:
            z = model.vq_bridge.quantize(z, lengths_B).z_BNE
        out = model.audio_decoder(model.vq_bridge.project(z), lengths_B, None)
        return out.refined_mel_BTM, out.mel_lengths_B

    jitted = jax.jit(lambda variables, *arrays: model.apply(variables, *arrays, method=run))
    geometry = dataclasses.replace(WHISPER_MEL, n_mels=bench.model.config.audio_encoder.mel_bins)
    inputs = [
        whisper_log_mel(decode(part.audio, part.seconds, (SAMPLE_RATE,))[0], geometry)
        for part in speech.parts
    ]
    rows = bench.settings.encode_rows
    buckets = [mel_length(int(s * SAMPLE_RATE)) for s in bench.settings.encode_seconds]
    mels: dict[int, np.ndarray] = {}
    for bucket, batch in batching.batches([len(m) for m in inputs], buckets, rows, "recording"):
        mel_BTM, lengths_B = batching.pad([inputs[i] for i in batch], rows, bucket)
        refined_BTM, lengths_B = jax.device_get(jitted(variables, mel_BTM, lengths_B))
        for row, i in enumerate(batch):
            mels[i] = refined_BTM[row, : lengths_B[row]]
    return [mels[i] for i in range(len(inputs))]
