"""Streaming synthesis: codes to samples as they arrive, each sample once it is final.

A segment's 50 Hz frames are decoded block by block (`SynthesisSettings.blocks`). A block is
decoded once its own codes and one more are there. The extra code shows that the segment continues:
the last frame of a segment is left out. The audio decoder, the prenet and each step of the flow
cache keys and values, and the last inputs of convolutions; so each frame is computed once. The
vocoder runs over overlapping windows, see `ba_jax.sampling.vocoder_windows`.

The result equals that of `Synthesizer` with the same settings up to rounding, if `hold` is None. To
make this possible, two things differ from the reference: the decoder's first norm uses the
statistics of the segment so far (`norm_frames`), and the flow attends to its own block, shorter
than 2 s (`blocks`).

Measured on the demo's flow (nano, 32 answers in its voices): blocks of 16, then 48 frames change
its mel by 0.04 nats, `norm_frames` of 4 by 0.02 (0.008 with measured `norms` and a weight of 25),
other noise by 1.1; the error against the recordings stays 1.13. A vocoder of 46 training steps gave
the wave of the whole segment (peak 0.43) within 1e-5 with `hold` None (21 frames; first audio after
17 frames of codes), 3e-4 with 8 and 2e-3 with 6 (after 5 frames of codes). The decoder's own mel,
whose convolutions and norms were trained on whole segments, loses more: 0.3 nats by the resizing's
grid alone, 0.5 with `norm_frames` of 4, against an error of 0.3.

Segments are rows of a batch, each at its own position. Shapes depend on the block sizes alone.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio.griffin_lim import GriffinLimStream
from ba_jax.audio.mel import FLOW_MEL, HIFIGAN_MEL
from ba_jax.models import audio_decoder, flow_matching, layers
from ba_jax.models.baichuan_audio import (
    BaichuanAudio,
    BaichuanAudioConfig,
    select_variables,
)
from ba_jax.models.streaming import (
    CACHE,
    CODE_FRAMES,
    UPDATE,
    Blocks,
    Pieces,
    empty_cache,
    update_cache,
)
from ba_jax.sampling.batching import LengthError
from ba_jax.sampling.synthesize import (
    LOUDEST,
    SynthesisSettings,
    check_seed,
    noise_keys,
)
from ba_jax.sampling.vocoder_windows import VocoderWindow, VocoderWindows
from ba_jax.vocab import check_codes


class StreamError(RuntimeError):
    """A stream used after its end, or more streams than rows."""


def for_streaming(
    settings: SynthesisSettings, blocks: tuple[int, ...] = (16, 48), norm_frames: int = 4
) -> SynthesisSettings:
    """Fill in `blocks` and `norm_frames`, which a stream needs, where they are not set."""
    return dataclasses.replace(
        settings,
        blocks=settings.blocks or blocks,
        norm_frames=norm_frames if settings.norm_frames is None else settings.norm_frames,
    )


class StreamingSynthesizer:
    """Synthesizes up to `rows` segments at once, as their codes arrive.

    Args:
      config, variables: a model with the components that `Synthesizer` needs.
      settings: with `norm_frames` (`for_streaming`). The longest segment is `frames[-1]` or, with a
        `lookback`, the length of the decoder's position table, 60 s. `rows` is not used.
      rows: segments at once.
      dtype: type of computation and of the cache.

    Raises:
      ValueError: settings without `norm_frames`, or a model without a component.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: Mapping[str, Any],
        settings: SynthesisSettings,
        *,
        rows: int = 1,
        dtype: layers.Dtype = jnp.float32,
    ):
        blocks = settings.blocks_of(config)
        if blocks is None or blocks.lead is None:
            raise ValueError(
                "norm_frames None: a stream cannot know the statistics of the whole segment;"
                " expected a number of frames, see for_streaming"
            )
        if rows < 1:
            raise ValueError(f"rows {rows}: expected at least 1")
        self.config, self.settings, self.blocks, self.rows = config, settings, blocks, rows
        self.traces: collections.Counter = collections.Counter()
        self._sizes = tuple(sorted(set(blocks.sizes)))
        self._dtype = dtype
        self._by_flow = settings.mel == "flow"
        positions = config.audio_decoder.max_positions // CODE_FRAMES
        bounded = blocks.lookback is not None and self._by_flow
        self.limit = positions if bounded else min(settings.frames[-1], positions)
        self._needed = ("vq_bridge", "audio_decoder")
        if self._by_flow:
            self._needed += ("flow_prenet", "flow_unet")
        self._variables = select_variables(config, variables, self._needed)
        model = BaichuanAudio(config.only(*self._needed), dtype=dtype)
        self._block = self._jit("block", functools.partial(self._block_batch, model), donate=1)
        self._geometry = FLOW_MEL if self._by_flow else HIFIGAN_MEL
        self._vocoder = None
        if settings.vocoder == "vocoder":
            self._vocoder = VocoderWindows(
                config,
                variables,
                hold=settings.hold,
                sizes=self._sizes,
                rows=rows,
                dtype=dtype,
                jit=functools.partial(self._jit, "vocode"),
            )
        else:
            self._mels = self._jit("mels", functools.partial(self._mel_batch, model))
        # Made in jit, so that no two arrays share a buffer, and placed like the parameters, so that
        # the second block does not compile again.
        initial = jax.jit(functools.partial(self._initial_state, model))()
        self._state = jax.device_put(initial, _replicated_sharding(self._variables))
        self._free = list(range(rows))

    @property
    def rate(self) -> int:
        """Sampling rate in Hz: 24 kHz, or 16 kHz for the decoder's mel."""
        return self._geometry.sample_rate

    def _jit(self, name: str, function: Callable, donate: int | None = None) -> Callable:
        def traced(*args):
            self.traces[name] += 1
            return function(*args)

        return jax.jit(traced, donate_argnums=() if donate is None else donate)

    def warm_up(self) -> None:
        """Compile all shapes, so that streams do not wait for a compilation."""
        for size in self._sizes:
            self._decode(size, [])
            if self._vocoder is not None:
                self._vocoder.step(size, {}, self.numbers([]))

    def open(self, seed: int = 0, segment: int = 0) -> SegmentStream:
        """Open a stream for a segment; the request's seed and its number decide its noise.

        Raises:
          StreamError: no free row.
          ValueError: a seed out of range.
        """
        check_seed(seed)
        if not self._free:
            raise StreamError(f"all {self.rows} rows have a segment: finish one of them first")
        return SegmentStream(self, self._free.pop(0), seed, segment)

    def push(
        self, streams: Sequence[SegmentStream], codes: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Add codes (N >= 1, Q) to streams; return the samples of each that are now final.

        An error leaves all streams as they were.

        Raises:
          LengthError: no frame, or a segment longer than `limit` frames.
          CodeError: codes that are not the model's.
          StreamError: a stream that was finished, or is listed twice.
        """
        self._check(streams)
        sizes = self.config.vq_bridge.codebook_sizes
        checked = []
        for stream, codes_NQ in zip(streams, codes, strict=True):
            codes_NQ = np.asarray(codes_NQ)
            if codes_NQ.ndim != 2 or len(codes_NQ) < 1:
                raise LengthError(
                    f"codes of shape {codes_NQ.shape}: expected (N >= 1, {len(sizes)})"
                )
            total = stream._received + len(codes_NQ)
            if total > self.limit:
                raise LengthError(
                    f"segment of {total} frames of codes, expected at most {self.limit}"
                    f" ({self.limit * CODE_FRAMES / FLOW_MEL.frame_rate:g} s)"
                )
            checked.append(check_codes(codes_NQ, sizes))
        for stream, codes_NQ in zip(streams, checked, strict=True):
            stream._codes.append(codes_NQ)
            stream._received += len(codes_NQ)
        return self._run(streams)

    def finish(self, streams: Sequence[SegmentStream]) -> list[np.ndarray]:
        """End streams and free their rows; return the remaining samples of each.

        Raises:
          StreamError: a stream that was finished, or is listed twice.
        """
        self._check(streams)
        for stream in streams:
            stream._closed = True
        samples = self._run(streams)
        for stream in streams:
            self._free.append(stream._row)
        return samples

    def drop(self, streams: Sequence[SegmentStream]) -> None:
        """End streams and free their rows, without synthesizing the rest.

        Raises:
          StreamError: a stream that was finished, or is listed twice.
        """
        self._check(streams)
        for stream in streams:
            stream._closed = True
            self._free.append(stream._row)

    def _check(self, streams: Sequence[SegmentStream]) -> None:
        if len({id(stream) for stream in streams}) != len(streams):
            raise StreamError("a stream is listed twice")
        for stream in streams:
            if stream._owner is not self:
                raise StreamError("the stream belongs to another synthesizer")
            if stream._closed:
                raise StreamError("the segment was finished: open another stream")

    def _run(self, streams: Sequence[SegmentStream]) -> list[np.ndarray]:
        """Decode all complete blocks; return the new samples of each stream."""
        while ready := [stream for stream in streams if stream._ready(self.blocks)]:
            # Blocks of one size are decoded together.
            size = min(self.blocks.size(stream._number) for stream in ready)
            self._decode(size, [s for s in ready if self.blocks.size(s._number) == size])
        silence = np.zeros(0, np.float32)
        if self._vocoder is None:
            mels = [np.minimum(stream._take_mel(), LOUDEST) for stream in streams]
            waves = [s._griffin_lim.push(m, s._closed) for s, m in zip(streams, mels, strict=True)]
            return [np.concatenate([silence, wave_S]) for wave_S in waves]
        for stream in streams:
            stream._window.extend(stream._take_mel(), stream._ended)
        windows = {stream._row: stream._window for stream in streams}
        samples = self._vocoder.run(windows, self.numbers(streams))
        return [np.concatenate([silence, *samples[stream._row]]) for stream in streams]

    # Blocks of mel

    def _initial_state(self, model: BaichuanAudio) -> dict[str, Any]:
        """State of rows before any segment: the cache and, for the decoder's mel, all features."""
        c, rows = self.config, self.rows
        capacity = self.blocks.lookback or self.limit * CODE_FRAMES
        capacity = max(capacity, *self._sizes)
        codes, lengths_B, pieces = self._batch(self._sizes[0], ())
        args = codes, lengths_B, pieces, *self.numbers(())
        _, update, _ = jax.eval_shape(
            functools.partial(self._apply_block, model), self._variables, *args
        )
        state = {CACHE: empty_cache(update, capacity)}
        if not self._by_flow:
            hidden = (rows, self.limit * CODE_FRAMES, c.audio_decoder.width)
            state["hidden"] = jnp.zeros(hidden, self._dtype)
        return state

    def _apply_block(self, model, variables, codes_BNQ, lengths_B, pieces, *numbers):
        """(the flow's mel or else the decoder's features, cache update, frames_B) of a block."""

        def decode(model: BaichuanAudio) -> tuple[jax.Array, jax.Array]:
            hidden, frames_B = model.decode_hidden(codes_BNQ, lengths_B, self.blocks, pieces)
            if not self._by_flow:
                return hidden, frames_B
            keys_B, _ = noise_keys(*numbers)
            bins = self.config.flow_unet.mel_bins
            noise = flow_matching.draw_noise(keys_B, hidden.shape[1], bins, pieces.start_B)
            return model.flow_decode(
                hidden,
                frames_B,
                noise,
                steps=self.settings.steps,
                guidance=self.settings.guidance,
                pieces=pieces,
            )

        (output, frames_B), changed = model.apply(variables, method=decode, mutable=[UPDATE])
        return output, changed[UPDATE], frames_B

    def _block_batch(self, model, variables, state, codes_BNQ, lengths_B, pieces, *numbers):
        """State after a block of each active row, and its mel (the flow's) or None."""
        variables = {**variables, CACHE: state[CACHE]}
        output, update, frames_B = self._apply_block(
            model, variables, codes_BNQ, lengths_B, pieces, *numbers
        )
        new = {CACHE: update_cache(state[CACHE], update, pieces, frames_B)}
        if self._by_flow:
            return new, output
        frame = jnp.arange(output.shape[1])[None, :]
        valid = pieces.active_B[:, None] & (frame < frames_B[:, None])
        slot = jnp.where(valid, pieces.start_B[:, None] + frame, state["hidden"].shape[1])
        row = jnp.arange(self.rows)[:, None]
        return {**new, "hidden": state["hidden"].at[row, slot].set(output, mode="drop")}, None

    def _mel_batch(self, model, variables, hidden_BTD, lengths_B):
        """The decoder's mel of all features so far."""
        return model.apply(
            variables,
            hidden_BTD,
            lengths_B,
            lengths_B,
            self.blocks,
            method=lambda m, *args: m.audio_decoder.mels(*args).refined_mel_BTM,
        )

    def _decode(self, size: int, streams: Sequence[SegmentStream]) -> None:
        """Decode the next block of streams whose next block has this size."""
        codes_BNQ, lengths_B, pieces = self._batch(size, streams)
        self._state, mel_BTM = self._block(
            self._variables, self._state, codes_BNQ, lengths_B, pieces, *self.numbers(streams)
        )
        mel_BTM = None if mel_BTM is None else np.asarray(mel_BTM)
        for stream in streams:
            row = stream._row
            frames = int(CODE_FRAMES * lengths_B[row] - pieces.ends_B[row])
            stream._frames += frames
            stream._number += 1
            if mel_BTM is not None:
                stream._mel.append(mel_BTM[row, :frames])
        if not self._by_flow:
            self._decoder_mels(streams)

    def _batch(
        self, size: int, streams: Sequence[SegmentStream]
    ) -> tuple[np.ndarray, np.ndarray, Pieces]:
        """(codes_BNQ, lengths_B, pieces) of the next block of `size` frames of some streams."""
        rows, codes = self.rows, size // CODE_FRAMES
        codes_BNQ = np.zeros((rows, codes, len(self.config.vq_bridge.codebook_sizes)), np.int32)
        lengths_B, start_B = np.ones(rows, np.int32), np.zeros(rows, np.int32)
        ends_B, active_B = np.zeros(rows, bool), np.zeros(rows, bool)
        for stream in streams:
            row = stream._row
            next_NQ, ends_B[row] = stream._take_codes(codes)
            codes_BNQ[row, : len(next_NQ)] = next_NQ
            lengths_B[row], start_B[row], active_B[row] = len(next_NQ), stream._frames, True
        return codes_BNQ, lengths_B, Pieces(start_B, ends_B, active_B)

    def _decoder_mels(self, streams: Sequence[SegmentStream]) -> None:
        """Add the frames of the decoder's mel that have become final."""
        c = self.config.audio_decoder
        lengths_B = np.ones(self.rows, np.int32)
        for stream in streams:
            lengths_B[stream._row] = stream._frames
        mel_BTM = np.asarray(self._mels(self._variables, self._state["hidden"], lengths_B))
        open_frames = len(c.refine_channels) * (audio_decoder.REFINE_KERNEL // 2)
        for stream in streams:
            upto = c.mel_length(c.upsample_rates[1] * stream._frames)
            if not stream._ended:
                upto -= open_frames
                lead = c.mel_length(c.upsample_rates[1] * CODE_FRAMES * self.blocks.lead)
                upto = 0 if upto < lead else upto
            if upto > stream._mels_taken:
                stream._mel.append(mel_BTM[stream._row, stream._mels_taken : upto])
                stream._mels_taken = upto

    def numbers(self, streams: Sequence[SegmentStream]) -> tuple[np.ndarray, np.ndarray]:
        """seeds_B and segments_B of a batch."""
        numbers = np.zeros((2, self.rows), np.uint32)
        for stream in streams:
            numbers[:, stream._row] = stream.seed, stream.segment
        return numbers[0], numbers[1]


def _replicated_sharding(variables: Any) -> Any:
    """A sharding that replicates over the parameters' devices; None if they are uncommitted."""
    leaf = jax.tree.leaves(variables)[0]
    if not isinstance(leaf, jax.Array) or not leaf.committed:
        return None
    if isinstance(leaf.sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())
    return leaf.sharding


class SegmentStream:
    """A segment of a `StreamingSynthesizer`, made by its `open`."""

    def __init__(self, owner: StreamingSynthesizer, row: int, seed: int, segment: int):
        self.seed, self.segment = seed, segment
        self._owner, self._row = owner, row
        self._codes: list[np.ndarray] = []  # not decoded yet
        self._received = 0  # frames of codes so far
        self._number = 0  # blocks decoded
        self._frames = 0  # 50 Hz frames decoded
        self._mel: list[np.ndarray] = []  # final, without samples yet
        self._mels_taken = 0  # final frames of the decoder's mel
        self._closed = False  # no more codes will come
        self._ended = False  # the last block is decoded
        self._griffin_lim = GriffinLimStream(owner._geometry, iterations=owner.settings.iterations)
        self._window = VocoderWindow()

    @property
    def rate(self) -> int:
        """Sampling rate in Hz."""
        return self._owner.rate

    def push(self, codes_NQ: np.ndarray) -> np.ndarray:
        """Add codes; return the samples (S,), float32, that are now final."""
        return self._owner.push([self], [codes_NQ])[0]

    def finish(self) -> np.ndarray:
        """End the segment and return its remaining samples."""
        return self._owner.finish([self])[0]

    def drop(self) -> None:
        """End the segment without the rest of its samples."""
        self._owner.drop([self])

    def _ready(self, blocks: Blocks) -> bool:
        """Whether the codes of the next block are there, and one more or the end."""
        waiting = sum(map(len, self._codes))
        if self._closed:
            return waiting > 0
        return waiting > blocks.size(self._number) // CODE_FRAMES

    def _take_codes(self, most: int) -> tuple[np.ndarray, bool]:
        """Take the next block's codes; True if the segment ends with them."""
        waiting = np.concatenate(self._codes)
        self._ended = self._closed and len(waiting) <= most
        self._codes = [waiting[most:]] if len(waiting) > most else []
        return waiting[:most], self._ended

    def _take_mel(self) -> np.ndarray:
        """Take the mel frames that have become final."""
        empty = np.zeros((0, self._owner._geometry.n_mels), np.float32)
        mel_TM, self._mel = np.concatenate([empty, *self._mel]), []
        return mel_TM
