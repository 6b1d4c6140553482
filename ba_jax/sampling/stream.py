"""Codes to speech while they come: what is pushed is heard as soon as it is final.

A segment's 50 Hz frames are decoded block by block (`SynthesisSettings.blocks`). A block needs its
own codes and one more, which says that the segment goes on: its last frame is left out at the end
of a segment. The audio decoder, the prenet and each step of the flow keep keys and values, and the
last inputs of convolutions, of the blocks before; so each frame is computed once. The vocoder runs
over windows that start a receptive field before the samples to be played (a cache for each of its
convolutions is not worth it: it is a tenth of the flow's work) and waits for `hold` frames after
them; its phase is carried from window to window.

The whole segment's result by `Synthesizer` with the same settings is the same but for rounding
where `hold` is None. What must differ from the reference for that: the decoder's first norm has
the statistics of the segment so far instead of the whole one's (`norm_frames`), and the flow sees
its own block, shorter than 2 s, instead of its own 2 s (`blocks`).

Measured on the demo's flow (nano, 32 answers in its voices): blocks of 16, then 48 frames change
its mel by 0.04 nats, `norm_frames` of 4 by 0.02 (0.008 with measured `norms` and a weight of 25),
other noise by 1.1; the error against the recordings stays 1.13. A vocoder of 46 training steps gave
the whole's wave (peak 0.43) within 1e-5 with `hold` None (21 frames; first audio after 17 frames of
codes), 3e-4 with 8 and 2e-3 with 6 (after 5 frames of codes). Of the decoder's own mel, whose
convolutions and norms were trained on whole segments, more is lost: 0.3 nats by the resizing's
grid alone, 0.5 with `norm_frames` of 4, against an error of 0.3.

Segments are rows of a batch, each at its own place. Shapes are those of the block sizes alone.
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
from ba_jax.models.vocoder import WindowPosition
from ba_jax.models.vocoder_config import receptive_field
from ba_jax.sampling.batching import LengthError
from ba_jax.sampling.synthesize import (
    LOUDEST,
    SynthesisSettings,
    check_seed,
    noise_keys,
)
from ba_jax.vocab import check_codes


class StreamError(RuntimeError):
    """A stream used after its end, or one more than there are rows."""


def for_streaming(
    settings: SynthesisSettings, blocks: tuple[int, ...] = (16, 48), norm_frames: int = 4
) -> SynthesisSettings:
    """Settings with blocks and norms that a stream can have, where they name none."""
    return dataclasses.replace(
        settings,
        blocks=settings.blocks or blocks,
        norm_frames=norm_frames if settings.norm_frames is None else settings.norm_frames,
    )


class StreamingSynthesizer:
    """Decodes up to `rows` segments at once, as their codes come.

    Args:
      config, variables: a model with what `Synthesizer` needs.
      settings: how; `norm_frames` must be given (`for_streaming`). `frames[-1]` is the longest
        segment; with a `lookback`, it is what the decoder's position table holds, 60 s. `rows` of
        the settings is not used.
      rows: segments at once.
      dtype: compute type, and that of what is remembered.

    Raises:
      ValueError: settings that no stream can have, or a model without a component.
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
            self._vocoder = _Windows(self, variables, dtype)
        else:
            self._mels = self._jit("mels", functools.partial(self._mel_batch, model))
        # In jit, as no two arrays may share a buffer; placed like the parameters, as what they give
        # is, or the second block would be compiled anew.
        initial = jax.jit(functools.partial(self._initial_state, model))()
        self._state = jax.device_put(initial, _place_of(self._variables))
        self._free = list(range(rows))

    @property
    def rate(self) -> int:
        """Hz of the samples: 24 kHz, or 16 kHz of the decoder's mel."""
        return self._geometry.sample_rate

    def _jit(self, name: str, function: Callable, donate: int | None = None) -> Callable:
        def traced(*args):
            self.traces[name] += 1
            return function(*args)

        return jax.jit(traced, donate_argnums=() if donate is None else donate)

    def warm_up(self) -> None:
        """Compiles every shape that a stream can need, before the first one is waited for."""
        for size in self._sizes:
            self._decode(size, [])
            if self._vocoder is not None:
                self._vocoder.step(size, [], {})

    def open(self, seed: int = 0, segment: int = 0) -> SegmentStream:
        """A stream for a segment; the request's seed and the segment's number decide its noise.

        Raises:
          StreamError: no free row.
          ValueError: a seed out of range.
        """
        check_seed(seed)
        if not self._free:
            raise StreamError(f"all {self.rows} rows have a segment: expected one to finish first")
        return SegmentStream(self, self._free.pop(0), seed, segment)

    def push(
        self, streams: Sequence[SegmentStream], codes: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Codes (N >= 1, Q) for some streams at once; for each, the samples that are now final.

        Nothing is changed where this raises.

        Raises:
          LengthError: no frame, or a segment longer than `limit` frames.
          CodeError: codes that are not the model's.
          StreamError: a stream that was finished, or named twice.
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
        """Ends some segments; for each, the rest of its samples. Their rows are free again.

        Raises:
          StreamError: a stream that was finished, or named twice.
        """
        self._check(streams)
        for stream in streams:
            stream._closed = True
        found = self._run(streams)
        for stream in streams:
            self._free.append(stream._row)
        return found

    def drop(self, streams: Sequence[SegmentStream]) -> None:
        """Ends some segments whose samples nobody wants any more; their rows are free again.

        Raises:
          StreamError: a stream that was finished, or named twice.
        """
        self._check(streams)
        for stream in streams:
            stream._closed = True
            self._free.append(stream._row)

    def _check(self, streams: Sequence[SegmentStream]) -> None:
        if len({id(stream) for stream in streams}) != len(streams):
            raise StreamError("a stream is named twice")
        for stream in streams:
            if stream._owner is not self:
                raise StreamError("a stream of another synthesizer")
            if stream._closed:
                raise StreamError("the segment was finished: open another stream")

    def _run(self, streams: Sequence[SegmentStream]) -> list[np.ndarray]:
        """Decodes what is ready; the samples for each stream."""
        given: dict[int, list[np.ndarray]] = {stream._row: [] for stream in streams}
        while ready := [stream for stream in streams if stream._ready(self.blocks)]:
            # Blocks of one size are decoded together.
            size = min(self.blocks.size(stream._number) for stream in ready)
            some = [s for s in ready if self.blocks.size(s._number) == size]
            self._decode(size, some)
        if self._vocoder is not None:
            self._vocoder.run(streams, given)
        else:
            for stream in streams:
                mel_TM = np.minimum(stream._take_mel(), LOUDEST)
                given[stream._row].append(stream._griffin_lim.push(mel_TM, stream._closed))
        none = np.zeros(0, np.float32)
        return [np.concatenate([none, *given[stream._row]]) for stream in streams]

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
        """The decoder's mel of all the features so far."""
        return model.apply(
            variables,
            hidden_BTD,
            lengths_B,
            lengths_B,
            self.blocks,
            method=lambda m, *args: m.audio_decoder.mels(*args).refined_mel_BTM,
        )

    def _decode(self, size: int, streams: Sequence[SegmentStream]) -> None:
        """The next block of streams whose next block has this size."""
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
        """The frames of the decoder's mel that have become final."""
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
        """seeds_B and segments_B."""
        both = np.zeros((2, self.rows), np.uint32)
        for stream in streams:
            both[:, stream._row] = stream.seed, stream.segment
        return both[0], both[1]


def _place_of(variables: Any) -> Any:
    """Where parameters were put on purpose, whole on each of their devices; None: nowhere."""
    leaf = jax.tree.leaves(variables)[0]
    if not isinstance(leaf, jax.Array) or not leaf.committed:
        return None
    if isinstance(leaf.sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())
    return leaf.sharding


class SegmentStream:
    """One segment of a `StreamingSynthesizer`, made by its `open`."""

    def __init__(self, owner: StreamingSynthesizer, row: int, seed: int, segment: int):
        self.seed, self.segment = seed, segment
        self._owner, self._row = owner, row
        self._codes: list[np.ndarray] = []  # not yet decoded
        self._received = 0  # frames of codes
        self._number = 0  # blocks decoded
        self._frames = 0  # 50 Hz frames decoded
        self._mel: list[np.ndarray] = []  # final, not yet heard
        self._mels_taken = 0  # of the decoder's
        self._closed = False  # no more codes will come
        self._ended = False  # the last block is decoded
        self._griffin_lim = GriffinLimStream(owner._geometry, iterations=owner.settings.iterations)
        self._window = _Window()

    @property
    def rate(self) -> int:
        """Hz of the samples."""
        return self._owner.rate

    def push(self, codes_NQ: np.ndarray) -> np.ndarray:
        """The samples (S,), float32, that these codes make final; see `StreamingSynthesizer`."""
        return self._owner.push([self], [codes_NQ])[0]

    def finish(self) -> np.ndarray:
        """The rest of the segment's samples; none if it had no codes."""
        return self._owner.finish([self])[0]

    def drop(self) -> None:
        """Ends the segment and gives nothing."""
        self._owner.drop([self])

    def _waiting(self) -> int:
        return sum(map(len, self._codes))

    def _ready(self, blocks: Blocks) -> bool:
        waiting = self._waiting()
        if self._closed:
            return waiting > 0
        return waiting > blocks.size(self._number) // CODE_FRAMES

    def _take_codes(self, most: int) -> tuple[np.ndarray, bool]:
        """The next block's codes, and whether the segment ends with them."""
        waiting = np.concatenate(self._codes)
        self._ended = self._closed and len(waiting) <= most
        self._codes = [waiting[most:]] if len(waiting) > most else []
        return waiting[:most], self._ended

    def _take_mel(self) -> np.ndarray:
        """Mel frames that are final and were not taken yet."""
        empty = np.zeros((0, self._owner._geometry.n_mels), np.float32)
        found, self._mel = np.concatenate([empty, *self._mel]), []
        return found


@dataclasses.dataclass
class _Window:
    """A segment's place in the vocoder.

    Attributes:
      mel_TM: its frames from `first` on.
      first: frame that the next window begins with.
      given: frames heard.
      phase: of the fundamental before the next window's anchor.
    """

    mel_TM: np.ndarray | None = None
    first: int = 0
    given: int = 0
    phase: int = 0


class _Windows:
    """The vocoder, over windows of segments' mels."""

    def __init__(self, owner: StreamingSynthesizer, variables, dtype: layers.Dtype):
        self._owner, self._config = owner, owner.config.vocoder
        self._variables = select_variables(owner.config, variables, ("vocoder",))
        reach = receptive_field(self._config)
        self._before = max(reach, 2 * self._config.f0_layers)
        hold = owner.settings.hold
        self._hold = reach if hold is None else min(hold, reach)
        model = BaichuanAudio(owner.config.only("vocoder"), dtype=dtype)

        def window(variables, mel_BTM, lengths_B, position, *numbers):
            _, keys_B = noise_keys(*numbers)
            return model.apply(
                variables,
                mel_BTM,
                lengths_B,
                keys_B,
                position,
                method=lambda m, *args: m.vocoder.window(*args),
            )

        self._window = owner._jit("vocode", window)

    def run(self, streams: Sequence[SegmentStream], given: dict[int, list[np.ndarray]]) -> None:
        """Appends to each row's list the samples that have become final."""
        for stream in streams:
            own = stream._window
            mel_TM = stream._take_mel()
            own.mel_TM = mel_TM if own.mel_TM is None else np.concatenate([own.mel_TM, mel_TM])
        while waiting := {s._row: self._final(s) - s._window.given for s in streams}:
            some = [stream for stream in streams if waiting[stream._row] > 0]
            if not some:
                return
            most = max(waiting.values())
            sizes = self._owner._sizes
            self.step(next((size for size in sizes if size >= most), sizes[-1]), some, given)

    def _final(self, stream: SegmentStream) -> int:
        """Frames that can be heard."""
        return stream._frames if stream._ended else max(0, stream._frames - self._hold)

    def step(self, size: int, streams, given: dict[int, list[np.ndarray]]) -> None:
        """A window with room for `size` new frames."""
        rows, bins = self._owner.rows, self._config.mel_bins
        room = self._before + size + self._hold
        mel_BTM = np.zeros((rows, room, bins), np.float32)
        lengths_B = np.ones(rows, np.int32)
        position = WindowPosition(*(np.zeros(rows, np.int32) for _ in WindowPosition._fields))
        upto_B = np.zeros(rows, np.int32)
        for stream in streams:
            row, own = stream._row, stream._window
            some_TM = own.mel_TM[:room]
            mel_BTM[row, : len(some_TM)] = some_TM
            ends = stream._ended and len(own.mel_TM) <= room
            # While more is to come, the last frame is the best guess at it.
            mel_BTM[row, len(some_TM) :] = some_TM[-1]
            lengths_B[row] = len(some_TM) if ends else room
            upto = stream._frames if ends else own.first + room - self._hold
            upto_B[row] = min(upto, self._final(stream))
            position.first_B[row] = own.first
            position.phase_B[row] = own.phase
            position.anchor_B[row] = self._anchor(own.first) - own.first
            position.next_B[row] = self._anchor(self._next(upto_B[row])) - own.first
        wave_BS, phase_B = jax.device_get(
            self._window(
                self._variables, mel_BTM, lengths_B, position, *self._owner.numbers(streams)
            )
        )
        for stream in streams:
            row, own = stream._row, stream._window
            samples = self._config.frame_samples
            start, stop = ((int(t) - own.first) * samples for t in (own.given, upto_B[row]))
            given[row].append(wave_BS[row, start:stop])
            first = self._next(upto_B[row])
            own.mel_TM = own.mel_TM[first - own.first :]
            own.first, own.given, own.phase = first, int(upto_B[row]), int(phase_B[row])

    def _next(self, given: int) -> int:
        """The frame that a window begins with to go on after so many frames."""
        return max(0, int(given) - self._before)

    def _anchor(self, first: int) -> int:
        """The first frame of a window whose f0 is the segment's."""
        return first + self._config.f0_layers if first else 0
