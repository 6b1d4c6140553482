"""The model that hears and speaks: recordings to codes, prompts to answers, codes to waves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ba_jax.audio import crossfade
from ba_jax.checkpoints.components import load_to_generate
from ba_jax.data.record import dataset_directory
from ba_jax.data.text_tokenizer import TextTokenizer, load_text_tokenizer
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.alternate import Alternation, TextVocabulary, text_vocabulary
from ba_jax.sampling.encode import Encoder
from ba_jax.sampling.likelihood import Scorer
from ba_jax.sampling.loop import Generator
from ba_jax.sampling.prompt import Prompt, make_prompt, make_prompts_in_turns
from ba_jax.sampling.session import Generated
from ba_jax.sampling.settings import SpeechModelSettings
from ba_jax.sampling.stream import StreamingSynthesizer
from ba_jax.sampling.synthesize import SynthesisSettings, Synthesizer, Wave
from ba_jax.sharding import HOSTS, MeshSettings, inference_mesh
from ba_jax.types import Example
from ba_jax.vocab import LANGUAGE_MODEL


class SpeechModel:
    """A model's components behind one object; each part is built when first needed.

    Args:
      config, variables: the model; components that are not used may be missing.
      settings: see `SpeechModelSettings`.
      alternation: how text and speech alternate in what is generated; None: text, then at most one
        segment of speech.
      place: puts a batch's arrays (rows first) on the devices; by default where JAX puts them.
      run: `map`, or its counterpart over processes, for Griffin-Lim, which keeps a core busy.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: Mapping[str, Any],
        settings: SpeechModelSettings,
        *,
        alternation: Alternation | None = None,
        place: Callable[[Any], Any] = lambda arrays: arrays,
        run: Callable[[Callable, Iterable], Iterable] = map,
    ):
        self.config, self.variables, self.settings = config, variables, settings
        self.alternation = alternation
        self._place, self._run = place, run

    # Parts

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """The text tokenizer.

        Raises:
          TokenizerError: a tokenizer that does not fit the model.
        """
        tokenizer = load_text_tokenizer(dataset_directory(self.settings.tokenizer))
        tokenizer.check_against(self.config.tokens, self.config.llm.vocab_size)
        return tokenizer

    @functools.cached_property
    def vocabulary(self) -> TextVocabulary:
        """Roles of the text ids."""
        return text_vocabulary(self.tokenizer, self.config.llm.vocab_size, self.alternation)

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Recordings to codes."""
        return Encoder(
            self.config,
            self.variables,
            rows=self.settings.encode_rows,
            seconds=self.settings.encode_seconds,
            place=self._place,
        )

    @functools.cached_property
    def generator(self) -> Generator:
        """Prompts to text and codes; text alone if the variables hold no audio components."""
        present = [part for part in LANGUAGE_MODEL if part in self.variables["params"]]
        return Generator(
            self.config.only(*present),
            self.variables,
            self.vocabulary,
            self.settings.generation,
            self.alternation,
            place=self._place,
        )

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Log-likelihoods of given answers."""
        rows = self.settings.generation.rows
        return Scorer(self.config, self.variables, rows=rows, place=self._place)

    @functools.cached_property
    def synthesizer(self) -> Synthesizer:
        """Codes to waves."""
        return self.synthesizer_with(self.settings.synthesis)

    @functools.cache  # noqa: B019 (a model lives as long as its command)
    def synthesizer_with(self, settings: SynthesisSettings) -> Synthesizer:
        """A synthesizer with other settings."""
        return Synthesizer(self.config, self.variables, settings, run=self._run, place=self._place)

    @functools.cache  # noqa: B019
    def streaming_synthesizer(self, settings: SynthesisSettings) -> StreamingSynthesizer:
        """Codes to waves as they arrive; for settings as of `for_streaming`."""
        return StreamingSynthesizer(self.config, self.variables, settings)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codes of each codebook; () for a model of text alone."""
        return self.config.audio_embed.codebook_sizes if self.config.audio_embed else ()

    @property
    def capacity(self) -> int:
        """Positions that a conversation has room for."""
        return self.settings.generation.cache_slots(self.alternation)

    # Prompts and text

    def prompt(self, example: Example) -> Prompt:
        """The prompt of a training example.

        Raises:
          PromptError, RecordError: see `make_prompt`.
        """
        return make_prompt(example, self.tokenizer, self.codebook_sizes)

    def prompts_in_turns(self, text: str, *, id: str, language: str) -> list[Prompt]:
        """Prompts that have a text spoken `tts_words_per_turn` words at a time.

        Raises:
          RecordError: see `make_prompts_in_turns`.
        """
        words = self.settings.tts_words_per_turn
        return make_prompts_in_turns(
            text, words, self.tokenizer, self.codebook_sizes, id=id, language=language
        )

    def generate(
        self, prompts: Sequence[Prompt] | Sequence[list[Prompt]], **options
    ) -> list[Generated]:
        """Continue prompts; lists of prompts are texts to be spoken in turns.

        Args:
          prompts: all prompts, or all lists.
          options: seeds, frame_limit and progress, see `Generator.__call__`.
        """
        in_turns = bool(prompts) and isinstance(prompts[0], list)
        generate = self.generator.in_turns if in_turns else self.generator
        return generate(prompts, **options)

    def text_of(self, generated: Generated) -> str:
        """The text that was generated."""
        return self.tokenizer.decode(generated.ids).strip()

    # Waves

    def speak(
        self, segments: Sequence[Sequence[np.ndarray]], seeds: Sequence[int], first: Sequence[int]
    ) -> list[Wave | None]:
        """Synthesize segments of speech and join those of each request.

        Args:
          segments: codes (N, Q) of each request's segments; empty ones are left out.
          seeds: one per request.
          first: number of each request's first segment, counted over all its turns.

        Returns:
          A wave per request; None where all segments are empty.
        """
        flat = [
            (request, number, codes_NQ)
            for request, codes in enumerate(segments)
            for number, codes_NQ in enumerate(codes)
            if len(codes_NQ)
        ]
        joined: list[Wave | None] = [None] * len(segments)
        if not flat:
            return joined
        waves = self.synthesizer.waves(
            [codes_NQ for *_, codes_NQ in flat],
            [seeds[request] for request, *_ in flat],
            [first[request] + number for request, number, _ in flat],
        )
        rate = waves[0].rate
        parts: dict[int, list[np.ndarray]] = {}
        for (request, *_), wave in zip(flat, waves, strict=True):
            parts.setdefault(request, []).append(wave.wave_S)
        for request, waves_S in parts.items():
            wave_S = crossfade.join(waves_S, fade=crossfade.fade_samples(rate))
            joined[request] = Wave(wave_S, rate)
        return joined


def load_speech_model(
    config: BaichuanAudioConfig,
    sources: Mapping[str, str],
    settings: SpeechModelSettings,
    mesh: MeshSettings | None = None,
    hosts: str = HOSTS[0],
    make: Callable[..., SpeechModel] = SpeechModel,
    **options,
) -> SpeechModel:
    """Load a model's components onto the devices.

    Args:
      config: the model's.
      sources: component -> folder of weights, see `ba_jax.checkpoints.components.find`.
      settings: see `SpeechModelSettings`.
      mesh, hosts: see `ba_jax.sharding.inference_mesh`; None: the default device alone.
      make: makes the model.
      options: others of `SpeechModel`.

    Raises:
      CheckpointError, ShardingError: see `inference_mesh` and `load_to_generate`.
    """
    devices = None
    if mesh is not None:
        rows = {
            "generation.rows": settings.generation.rows,
            "encode_rows": settings.encode_rows,
            "synthesis.rows": settings.synthesis.rows,
        }
        devices, options["place"] = inference_mesh(mesh, rows, hosts)
    return make(config, load_to_generate(config, sources, devices), settings, **options)
