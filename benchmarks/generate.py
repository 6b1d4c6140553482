"""Generation against the same weights in PyTorch, written as the reference does it, in one run.

    python -m benchmarks.generate                                  # small
    python -m benchmarks.generate --size medium --threads 1 --json out.json

Random weights; both sides take the most likely ids and codes, and their outputs are compared
before the clock starts. A call is a whole request, its prompt included. The reference serves one
request at a time, computes the text head on every frame, runs the audio head anew for each code and
grows its cache by concatenation (`benchmarks.torch_generation`); ours runs the jitted loop.

First audio: the reference makes sound of a clause once all its frames are there, ours streams. Both
sides count generation and then our synthesis at nano size (`--synthesis nano`): there the whole
clause by `Synthesizer`, here `StreamingSynthesizer`, frame by frame until the first samples come.
`--synthesis none` counts generation alone, here of the first frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import torch

from ba_jax.config import from_mapping
from ba_jax.convert.tables import rows_for
from ba_jax.models import cpu_layout
from ba_jax.models.audio_embed import AudioEmbedConfig
from ba_jax.models.audio_head import AudioHeadConfig
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.models.llm import LLMConfig
from ba_jax.sampling.alternate import Alternation, StopMasks, TextVocabulary
from ba_jax.sampling.logits import GREEDY
from ba_jax.sampling.loop import Generator
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.session import FRAME
from ba_jax.sampling.settings import GenerationSettings
from ba_jax.sampling.stream import StreamingSynthesizer, for_streaming
from ba_jax.sampling.synthesize import SynthesisSettings, Synthesizer
from ba_jax.vocab import CODEBOOK_SIZES, AudioTokens
from benchmarks import timing
from benchmarks.cases import call_torch, difference, draw_variables, torch_weights
from benchmarks.timing import environment, report, table_line
from benchmarks.torch_generation import Conversation, SpeakingModel
from configs.models import get_config

FRAMES_PER_SECOND = 12.5
TOKENS = AudioTokens(*range(3, 12))
EOS = 2
ROWS = 8
CHUNK = 4
LEGEND = """
per second: ids or frames of all requests; ratio: median over rounds of the baseline's seconds an id
or frame (for first audio: seconds) over ours; CPU ratio: the same of CPU time; real time: seconds
of computing a second of audio, at 12.5 frames a second; apart: share of ids and codes that differ
between the two sides; others: share of the CPUs that other processes took meanwhile."""
COLUMNS = (
    "what",
    "size",
    "baseline",
    "ours",
    "ratio (quartiles)",
    "aim",
    "CPU ratio",
    "real time, baseline / ours",
    "apart",
    "others",
)


@dataclasses.dataclass(frozen=True)
class Synthesis:
    """Codes to sound, whole and in pieces, with the same weights and settings."""

    whole: Synthesizer
    pieces: StreamingSynthesizer


"""Codes (N, Q) to sound; returns when the sound is complete."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Model sizes, prompt and answer lengths, and the amount that makes the first sound."""

    llm: LLMConfig
    codebooks: tuple[int, ...]
    head_layers: int = 3
    prompt: int = 32
    text: int = 32
    frames: int = 60
    clause: int = 12
    first_frames: int = 8

    @property
    def words(self) -> str:
        c = self.llm
        return f"{c.layers} layers, width {c.width}, vocabulary {c.vocab_size}"


