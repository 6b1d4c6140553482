"""A model that does requests: recordings to codes, prompts, generation, codes to waves.

What cannot be done for one request is a `Failure` in its place.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ba_jax.audio import AudioError, crossfade, read_audio
from ba_jax.audio.lengths import SAMPLE_RATE
from ba_jax.data.record import dataset_directory
from ba_jax.data.sequence import SequenceError
from ba_jax.data.tasks import TaskError, make_example
from ba_jax.data.text_tokenizer import TextTokenizer, load_text_tokenizer
from ba_jax.generate.requests import HEARS, Request, Turn
from ba_jax.generate.settings import GenerateSettings
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.encode import Encoder
from ba_jax.sampling.loop import Generator
from ba_jax.sampling.prompt import Prompt, prompt_of, text_in_turns
from ba_jax.sampling.session import Generated
from ba_jax.sampling.stream import StreamingSynthesizer, for_streaming
from ba_jax.sampling.synthesize import Synthesizer, Wave
from ba_jax.types import Failure
from ba_jax.vocab import LANGUAGE_MODEL

EARS = ("audio_encoder", "vq_bridge")
_TASK = {"asr": "asr", "translate": "s2tt", "tts": "tts"}  # of `ba_jax.data.tasks`
_SOMETHING = "x"  # an answer's text in a layout that is cut before it


def components(task: str, settings: GenerateSettings, hears: bool) -> tuple[str, ...]:
    """What a task needs of a model.

    Args:
      task: one of `requests.TASKS`.
      settings: see there.
      hears: some request holds a recording.
    """
    speaks = task in ("tts", "reconstruct") or (task == "chat" and settings.answers == "spoken")
    needed = () if task == "reconstruct" else LANGUAGE_MODEL
    needed += EARS if hears else ()
    if speaks:
        needed += ("vq_bridge", "audio_decoder")
        if settings.synthesis.mel == "flow":
            needed += ("flow_prenet", "flow_unet")
        if settings.synthesis.vocoder == "vocoder":
            needed += ("vocoder",)
    return tuple(dict.fromkeys(needed))


class Engine:
    """A model at work on one task; its parts are made when first needed.

    Args:
      task: one of `requests.TASKS`.
      config, variables: the model, with what `components` names.
      settings: see there.
      place: puts a batch's arrays (rows first) on the devices; by default where JAX puts them.
      rows: requests side by side; default the settings'.
    """

    def __init__(
        self,
        task: str,
        config: BaichuanAudioConfig,
        variables: Mapping[str, Any],
        settings: GenerateSettings,
        *,
        place: Callable[[Any], Any] = lambda arrays: arrays,
        rows: int | None = None,
    ):
        self.task, self.config, self.settings = task, config, settings
        self.rows = settings.rows if rows is None else rows
        self._variables, self._place = variables, place

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """Of the model's text.

        Raises:
          TokenizerError: one that does not fit the model.
        """
        tokenizer = load_text_tokenizer(dataset_directory(self.settings.tokenizer))
        tokenizer.check_against(self.config.tokens, self.config.llm.vocab_size)
        return tokenizer

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Waves to codes."""
        rows = min(self.rows, self.settings.encode_rows)
        seconds = self.settings.encode_seconds
        return Encoder(self.config, self._variables, rows=rows, seconds=seconds, place=self._place)

    @functools.cached_property
    def generator(self) -> Generator:
        """Text and frames."""
        s = self.settings
        chats = self.task == "chat"
        return Generator.of(
            self.config.only(*LANGUAGE_MODEL),
            self._variables,
            self.tokenizer,
            alternation=s.alternation if chats and s.answers == "spoken" else None,
            text=s.text if chats else s.transcript,
            audio=s.audio,
            rows=self.rows,
            lengths=s.lengths,
            max_text=s.max_text,
            max_frames=s.max_frames,
            capacity=s.capacity,
            feedback_codebooks=s.feedback_codebooks,
            place=self._place,
        )

    @functools.cached_property
    def synthesizer(self) -> Synthesizer:
        """Codes to waves."""
        return Synthesizer(self.config, self._variables, self.settings.synthesis, place=self._place)

    @functools.cached_property
    def streaming_synthesizer(self) -> StreamingSynthesizer:
        """The same, in pieces."""
        s = self.settings
        synthesis = for_streaming(s.synthesis, s.stream.blocks, s.stream.norm_frames)
        return StreamingSynthesizer(self.config, self._variables, synthesis)

    def seed(self, request: Request) -> int:
        """Of a request: the same whatever else is asked."""
        return zlib.crc32(f"{self.settings.seed}/{request.id}".encode())

    # Recordings

    def hear(self, turns: Sequence[Turn]) -> list[np.ndarray | Failure | None]:
        """Codes (N, Q) of the turns that are recordings; None for texts."""
        found: list[np.ndarray | Failure | None] = [None] * len(turns)
        waves = {}
        for number, turn in enumerate(turns):
            if not turn.audio:
                continue
            try:
                waves[number] = read_audio(turn.audio, sample_rate=SAMPLE_RATE)[0]
            except AudioError as error:
                found[number] = Failure(str(error))
        for number, codes_NQ in zip(waves, self.encoder(list(waves.values())), strict=True):
            found[number] = codes_NQ
            if not len(codes_NQ):
                found[number] = Failure(
                    f"{turns[number].audio}: {len(waves[number])} samples at 16 kHz are too few "
                    "for a frame of codes"
                )
        return found

    # Prompts

    def prompt(
        self, request: Request, number: int, codes_NQ: np.ndarray | None
    ) -> Prompt | Failure:
        """What is read before the answer to a turn; the system's prompt before the first one.

        Args:
          request: whose.
          number: of the turn.
          codes_NQ: of the turn's recording; None where it is a text.
        """
        turn = request.turns[number]
        said = turn.text if codes_NQ is None else codes_NQ
        nothing = np.zeros((1, len(self.config.audio_embed.codebook_sizes)), np.int32)
        if self.task == "chat":
            name = "sft"
            answer = [_SOMETHING] + ([nothing] if self.settings.answers == "spoken" else [])
            turns = [("user", [said]), ("assistant", answer)]
            if request.system and number == 0:
                turns.insert(0, ("system", [request.system]))
            values = (turns,)
        else:
            name = _TASK[self.task]
            values = (said, nothing if self.task == "tts" else _SOMETHING)
        try:
            example = make_example(name, *values, id=request.id, language=request.language)
            prompt = prompt_of(example, self.tokenizer, self.config.audio_embed.codebook_sizes)
        except (TaskError, SequenceError) as error:
            return Failure(str(error))
        longest = self.settings.capacity if self.task == "chat" else self.settings.lengths[-1]
        if len(prompt) > longest:
            return Failure(f"its prompt takes {len(prompt)} positions, expected at most {longest}")
        return prompt

    def pieces(self, request: Request) -> list[Prompt] | Failure:
        """Prompts of a text that is said piece by piece (`tts_words_per_turn`)."""
        s, sizes = self.settings, self.config.audio_embed.codebook_sizes
        name = {"id": request.id, "language": request.language}
        try:
            prompts = text_in_turns(
                request.turns[0].text, s.tts_words_per_turn, self.tokenizer, sizes, **name
            )
        except (TaskError, SequenceError) as error:
            return Failure(str(error))
        longest = max(len(prompt) for prompt in prompts)
        if longest > s.lengths[-1]:
            return Failure(
                f"a piece of it takes {longest} positions, expected at most {s.lengths[-1]}"
            )
        # With a frame and what ends a segment.
        if (positions := sum(len(prompt) + 2 for prompt in prompts)) > s.capacity:
            return Failure(f"its text takes {positions} positions, expected at most {s.capacity}")
        return prompts

    @property
    def in_turns(self) -> bool:
        """Texts are said piece by piece."""
        return self.task == "tts" and self.settings.tts_words_per_turn > 0

    @property
    def frame_limit(self) -> int:
        """The most frames of a turn."""
        if self.task == "tts":
            return min(self.settings.max_frames, self.settings.synthesis.frames[-1])
        return self.settings.max_frames

    # Waves

    def speak(
        self, segments: Sequence[Sequence[np.ndarray]], seeds: Sequence[int], first: Sequence[int]
    ) -> list[Wave | None]:
        """One wave for each list of segments of codes, joined; None where there is nothing to say.

        Args:
          segments: codes (N, Q) each; without frames it is left out.
          seeds: of the requests.
          first: number of each list's first segment among those of its request.
        """
        flat = [
            (own, number, codes_NQ)
            for own, codes in enumerate(segments)
            for number, codes_NQ in enumerate(codes)
            if len(codes_NQ)
        ]
        found: list[Wave | None] = [None] * len(segments)
        if not flat:
            return found
        waves = self.synthesizer.waves(
            [codes_NQ for *_, codes_NQ in flat],
            [seeds[own] for own, *_ in flat],
            [first[own] + number for own, number, _ in flat],
        )
        rate = waves[0].rate
        for own in {own for own, *_ in flat}:
            parts = [
                wave.wave_S for (owner, *_), wave in zip(flat, waves, strict=True) if owner == own
            ]
            joined_S = crossfade.join(parts, fade=crossfade.fade_samples(rate))
            found[own] = Wave(joined_S, rate)
        return found

    def cut(self, codes_NQ: np.ndarray) -> list[np.ndarray]:
        """Codes in pieces that the synthesizer takes."""
        longest = self.settings.synthesis.frames[-1]
        return [codes_NQ[i : i + longest] for i in range(0, len(codes_NQ), longest)]


def hears(task: str, requests: Sequence[Request]) -> bool:
    """Some request holds a recording."""
    return task in HEARS or any(turn.audio for one in requests for turn in one.turns)


def segments_of(generated: Generated) -> list[np.ndarray]:
    """The segments of speech of a turn, in order."""
    return [piece.codes_NQ for piece in generated.pieces if piece.is_audio]
