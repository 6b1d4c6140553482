"""`python -m ba_jax.convert verify`: compare an imported model with numbers of the reference.

Every key of a golden file is computed by the model and printed with its shape, largest absolute
error, largest error relative to the golden's peak, pass or fail. Integers must be equal, floats
within the tolerance of their peak. Sizes come from the checkpoint's config.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax import audio, cli
from ba_jax.checkpoints import arrays, layout
from ba_jax.convert import importer, sources
from ba_jax.convert.engine import ConversionError
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig, variable_shapes
from ba_jax.models.llm import KVCache, init_cache
from ba_jax.vocab import LANGUAGE_MODEL

TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class KeyResult:
    """Comparison of a key of the golden file.

    Attributes:
      key: its name.
      shape: shape of the compared arrays, after selecting valid positions.
      max_abs, max_rel: largest error, absolute and relative to the golden's peak; None if nothing
        was compared.
      status: "pass", "fail", "input" (nothing to compare) or "unused".
      note: reason of a failure other than the numbers.
    """

    key: str
    shape: tuple[int, ...]
    max_abs: float | None
    max_rel: float | None
    status: str
    note: str = ""


def compare(key: str, got: Any, golden: Any, tolerance: float) -> KeyResult:
    """Compare valid positions of a key: integers exactly, floats relative to the peak."""
    got, golden = np.asarray(got), np.asarray(golden)
    if got.shape != golden.shape:
        note = f"shape {got.shape}, expected {golden.shape}"
        return KeyResult(key, golden.shape, None, None, "fail", note)
    if golden.size == 0:
        return KeyResult(key, golden.shape, 0.0, 0.0, "pass")
    error = np.abs(got.astype(np.float64) - golden.astype(np.float64))
    worst = float(error.max())
    peak = float(np.abs(golden.astype(np.float64)).max())
    relative = worst / peak if peak else (0.0 if worst == 0 else np.inf)
    if golden.dtype.kind in "iub":
        passed = worst == 0
    else:
        passed = bool(np.isfinite(error).all() and relative <= tolerance)
    return KeyResult(key, golden.shape, worst, relative, "pass" if passed else "fail")


def _pack(x_BTC: Any, lengths_B: Any) -> np.ndarray:
    """Concatenate the valid frames of all items."""
    x_BTC = np.asarray(x_BTC)
    return np.concatenate([x_TC[:n] for x_TC, n in zip(x_BTC, lengths_B, strict=True)])


def _unpack(x_XC: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """Invert `_pack`, padding with zeros."""
    out = np.zeros((len(lengths_B), max(lengths_B), *x_XC.shape[1:]), x_XC.dtype)
    for i, start in enumerate(np.cumsum(lengths_B) - lengths_B):
        out[i, : lengths_B[i]] = x_XC[start : start + lengths_B[i]]
    return out


def _time_major(x_BCT: np.ndarray) -> np.ndarray:
    return np.swapaxes(x_BCT, -1, -2)


def _read(model: BaichuanAudio, *args: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hidden states and text logits of whole sequences."""
    hidden, _ = model.hidden(*args)
    return hidden, model.text_logits(hidden)