SIZES = {
    # The size that the tests run.
    "toy": Sizes(
        LLMConfig(256, 128, layers=2, heads=2, kv_heads=1, head_dim=32, ffn_width=96),
        (64, 32, 16, 8),
        head_layers=2,
        prompt=8,
        text=6,
        frames=12,
        clause=3,
        first_frames=4,
    ),
    "small": Sizes(
        LLMConfig(8192, 512, layers=4, heads=8, kv_heads=2, head_dim=64, ffn_width=2048),
        (512, 256, 128, 64, 64, 64, 64, 64),
    ),
    # The released codebooks; the rest scaled to what two cores bear.
    "medium": Sizes(
        LLMConfig(32768, 1024, layers=8, heads=16, kv_heads=2, head_dim=64, ffn_width=4096),
        CODEBOOK_SIZES,
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      label: name of the measure.
      baseline, ours: names of candidates.
      baseline_amount, our_amount: ids or frames of a call; 1 for a time.
      unit: "ids", "frames" or "s".
      audio: whether the output is audio, so that it has a real-time factor.
      aim: least ratio hoped for.
    """

    label: str
    baseline: str
    ours: str
    baseline_amount: int
    our_amount: int
    unit: str
    aim: float | None = None

    @property
    def audio(self) -> bool:
        return self.unit == "frames"


@dataclasses.dataclass(frozen=True)
class Case:
    """Candidates that are timed together, and the rows of the table that they give."""

    candidates: Mapping[str, Callable[[], object]]
    rows: Sequence[Row]
    difference: float


class Sides:
    """The same weights on both sides, and the requests.

    `as_trained`: our weights in the layout of training; None unless `stacked`.
    """

    def __init__(self, sizes: Sizes, stacked: bool = False):
        self.sizes = sizes
        width = sizes.llm.width
        self.config = BaichuanAudioConfig(
            llm=sizes.llm,
            audio_embed=AudioEmbedConfig(width, sizes.codebooks),
            audio_head=AudioHeadConfig(width, sizes.head_layers, sizes.codebooks),
            tokens=TOKENS,
        )
        self.variables = draw_variables(self.config)
        params = self.variables["params"]
        # No special token is ever the most likely, and audio does not end by itself.
        special = max(dataclasses.astuple(TOKENS)) + 1
        params["llm"]["lm_head"] = params["llm"]["lm_head"].at[:special].set(0)
        classifier = params["audio_head"]["classifiers_0"]
        classifier["bias"] = classifier["bias"].at[-1].set(-100)
        self.torch = SpeakingModel(
            vocab=sizes.llm.vocab_size,
            width=width,
            layers=sizes.llm.layers,
            heads=sizes.llm.heads,
            kv_heads=sizes.llm.kv_heads,
            head_dim=sizes.llm.head_dim,
            inner=sizes.llm.ffn_width,
            codebook_sizes=sizes.codebooks,
            head_layers=sizes.head_layers,
            audio_pad=TOKENS.audio_pad,
        ).load(torch_weights(self.variables, rows_for(self.config)))
        self.as_trained = jax.tree.map(lambda leaf: leaf, self.variables) if stacked else None
        # The layout of `components.load_to_generate` on a CPU.
        cpu_layout.lay_out(params)
        random = np.random.default_rng(1)
        ids = random.integers(special, sizes.llm.vocab_size, (ROWS, sizes.prompt))
        self.ids_BL = ids.astype(np.int32)
        self.codes_LQ = np.zeros((sizes.prompt, len(sizes.codebooks)), np.int32)

    def generator(
        self, rows: int, as_trained: bool = False, alternation: Alternation | None = None
    ) -> Generator:
        """Make a greedy generator; no text is a stop of the `alternation`."""
        vocab = self.sizes.llm.vocab_size
        stops = StopMasks(*np.zeros((len(StopMasks._fields), vocab), bool))
        settings = GenerationSettings(
            rows=rows,
            lengths=(self.sizes.prompt + 1,),
            max_text=self.sizes.text,
            max_frames=self.sizes.frames,
        )
        return Generator(
            self.config,
            self.as_trained if as_trained else self.variables,
            TextVocabulary(EOS, np.ones(vocab, bool), stops),
            settings,
            alternation,
        )

    def prompts(self, count: int, speaks: bool) -> list[Prompt]:
        """Make `count` requests; those that speak end with `<audiogen_start>`."""
        made = []
        for ids_L in self.ids_BL[:count]:
            codes_LQ = self.codes_LQ
            if speaks:
                ids_L = np.append(ids_L, np.int32(TOKENS.audiogen_start))
                codes_LQ = np.pad(codes_LQ, ((0, 1), (0, 0)))
            made.append(Prompt(ids_L, codes_LQ, speaks=speaks, wants_speech=speaks))
        return made

    def conversation(self) -> Conversation:
        """Let the reference read the first request."""
        ids_L = torch.from_numpy(self.ids_BL[0].astype(np.int64))
        return Conversation(self.torch, ids_L, torch.from_numpy(self.codes_LQ).long())


def loops(sides: Sides) -> Iterator[Case]:
    """Compare text, then frames: the reference, ours, and ours with eight requests at once.

    With `Sides.as_trained`, also ours in the layout of training.
    """
    sizes = sides.sizes
    single, eight = "ours", f"ours, {ROWS} at once"
    generators = {single: (1, sides.generator(1)), eight: (ROWS, sides.generator(ROWS))}
    layouts = []
    if sides.as_trained is not None:
        for words, new in (("one request", single), (f"{ROWS} at once", eight)):
            rows = generators[new][0]
            generators[f"{new}, stacked"] = rows, sides.generator(rows, as_trained=True)
            layouts.append((f"{words}: stacked weights / laid out", new, rows))
    for unit, amount, speaks in (("ids", sizes.text, False), ("frames", sizes.frames, True)):

        def reference(speaks: bool = speaks, amount: int = amount) -> np.ndarray:
            conversation = sides.conversation()
            if speaks:
                return conversation.speak(amount, TOKENS.audiogen_start).numpy()
            return conversation.write(amount).numpy()

        def given(made, speaks: bool = speaks) -> np.ndarray:
            return made[0].codes_NQ if speaks else np.asarray(made[0].ids)

        theirs, name = call_torch(reference), "text ids" if unit == "ids" else "frames"
        ours = {
            key: functools.partial(generator, sides.prompts(rows, speaks))
            for key, (rows, generator) in generators.items()
        }
        expected = theirs()
        apart = [difference(given(call()), expected) for call in ours.values()]
        several, aim = ROWS * amount, 5 if speaks else None
        against = f"{name}, {ROWS} at once / reference, one by one"
        yield Case(
            {"torch": theirs, **ours},
            [
                Row(f"{name}, one request", "torch", single, amount, amount, unit, aim),
                Row(
                    f"{name}, ours: {ROWS} at once / one", single, eight, amount, several, unit, 2.5
                ),
                Row(against, "torch", eight, amount, several, unit),
                *(
                    Row(
                        f"{name}, {words}",
                        f"{new}, stacked",
                        new,
                        rows * amount,
                        rows * amount,
                        unit,
                    )
                    for words, new, rows in layouts
                ),
            ],
            max(apart),
        )


def first_audio(sides: Sides, synthesis: Synthesis | None) -> Case:
    """Time a request to the first sound of a clause: `clause` ids of text, then its frames.

    Args:
      sides: both.
      synthesis: makes sound of the whole clause there, in pieces here; None: generation alone is
        timed, here of the first frames.
    """
    sizes = sides.sizes
    alternation = Alternation(later_text=GREEDY, stops=(), stretch=sizes.clause)
    generator = sides.generator(1, alternation=alternation)
    (prompt,) = sides.prompts(1, speaks=False)
    prompt = dataclasses.replace(prompt, wants_speech=True)

    def reference() -> np.ndarray:
        conversation = sides.conversation()
        conversation.write(sizes.clause)
        codes_NQ = conversation.speak(sizes.frames, TOKENS.audiogen_start).numpy()
        if synthesis is not None:
            synthesis.whole.waves([codes_NQ], [0])
        return codes_NQ

    def ours() -> np.ndarray:
        frames: list[np.ndarray] = []
        stream = None if synthesis is None else synthesis.pieces.open()
        heard = False
        for events in generator.stream([prompt], chunk=CHUNK):
            some = [event.codes_Q for event in events if event.kind == FRAME]
            frames += some
            if stream is not None and some:
                heard = len(stream.push(np.stack(some))) > 0
            if heard or (stream is None and len(frames) >= sizes.first_frames):
                break
        if stream is not None:
            stream.drop()
        return np.stack(frames)

    theirs = call_torch(reference)
    counted = "generation alone" if synthesis is None else "and synthesis"
    first = ours()
    return Case(
        {"torch": theirs, "ours": ours},
        [
            Row(
                f"first audio ({counted}): {sizes.clause} ids, {sizes.frames} frames there, the "
                f"first {len(first)} here",
                "torch",
                "ours",
                1,
                1,
                "s",
                4,
            )
        ],
        difference(first, theirs()[: len(first)]),
    )


def nano_synthesis(sizes: Sizes) -> Synthesis:
    """Make decoder, flow and vocoder of nano size with random weights, for the run's codebooks."""
    values = get_config("nano")
    values.vq_bridge.codebook_sizes = sizes.codebooks
    parts = ("vq_bridge", "audio_decoder", "flow_prenet", "flow_unet", "vocoder")
    config = from_mapping(BaichuanAudioConfig, values).only(*parts)
    settings = for_streaming(SynthesisSettings(rows=1, frames=(sizes.frames,)))
    variables = draw_variables(config)
    return Synthesis(
        Synthesizer(config, variables, settings), StreamingSynthesizer(config, variables, settings)
    )


def measure(case: Case, sizes: Sizes, seconds: float) -> Iterator[dict]:
    """Time a case and return its rows."""
    samples = timing.interleave(case.candidates, seconds, min_rounds=3)
    for row in case.rows:
        times = [samples.median(row.baseline), samples.median(row.ours)]
        amounts = [row.baseline_amount, row.our_amount]
        share = row.our_amount / row.baseline_amount
        low, ratio, high = (share * value for value in samples.ratio(row.baseline, row.ours))
        rates = [amount / time for amount, time in zip(amounts, times, strict=True)]
        yield {
            "what": row.label,
            "size": sizes.words,
            "unit": row.unit,
            "baseline_seconds": times[0],
            "our_seconds": times[1],
            "baseline_per_second": rates[0],
            "ours_per_second": rates[1],
            "ratio": ratio,
            "ratio_quartiles": [low, high],
            "cpu_ratio": share * samples.cpu_ratio(row.baseline, row.ours),
            "aim": row.aim,
            "real_time": [FRAMES_PER_SECOND / rate for rate in rates] if row.audio else None,
            "difference": case.difference,
            "rounds": len(samples.seconds[row.ours]),
            "others": samples.others,
        }


def table_row(row: dict) -> str:
    """Format a row of the Markdown table."""
    if row["unit"] == "s":
        figures = [f"{row[key]:.3g} s" for key in ("baseline_seconds", "our_seconds")]
    else:
        keys = ("baseline_per_second", "ours_per_second")
        figures = [f"{row[key]:.3g} {row['unit']}/s" for key in keys]
    low, high = row["ratio_quartiles"]
    real = row["real_time"]
    cells = (
        row["what"],
        row["size"],
        *figures,
        f"**{row['ratio']:.2f}** ({low:.2f}-{high:.2f}, {row['rounds']} rounds)",
        "" if row["aim"] is None else f">= {row['aim']:g}",
        f"{row['cpu_ratio']:.2f}",
        "" if real is None else f"{real[0]:.2g} / {real[1]:.2g}",
        f"{row['difference']:.1e}",
        f"{row['others']:.0%}",
    )
    return table_line(cells)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generate",
        description="Times generation against PyTorch as the reference does it, on this CPU.",
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--seconds", type=float, default=45.0, help="timing budget a case of three")
    parser.add_argument(
        "--synthesis",
        choices=("nano", "none"),
        default="nano",
        help="what makes sound of codes before first audio counts as heard, on both sides",
    )
    parser.add_argument(
        "--stacked", action="store_true", help="also time the layout of training on this CPU"
    )
    cpus = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=min(2, cpus), help="CPUs, for both sides")
    parser.add_argument("--json", type=pathlib.Path, help="also write the numbers there")
    options = parser.parse_args(argv)
    if not 1 <= options.threads <= cpus:
        parser.error(f"--threads {options.threads}: expected 1 to {cpus}, the CPUs there are")
    return options


def run(options: argparse.Namespace) -> Iterator[dict]:
    """Yield the rows of each case."""
    sizes = SIZES[options.size]
    sides = Sides(sizes, options.stacked)
    for case in loops(sides):
        yield from measure(case, sizes, options.seconds)
    synthesis = nano_synthesis(sizes) if options.synthesis == "nano" else None
    yield from measure(first_audio(sides, synthesis), sizes, options.seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the Markdown table and, if asked, write the JSON file."""
    options = parse(argv)
    timing.pin_threads(options.threads)
    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(options.threads)
    facts = environment(options.threads, options.size) | {"synthesis": options.synthesis}
    report(facts, COLUMNS, run(options), table_row, LEGEND, "what", options.json)


if __name__ == "__main__":
    sys.exit(main())
