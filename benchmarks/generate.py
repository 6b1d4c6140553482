"""Generation against the same weights in PyTorch, written as the reference does it, in one run.

    python -m benchmarks.generate                                  # small
    python -m benchmarks.generate --size medium --threads 1 --json out.json

Random weights; both sides take the most likely ids and codes, and what they give is compared before
the clock starts. A call is a whole request, its prompt included. The reference serves one request
at a time, computes the text head on every frame, runs the audio head anew for each code and grows
its cache by concatenation (`benchmarks.torch_generation`); ours runs the jitted loop.

First audio: the reference makes sound of a clause once all its frames are there, ours streams. Both
sides count generation and then our synthesis at nano size (`--synthesis nano`): there the whole
clause by `Synthesizer`, here `StreamingSynthesizer`, frame by frame until the first samples come.
`--synthesis none` counts generation alone, here of the first frames.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import torch

from ba_jax import cli
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
from benchmarks.cases import Case, Comparison, call_torch, difference, draw_variables, torch_weights
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


def format_figure(row: dict, seconds: str, rate: str) -> str:
    """Format a side's rate, or its seconds; the arguments are their keys."""
    return f"{row[seconds]:.3g} s" if row["unit"] == "s" else f"{row[rate]:.3g} {row['unit']}/s"


def format_real_time(row: dict) -> str:
    """Format both sides' seconds of computing per second of audio."""
    return "{:.2g} / {:.2g}".format(*row["real_time"]) if row["real_time"] else ""