class GoldenChecks:
    """Run the imported model on the inputs of a golden file.

    Each check returns {key: (computed, golden)}, both cut to valid positions.
    """

    def __init__(self, config: BaichuanAudioConfig, variables: Any, golden: dict[str, np.ndarray]):
        self.config, self.golden = config, golden
        self.model = BaichuanAudio(config)
        self.variables = variables

    def run(self, method: str | Callable, *args: Any, **static: Any) -> Any:
        """Apply a method of the whole model, jitted; the results are NumPy's."""

        @jax.jit
        def call(variables, *args):
            return self.model.apply(variables, *args, method=method, **static)

        return jax.device_get(call(self.variables, *args))

    def lengths(self, key: str) -> np.ndarray:
        return self.golden[key].astype(np.int32)

    def encode(self) -> dict[str, tuple]:
        """Check mel -> features -> codes, with lengths."""
        g = self.golden
        mel, lengths = _time_major(g["mel"]), self.lengths("mel_len")
        extent = np.full_like(lengths, lengths.max())

        def encoded(model, *args):
            out, encoder_len = model.audio_encoder(*args)
            z, bridge_len = model.vq_bridge.features(out, encoder_len)
            codes = model.vq_bridge.quantize(z, bridge_len).codes_BNQ
            return out, encoder_len, z, bridge_len, codes

        out, encoder_len, z, bridge_len, codes = self.run(encoded, mel, lengths, extent)
        golden_bridge_len = g["bridge_len"]
        return {
            "encoder_len": (encoder_len, g["encoder_len"]),
            "encoder_out": (out, g["encoder_out"]),
            "bridge_len": (bridge_len, golden_bridge_len),
            "bridge_out": (_pack(z, bridge_len), _pack(g["bridge_out"], golden_bridge_len)),
            "codes": (_pack(codes, bridge_len), g["codes"]),
        }

    def dequantize(self) -> dict[str, tuple]:
        """Check codes -> embeddings -> decoder input."""
        g, lengths = self.golden, self.lengths("bridge_len")
        codes = _unpack(g["codes"].astype(np.int32), lengths)

        def decoder_input(model, *args):
            z = model.vq_bridge.dequantize(*args)
            return z, model.vq_bridge.project(z)

        z, projected = self.run(decoder_input, codes, lengths)
        return {
            "dequantized": (_pack(z, lengths), g["dequantized"]),
            "decoder_in": (_pack(projected, lengths), g["decoder_in"]),
        }

    @functools.cached_property
    def decoded(self):
        """Audio decoder output for the golden's codes, in a padded batch."""
        lengths = self.lengths("bridge_len")
        codes = _unpack(self.golden["codes"].astype(np.int32), lengths)
        return self.run("decode", codes, lengths, np.full_like(lengths, lengths.max()))

    def decode(self) -> dict[str, tuple]:
        """Check codes -> 50 Hz features and both mels."""
        g, out = self.golden, self.decoded
        mel_len = g["dec_mel_len"]
        return {
            "dec_hidden_len": (out.hidden_lengths_B, g["dec_hidden_len"]),
            "dec_hidden_packed": (
                _pack(out.hidden_BTD, out.hidden_lengths_B),
                g["dec_hidden_packed"],
            ),
            "dec_mel_len": (out.mel_lengths_B, mel_len),
            "coarse_mel": (
                _pack(out.coarse_mel_BTM, out.mel_lengths_B),
                _pack(g["coarse_mel"], mel_len),
            ),
            "refined_mel": (
                _pack(out.refined_mel_BTM, out.mel_lengths_B),
                _pack(g["refined_mel"], mel_len),
            ),
        }

    def flow(self) -> dict[str, tuple]:
        """Check prenet, a velocity, and the guided integration from the golden's noise."""
        g = self.golden
        flow_in, noise = g["flow_in"], _time_major(g["flow_noise"])
        in_lengths = self.decoded.hidden_lengths_B
        mu, lengths = self.run(lambda m, *a: m.flow_prenet(*a), flow_in, in_lengths)
        velocity = self.run(
            lambda m, *a: m.flow_unet(*a),
            noise,
            g["flow_mu"],
            g["estimator_t"],
            self.lengths("flow_len"),
        )
        # Side by side, from the golden's features and from those of its codes.
        twice = [np.concatenate([x, x]) for x in (in_lengths, noise)]
        both = np.concatenate([flow_in, self.decoded.hidden_BTD])
        mel, from_codes = np.split(self.run("flow_decode", both, *twice)[0], 2)
        return {
            "flow_len": (lengths, g["flow_len"]),
            "flow_mu": (_pack(mu, lengths), _pack(g["flow_mu"], g["flow_len"])),
            "estimator_out": (
                _pack(velocity, lengths),
                _pack(_time_major(g["estimator_out"]), g["flow_len"]),
            ),
            # Past the length both are the noise itself.
            "flow_mel": (mel, g["flow_mel"]),
            "decode_flow_mel": (from_codes, g["decode_flow_mel"]),
        }

    def text(self) -> dict[str, tuple]:
        """Check the language model on text alone."""
        _, logits = self.run(_read, self.golden["text_ids"].astype(np.int32))
        return {"text_logits": (logits, self.golden["text_logits"])}

    def mixed_codes(self, ids_BL: np.ndarray, codes_XQ: np.ndarray) -> np.ndarray:
        """Place codes at the audio positions of `ids_BL`, zero elsewhere."""
        codes = np.zeros((*ids_BL.shape, codes_XQ.shape[-1]), np.int32)
        codes[ids_BL == self.config.tokens.audio_pad] = codes_XQ
        return codes

    def mixed(self) -> dict[str, tuple]:
        """Check the language model on a left-padded batch of text and audio."""
        g = self.golden
        ids, real = g["mixed_ids"].astype(np.int32), g["mixed_mask"].astype(np.int32)
        codes = self.mixed_codes(ids, g["mixed_codes"])
        hidden, logits = self.run(_read, ids, codes, np.cumsum(real, axis=1), real)
        return {
            "mixed_logits": (logits[real > 0], g["mixed_logits"][real > 0]),
            "mixed_last_hidden": (hidden[:, -1], g["mixed_last_hidden"]),
        }

    def head(self) -> dict[str, tuple]:
        """Check the audio head with teacher forcing."""
        g = self.golden
        logits = self.run("audio_logits", g["mixed_last_hidden"], g["head_tokens"].astype(np.int32))
        return {f"head_logits_{q}": (x, g[f"head_logits_{q}"]) for q, x in enumerate(logits)}

    def greedy(self) -> dict[str, tuple]:
        """Check greedy text, then greedy audio frames, with KV cache and depth cache."""
        g, tokens = self.golden, self.config.tokens
        prompt = g["greedy_prompt"].astype(np.int32)[None]
        frames = int((prompt == tokens.audio_pad).sum())
        codes = self.mixed_codes(prompt, g["mixed_codes"][:frames])
        steps, audio_steps = len(g["greedy_text"]), len(g["greedy_audio"])
        capacity = prompt.shape[1] + steps + 1 + audio_steps
        cache = init_cache(self.config.llm, 1, capacity, jnp.float32)

        @functools.partial(jax.jit, static_argnames="fresh")
        def advance(variables, ids, codes, cache: KVCache, fresh: bool = False):
            hidden, cache = self.model.apply(
                variables, ids, codes, None, None, cache, fresh=fresh, method="hidden"
            )
            return hidden[:, -1], cache

        def choose(q: int, logits: jax.Array) -> jax.Array:
            # Only codebook 0 may end the segment; the others' extra class is masked.
            return jnp.argmax(logits if q == 0 else logits[:, :-1], axis=-1)

        next_token = jax.jit(
            lambda v, h: jnp.argmax(self.model.apply(v, h, method="text_logits"), axis=-1)
        )
        next_frame = jax.jit(lambda v, h: self.model.apply(v, h, choose, method="generate_frame"))
        no_codes = jnp.zeros((1, 1, codes.shape[-1]), jnp.int32)
        hidden, cache = advance(self.variables, prompt, codes, cache, fresh=True)
        text, audio_frames = [], []
        for _ in range(steps):
            token = next_token(self.variables, hidden)
            text.append(int(token[0]))
            hidden, cache = advance(self.variables, token[:, None], no_codes, cache)
        start = jnp.full((1, 1), tokens.audiogen_start, jnp.int32)
        pad = jnp.full((1, 1), tokens.audio_pad, jnp.int32)
        hidden, cache = advance(self.variables, start, no_codes, cache)
        for _ in range(audio_steps):
            frame = next_frame(self.variables, hidden)
            audio_frames.append(np.asarray(frame[0]))
            hidden, cache = advance(self.variables, pad, frame[:, None], cache)
        return {
            "greedy_text": (np.asarray(text), g["greedy_text"]),
            "greedy_audio": (np.stack(audio_frames), g["greedy_audio"]),
        }

    def vocode(self) -> dict[str, tuple]:
        """Check the vocoder, its source with the golden's phase and without noise."""
        g = self.golden
        mel = _time_major(g["voc_mel"])
        lengths = np.full((mel.shape[0],), mel.shape[1], np.int32)

        def vocoded(model, mel, lengths, phase, golden_source):
            f0 = model.vocoder.f0(mel, lengths)
            source, voiced = model.vocoder.source(f0, lengths, phase)
            return f0, source, voiced, model.vocoder.decode(mel, golden_source, lengths)

        # From the golden's source, so that its phase rounding does not count against `decode`.
        arguments = mel, lengths, g["voc_phase"][:, :, 0], _time_major(g["voc_source"])
        f0, source, voiced, wave = self.run(vocoded, *arguments)
        return {
            "voc_f0": (f0, g["voc_f0"]),
            "voc_source": (_time_major(source), g["voc_source"]),
            "voc_uv": (voiced, g["voc_uv"]),
            "voc_wav": (wave, g["voc_wav"]),
        }

    def phase_rounding(self) -> float:
        """Bound the rounding error of the reference's source, relative to its peak.

        The reference adds up the phase of each harmonic in cycles and rounds the sum to float32: an
        error of half a unit in the last place, which grows with the clip (past 1e-4 of the peak
        after some 40 frames at 120 Hz). Ours is accumulated modulo 1.
        """
        g, vocoder = self.golden, self.config.vocoder
        mixer = np.asarray(self.variables["params"]["vocoder"]["source_mixer"]["kernel"])[:, 0]
        seconds = vocoder.frame_samples / vocoder.sample_rate
        cycles = g["voc_f0"].astype(np.float64).sum(axis=1).max() * seconds
        harmonics = np.arange(1, len(mixer) + 1)
        half_ulp = np.spacing((cycles * harmonics).astype(np.float32)) / 2
        error = vocoder.sine_amplitude * 2 * np.pi * np.sum(np.abs(mixer) * half_ulp)
        return float(error / np.abs(g["voc_source"]).max())


# Check -> components it needs, keys it reads or computes. tests/parity runs the same list.
CHECKS: dict[str, tuple[tuple[str, ...], str]] = {
    "encode": (
        ("audio_encoder", "vq_bridge"),
        "mel mel_len encoder_len bridge_len encoder_out bridge_out codes",
    ),
    "dequantize": (("vq_bridge",), "codes bridge_len dequantized decoder_in"),
    "decode": (
        ("vq_bridge", "audio_decoder"),
        "codes bridge_len dec_hidden_len dec_hidden_packed dec_mel_len coarse_mel refined_mel",
    ),
    "flow": (
        ("vq_bridge", "audio_decoder", "flow_prenet", "flow_unet"),
        "codes bridge_len flow_in flow_noise flow_mu flow_len estimator_t estimator_out flow_mel "
        "decode_flow_mel",
    ),
    "text": (("llm",), "text_ids text_logits"),
    "mixed": (
        ("llm", "audio_embed"),
        "mixed_ids mixed_mask mixed_codes mixed_logits mixed_last_hidden",
    ),
    "head": (("audio_embed", "audio_head"), "mixed_last_hidden head_tokens"),
    "greedy": (LANGUAGE_MODEL, "greedy_prompt mixed_codes greedy_text greedy_audio"),
    "vocode": (("vocoder",), "voc_mel voc_phase voc_f0 voc_source voc_uv voc_wav"),
}
INPUTS = frozenset(
    "mel mel_len flow_in flow_noise estimator_t text_ids mixed_ids mixed_mask mixed_codes "
    "head_tokens greedy_prompt voc_mel voc_phase".split()
)
UNUSED = frozenset({"voc_noise_seed"})