COLUMNS = {
    "what": "{what}",
    "size": "{size}",
    "baseline": lambda row: format_figure(row, "baseline_seconds", "baseline_per_second"),
    "ours": lambda row: format_figure(row, "our_seconds", "ours_per_second"),
    "aim": timing.format_aim,
    "real time, baseline / ours": format_real_time,
    "apart": "{difference:.1e}",
    **timing.COLUMNS,
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a run: model, prompt, answer, clause and frames of the first sound."""

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
    # For the tests.
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
    # The released codebooks; the rest scaled down for two cores.
    "medium": Sizes(
        LLMConfig(32768, 1024, layers=8, heads=16, kv_heads=2, head_dim=64, ffn_width=4096),
        CODEBOOK_SIZES,
    ),
}


@dataclasses.dataclass(frozen=True)
class Rate(Comparison):
    """A row of the table; each side generates `*_amount` of `unit` (ids, frames) in a call."""

    unit: str = "s"
    baseline_amount: int = 1
    our_amount: int = 1


@dataclasses.dataclass(frozen=True)
class Synthesis:
    """Codes to sound, whole and in pieces, with the same weights and settings."""

    whole: Synthesizer
    pieces: StreamingSynthesizer


def nano_synthesis(sizes: Sizes) -> Synthesis:
    """Make our decoder, flow and vocoder of nano size, random weights, for the run's codebooks."""
    values = get_config("nano")
    values.vq_bridge.codebook_sizes = sizes.codebooks
    parts = ("vq_bridge", "audio_decoder", "flow_prenet", "flow_unet", "vocoder")
    config = from_mapping(BaichuanAudioConfig, values).only(*parts)
    settings = for_streaming(SynthesisSettings(rows=1, frames=(sizes.frames,)))
    variables = draw_variables(config)
    return Synthesis(
        Synthesizer(config, variables, settings), StreamingSynthesizer(config, variables, settings)
    )


class Sides:
    """The same weights on both sides, and the requests.

    `as_trained` are our weights as training lays them out, None unless `stacked`.
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
        # The layout that `components.load` gives them on a CPU.
        cpu_layout.lay_out(params)
        random = np.random.default_rng(1)
        ids = random.integers(special, sizes.llm.vocab_size, (ROWS, sizes.prompt))
        self.ids_BL = ids.astype(np.int32)
        self.codes_LQ = np.zeros((sizes.prompt, len(sizes.codebooks)), np.int32)

    def generator(
        self, rows: int, as_trained: bool = False, alternation: Alternation | None = None
    ) -> Generator:
        """Make a generator of greedy text and frames; no text is a stop of the `alternation`."""
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
        """Make requests; those that speak end with `<audiogen_start>`."""
        prompts = []
        for ids_L in self.ids_BL[:count]:
            codes_LQ = self.codes_LQ
            if speaks:
                ids_L = np.append(ids_L, np.int32(TOKENS.audiogen_start))
                codes_LQ = np.pad(codes_LQ, ((0, 1), (0, 0)))
            prompts.append(Prompt(ids_L, codes_LQ, speaks=speaks, wants_speech=speaks))
        return prompts

    def conversation(self) -> Conversation:
        """Let the reference read the first request."""
        ids_L = torch.from_numpy(self.ids_BL[0].astype(np.int64))
        return Conversation(self.torch, ids_L, torch.from_numpy(self.codes_LQ).long())


def loops(sides: Sides) -> Iterator[Case]:
    """Compare text, then frames: the reference, ours, and ours with eight requests at once.

    With weights as training lays them out (`Sides.as_trained`), ours with those as well.
    """
    sizes = sides.sizes
    single, batched = "ours", f"ours, {ROWS} at once"
    counts = {single: 1, batched: ROWS}
    generators = {name: sides.generator(rows) for name, rows in counts.items()}
    layouts = {} if sides.as_trained is None else {f"{name}, stacked": name for name in counts}
    for stacked, name in layouts.items():
        counts[stacked] = counts[name]
        generators[stacked] = sides.generator(counts[name], as_trained=True)
    for unit, amount, speaks in (("ids", sizes.text, False), ("frames", sizes.frames, True)):

        def reference(speaks: bool = speaks, amount: int = amount) -> np.ndarray:
            conversation = sides.conversation()
            if speaks:
                return conversation.speak(amount, TOKENS.audiogen_start).numpy()
            return conversation.write(amount).numpy()

        theirs, title = call_torch(reference), "frames" if speaks else "text ids"
        ours = {
            name: functools.partial(generator, sides.prompts(counts[name], speaks))
            for name, generator in generators.items()
        }
        first_turns = [call()[0] for call in ours.values()]
        results = [turn.codes_NQ if speaks else np.asarray(turn.ids) for turn in first_turns]
        against, total = f"{title}, {ROWS} at once / reference, one by one", ROWS * amount
        among = f"{title}, ours: {ROWS} at once / one"
        aim = 5 if speaks else None
        rates = [
            Rate(f"{title}, one request", "torch", single, aim, unit, amount, amount),
            Rate(among, single, batched, 2.5, unit, amount, total),
            Rate(against, "torch", batched, None, unit, amount, total),
        ]
        for stacked, name in layouts.items():
            requests = "one request" if name == single else f"{ROWS} at once"
            label, count = f"{title}, {requests}: stacked weights / laid out", counts[name] * amount
            rates.append(Rate(label, stacked, name, None, unit, count, count))
        expected = theirs()
        apart = max(difference(result, expected) for result in results)
        yield Case(sizes.words, {"torch": theirs, **ours}, rates, apart)


def first_audio(sides: Sides, synthesis: Synthesis | None) -> Case:
    """Compare the time to the first sound of a clause: `clause` ids of text, then its frames.

    The reference synthesizes the whole clause, ours in pieces. With `synthesis` None generation
    alone is timed, ours of the first frames.
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
        is_heard = False
        for events in generator.stream([prompt], chunk=CHUNK):
            new = [event.codes_Q for event in events if event.kind == FRAME]
            frames += new
            if stream is None:
                is_heard = len(frames) >= sizes.first_frames
            elif new:
                is_heard = len(stream.push(np.stack(new))) > 0
            if is_heard:
                break
        if stream is not None:
            stream.drop()
        return np.stack(frames)

    theirs, first = call_torch(reference), ours()
    counted = "generation alone" if synthesis is None else "and synthesis"
    label = (
        f"first audio ({counted}): {sizes.clause} ids, then {sizes.frames} frames of the "
        f"reference, the first {len(first)} of ours"
    )
    return Case(
        sizes.words,
        {"torch": theirs, "ours": ours},
        [Rate(label, "torch", "ours", aim=4)],
        difference(first, theirs()[: len(first)]),
    )


def measure(case: Case, seconds: float) -> Iterator[dict]:
    """Time a case and yield its rows."""
    samples = timing.interleave(case.candidates, seconds, min_rounds=3)
    for rate in case.comparisons:
        times = [samples.median(rate.baseline), samples.median(rate.ours)]
        rates = [rate.baseline_amount / times[0], rate.our_amount / times[1]]
        is_audio = rate.unit == "frames"
        yield {
            "what": rate.label,
            "size": case.sizes,
            "unit": rate.unit,
            "baseline_seconds": times[0],
            "our_seconds": times[1],
            "baseline_per_second": rates[0],
            "ours_per_second": rates[1],
            "aim": rate.aim,
            "real_time": [FRAMES_PER_SECOND / value for value in rates] if is_audio else None,
            "difference": case.difference,
            **samples.compare(rate.baseline, rate.ours, rate.our_amount / rate.baseline_amount),
        }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = cli.Parser("benchmarks.generate", __doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument(
        "--synthesis",
        choices=("nano", "none"),
        default="nano",
        help="synthesis that counts towards first audio, on both sides",
    )
    parser.add_argument(
        "--stacked", action="store_true", help="also time the layout of training on this CPU"
    )
    timing.add_arguments(parser, seconds=45.0)
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> Iterator[dict]:
    """Yield rows, one case after another."""
    sizes = SIZES[options.size]
    sides = Sides(sizes, options.stacked)
    for case in loops(sides):
        yield from measure(case, options.seconds)
    synthesis = nano_synthesis(sizes) if options.synthesis == "nano" else None
    yield from measure(first_audio(sides, synthesis), options.seconds)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse(argv)
    facts = timing.prepare(options.threads)
    facts |= {"size": options.size, "synthesis": options.synthesis}
    timing.report(facts, COLUMNS, run(options), LEGEND, options.json)


if __name__ == "__main__":
    main()