def verify_model(
    folder: Path, golden: dict[str, np.ndarray], tolerance: float = TOLERANCE
) -> list[KeyResult]:
    """Compare every key of a golden file, in the file's order.

    Raises:
      ConversionError, CheckpointError: the checkpoint is missing or damaged.
    """
    _, config = sources.checkpoint_config(folder)
    variables = arrays.load_variables(folder, variable_shapes(config), dtype=jnp.float32)
    checks = GoldenChecks(config, variables, golden)
    results: dict[str, KeyResult] = {}
    with jax.default_matmul_precision("highest"):
        for check, (components, keys) in CHECKS.items():
            keys = keys.split()
            computed = [k for k in keys if k in golden and k not in INPUTS]
            if check == "head":
                computed = [k for k in golden if k.startswith("head_logits_")]
            if not computed:
                continue
            absent = [c for c in components if c not in config.components]
            missing = [k for k in keys if k not in golden]
            if absent or missing:
                note = f"the checkpoint has no {absent}" if absent else f"needs the keys {missing}"
                for key in computed:
                    failed = KeyResult(key, golden[key].shape, None, None, "fail", note)
                    results.setdefault(key, failed)
                continue
            for key, (got, expected) in getattr(checks, check)().items():
                allowed = tolerance
                if key == "voc_source":
                    allowed = max(tolerance, checks.phase_rounding())
                results[key] = compare(key, got, expected, allowed)
    for key, value in golden.items():
        if key in results:
            continue
        status = "input" if key in INPUTS else "unused" if key in UNUSED else "fail"
        note = "" if status != "fail" else "no part of the model computes this key"
        results[key] = KeyResult(key, value.shape, None, None, status, note)
    return [results[key] for key in golden]


def verify_frontend(golden: dict[str, np.ndarray], tolerance: float = TOLERANCE) -> list[KeyResult]:
    """Compare every key of a golden file of the audio front end, all computed from `wave`."""
    missing = [k for k in ("wave", "sample_rate") if k not in golden]
    if missing:
        raise ConversionError(f"golden file: keys {missing} are missing")
    wave, rate = golden["wave"], int(golden["sample_rate"])
    wave16 = audio.resample(wave, rate, 16000)
    wave24 = audio.resample(wave, rate, 24000)
    mel = audio.whisper_log_mel(wave16)
    frames = audio.mel_length(len(wave16))
    encoder_len = audio.encoder_length(frames)
    got = {
        "wave16": wave16,
        "wave24": wave24,
        "whisper_mel": mel.T,
        "mel_frames": frames,
        "encoder_len": encoder_len,
        "bridge_len": audio.bridge_length(encoder_len),
        "mel24": audio.log_mel(wave24, audio.FLOW_MEL).T,
    }
    results = []
    for key, value in golden.items():
        if key in got:
            results.append(compare(key, got[key], value, tolerance))
        elif key in ("wave", "sample_rate"):
            results.append(KeyResult(key, value.shape, None, None, "input"))
        else:
            note = "the front end computes no such key"
            results.append(KeyResult(key, value.shape, None, None, "fail", note))
    return results


def read_golden(path: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file.

    Raises:
      ConversionError: it is missing or not an .npz of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise ConversionError(f"{path}: no such file, expected an .npz of goldens") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ConversionError(f"{path}: not a readable .npz: {error}") from None


def format_results(results: Sequence[KeyResult]) -> str:
    """Format the results as aligned text, with a last line that counts them."""
    lines = [f"{'key':20s} {'shape':20s} {'max abs':>10s} {'max rel':>10s}  result"]
    for r in results:
        numbers = [f"{x:10.2e}" if x is not None else f"{'-':>10s}" for x in (r.max_abs, r.max_rel)]
        line = f"{r.key:20s} {r.shape!s:20s} {numbers[0]} {numbers[1]}  {r.status}"
        lines.append(f"{line}: {r.note}" if r.note else line)
    counts = {s: sum(r.status == s for r in results) for s in ("pass", "fail", "input", "unused")}
    lines.append(", ".join(f"{n} {s}" for s, n in counts.items()))
    return "\n".join(lines)


@contextlib.contextmanager
def _imported(folder: Path) -> Iterator[Path]:
    """Yield a checkpoint folder; one with the reference's files is imported temporarily."""
    if (folder / layout.WEIGHTS_FOLDER).is_dir():
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "checkpoint"
        importer.import_checkpoint(folder, out)
        yield out


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0 if everything passes, 1 if a key fails."""
    parser = cli.Parser("ba_jax.convert", "Compare with golden numbers.", "verify")
    add = parser.add_argument
    add(
        "--checkpoint",
        type=cli.path,
        help="folder that `python -m ba_jax.convert` wrote, or one that it can import",
    )
    add("--golden", type=cli.path, help="golden.npz to run through the checkpoint")
    add("--frontend", type=cli.path, help="frontend.npz to run through the audio front end")
    add(
        "--tolerance",
        type=cli.at_least(0.0),
        default=TOLERANCE,
        help="relative to the peak (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    if (args.checkpoint is None) != (args.golden is None):
        parser.error("--checkpoint and --golden go together")
    if args.golden is None and args.frontend is None:
        parser.error("nothing to verify: give --checkpoint and --golden, or --frontend")
    results: list[KeyResult] = []
    if args.golden is not None:
        golden = read_golden(args.golden)
        with _imported(args.checkpoint) as folder:
            results += verify_model(folder, golden, args.tolerance)
    if args.frontend is not None:
        results += verify_frontend(read_golden(args.frontend), args.tolerance)
    print(format_results(results))
    return int(any(r.status == "fail" for r in results))
