"""Makes each table from runs: the components, the data and the measures of its rows."""

from __future__ import annotations

import copy
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ba_jax.audio import read_audio
from ba_jax.audio.mel import HIFIGAN_MEL, log_mel
from ba_jax.audio.resample import resample
from ba_jax.checkpoints import components, layout
from ba_jax.config import from_mapping
from ba_jax.data.batches import open_batches
from ba_jax.evals import results, runner
from ba_jax.evals.bench import Bench
from ba_jax.evals.conditions import CONDITIONS
from ba_jax.evals.items import EvalError
from ba_jax.evals.judges.recogniser import SpeechJudge
from ba_jax.evals.paper import measure
from ba_jax.evals.paper.published import CODEBOOKS
from ba_jax.evals.paper.runs import NanoRuns
from ba_jax.evals.paper.table import Column, Measurement, Table
from ba_jax.evals.scoring import bootstrap, text
from ba_jax.evals.settings import EvalSettings
from ba_jax.evals.suites.registry import SUITES
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.report import evaluation
from ba_jax.sampling import listening
from ba_jax.sampling.speech_model import SpeechModel
from ba_jax.sampling.synthesize import Wave
from ba_jax.speech.languages import language_pack
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_ENCODER, SPEECH_TOKENIZER

_FLOW = (*SPEECH_TOKENIZER, "flow_prenet", "flow_unet")
_LM = (*LANGUAGE_MODEL, *SPEECH_ENCODER)
_RECOGNITION = {
    "WER en / CER zh": "asr_wer",
    "WER en": "asr_wer_en",
    "CER zh": "asr_cer_zh",
}
_MIXTURE = {"examples": "examples", "hours": "hours", "share of rows": "share_of_rows"}
_WER = Column("WER of resynthesis", "lower")
_MEL = Column("mel MAE", "lower", digits=3, share=False)
_MEL_OTHER = Column("mel MAE, other voices", "lower", digits=3, share=False)

_HEARD = {
    "WER en": "asr_wer_en",
    "CER zh": "asr_cer_zh",
    "BLEU en->zh": "s2tt_bleu_en_zh",
    "BLEU zh->en": "s2tt_bleu_zh_en",
    "answers": "qa_s2t",
}
"""Columns of Table 2 and their figures."""


class TableMaker:
    """Makes tables.

    Args:
      out: folder for the evaluations.
      config: as `configs/eval.py` makes it.
      retrain: Table 1 with a tokenizer trained for each number of codebooks.
    """

    def __init__(
        self,
        runs: NanoRuns,
        out: pathlib.Path,
        config: Mapping[str, Any],
        judge: SpeechJudge,
        *,
        retrain: bool = False,
    ):
        self.runs, self.out, self.config, self.retrain = runs, pathlib.Path(out), config, retrain
        self._judge = judge

    def __call__(self, number: int) -> Table:
        """Make a table of the paper.

        Raises:
          EvalError: no such table, or nothing to evaluate on.
          RunError, CheckpointError: a run that is missing and cannot be trained.
        """
        makers: Sequence[Callable[[], Table]] = (
            self.codebooks, self.quantization, self.flow, self.data,
            self.stages, self.recognition, self.speech, self.questions,
        )  # fmt: skip
        if not 1 <= number <= len(makers):
            raise EvalError(f"table {number}, expected 1 to {len(makers)}")
        table = makers[number - 1]()
        table.notes = [*table.notes, *(f"{name}." for name in text.normalisers().values())]
        return table

    # Tools

    def _make_bench(
        self, runs: Sequence[pathlib.Path], needed: Sequence[str], config: Mapping | None = None
    ) -> Bench:
        """Make a bench with components from runs; the last run that holds a component gives it."""
        config = self.config if config is None else config
        model = from_mapping(BaichuanAudioConfig, config["model"])
        settings = from_mapping(EvalSettings, config["eval"], "eval")
        sources = components.find([str(run) for run in runs], model, needed)
        speech_model = results.load_model(model, sources, settings, run=self._judge.map)
        return Bench(speech_model, settings, self.out, self._judge)

    def _evaluate(
        self,
        name: str,
        runs: Sequence[str],
        suites: Sequence[str],
        config: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the figures of suites, which are run unless they were before."""
        folders, out = [str(self.runs.get(run)) for run in runs], self.out / "eval" / name
        figures = results.evaluate(config or self.config, folders, out, suites)
        evaluation.write(out)
        return figures

    def _hearing(self, hears: str) -> Mapping[str, Any]:
        """Return the config of an evaluation that hears "features" or "quantized" ones."""
        # The tokenizer's stages learn answers without a transcript before them.
        return self._config_with(hears=hears, transcribe_first=False)

    def _config_with(self, **changes: Any) -> Mapping[str, Any]:
        """Return the config with other settings of the evaluation."""
        return {**self.config, "eval": {**self.config["eval"], **changes}}

    def _describe_speech(self) -> str:
        """Describe the speech that Tables 1 to 3 are measured on."""
        return (
            "Mel errors and resynthesis are of held-out answers in the assistant's two voices, by "
            "the decoder that the flow's run trains on these voices, inverted by Griffin-Lim and "
            f"heard by {', '.join(self._judge.names.values())}."
        )

    # Tables

    def codebooks(self) -> Table:
        """Make Table 1: the first 1, 4, 6 and 8 codebooks."""
        flow = self._make_bench([self.runs.get("flow")], SPEECH_TOKENIZER)
        tokenizer = self._make_bench([self.runs.get("tokenizer")], SPEECH_TOKENIZER)
        runs = [self.runs.get("tokenizer"), self.runs.get("stage2")]
        language_model = self._make_bench(runs, _LM)
        answers, statements = measure.answers(flow), measure.statements(flow)
        answer_codes = measure.encode(flow, answers)
        statement_codes = measure.encode(tokenizer, statements)
        baseline = self._evaluate(
            "hears_features", ["understanding"], ["asr"], self._hearing("features")
        )
        rows = {"no VQ": {"WER, frozen model": _read_figure(baseline, "asr_wer")}}
        for count in CODEBOOKS:
            mels = _decode(flow, answer_codes, count)
            waves = flow.model.synthesizer.invert(mels, HIFIGAN_MEL)
            task = f"hearing {count} codebooks"
            rows[_name_row(count)] = {
                "recognition WER": self._recognition_error(language_model, count),
                "WER, frozen model": self._hearing_error(count),
                "WER of resynthesis": measure.word_error_rate(flow, waves, answers, task),
                "mel MAE": measure.mel_error(mels, answers),
                "mel MAE, other voices": measure.mel_error(
                    _decode(tokenizer, statement_codes, count), statements
                ),
            }
        notes = [
            "Recognition: the language model of stage 2 writes down held-out sentences and "
            "questions of voices that it has not met, the embeddings of later codebooks left out "
            "(in training, frames lose their later codebooks at random).",
            "WER, frozen model: the same by the frozen language model of the tokenizer's run, from "
            "the first codebooks, and of the understanding model's, from its features (no VQ).",
            self._describe_speech(),
            "mel MAE, other voices: statements of held-out speakers, by the tokenizer's own "
            "decoder, before the flow's run.",
        ]
        errors = [Column(name, "lower") for name in ("recognition WER", "WER, frozen model")]
        columns = [*errors, _WER, _MEL, _MEL_OTHER]
        if self.retrain:
            columns.append(dataclasses.replace(_MEL, name="mel MAE, retrained"))
            for count in CODEBOOKS:
                rows[_name_row(count)]["mel MAE, retrained"] = self._retrained_error(count)
            notes.append("retrained: other voices, a tokenizer with the row's codebooks alone.")
        return Table(1, columns, rows, notes)

    def _recognition_error(self, bench: Bench, count: int) -> Measurement:
        """Return the language model's error rate if it reads the first `count` codebooks."""
        variables = measure.keep_codebooks(bench.model.variables, count)
        model = SpeechModel(bench.model.config, variables, bench.settings, run=self._judge.map)
        return self._recognise(model, f"codebooks_{count}", ("stage2", "tokenizer"), _LM)

    def _hearing_error(self, count: int) -> Measurement:
        """Return the same of the frozen language model of the tokenizer's run."""
        config = self._hearing("quantized")
        bench = self._make_bench([self.runs.get("tokenizer")], listening.COMPONENTS, config)
        variables = measure.keep_quantized(bench.model.variables, count)
        model = listening.ListeningModel(
            bench.model.config, variables, bench.settings, quantized=True
        )
        return self._recognise(model, f"hears_{count}", ("tokenizer",), listening.COMPONENTS)

    def _recognise(
        self, model: SpeechModel, name: str, runs: Sequence[str], needed: Sequence[str]
    ) -> Measurement:
        """Return a model's error rate of recognition; `needed` components come from the runs."""
        reader = Bench(model, model.settings, self.out / "eval" / name, self._judge)
        folders = [str(self.runs.get(run)) for run in runs]
        hashes = results.hash_inputs(self.config, components.find(folders, model.config, needed))
        made_with = {phase: f"{value}/{name}" for phase, value in hashes.items()}
        return _read_figure(runner.run(SUITES["asr"], reader, made_with)["figures"], "asr_wer")

    def _retrained_error(self, count: int) -> Measurement:
        """Return the mel error of a tokenizer trained with `count` codebooks."""
        config = copy.deepcopy(dict(self.config))
        for part in ("vq_bridge", "audio_embed", "audio_head"):
            sizes = config["model"][part]["codebook_sizes"]
            config["model"][part] |= {"codebook_sizes": tuple(sizes[:count])}
        bench = self._make_bench([self.runs.tokenizer_of(count)], SPEECH_TOKENIZER, config)
        speech = measure.statements(bench)
        return measure.mel_error(_decode(bench, measure.encode(bench, speech)), speech)

    def quantization(self) -> Table:
        """Make Table 2: features with and without quantization."""
        rows: dict[str, dict[str, Any]] = {}
        hearing = {"no VQ": ("understanding", "features"), "VQ": ("tokenizer", "quantized")}
        suites = ["asr", "s2tt", "qa_s2t"]
        flow = self._make_bench([self.runs.get("flow")], SPEECH_TOKENIZER)
        tokenizer = self._make_bench([self.runs.get("tokenizer")], SPEECH_TOKENIZER)
        answers, statements = measure.answers(flow), measure.statements(tokenizer)
        for name, quantized in (("no VQ", False), ("VQ", True)):
            mels = measure.refined_mels(flow, answers, quantized=quantized)
            waves = flow.model.synthesizer.invert(mels, HIFIGAN_MEL)
            statement_mels = measure.refined_mels(tokenizer, statements, quantized=quantized)
            run, hears = hearing[name]
            figures = self._evaluate(f"hears_{hears}", [run], suites, self._hearing(hears))
            rows[name] = {
                **{column: _read_figure(figures, key) for column, key in _HEARD.items()},
                "mel MAE": measure.mel_error(mels, answers),
                "mel MAE, other voices": measure.mel_error(statement_mels, statements),
                "WER of resynthesis": measure.word_error_rate(
                    flow, waves, answers, f"hearing {name}"
                ),
            }
        notes = [
            "Recognition, translation and answers: the same frozen language model hears features "
            "of the understanding model (no VQ), or the tokenizer's quantised ones.",
            self._describe_speech(),
            "mel MAE, other voices: statements of held-out speakers, by the tokenizer's own "
            "decoder, which trains on both kinds of features (the share of quantised items grows "
            "to all). The flow's run trains its decoder on quantised features alone: worse figures "
            "without VQ follow from that, not from VQ.",
        ]
        heard = [
            Column(name, "lower" if "ER" in name else "higher", share="BLEU" not in name)
            for name in _HEARD
        ]
        return Table(2, [*heard, _MEL, _MEL_OTHER, _WER], rows, notes)

    def flow(self) -> Table:
        """Make Table 3: resynthesis with and without flow matching, beside the recordings."""
        bench = self._make_bench([self.runs.get("flow")], _FLOW)
        speech = measure.answers(bench)
        codes = measure.encode(bench, speech)
        mels = bench.model.synthesizer.flow_mels(codes, range(len(codes)))
        waves = {
            "recordings": measure.recordings(speech),
            "with flow": bench.model.synthesizer.waves_of_mels(mels, range(len(codes))),
            "without flow": bench.model.synthesizer.waves_without_flow(codes),
        }
        rows = {}
        for name, variant in waves.items():
            opinions = measure.opinions(bench, variant, speech)
            rows[name] = {
                "MOS (DNSMOS)": opinions.get("dnsmos_overall"),
                "MOS (DistillMOS)": opinions.get("distillmos"),
                "WER of resynthesis": measure.word_error_rate(
                    bench, variant, speech, f"hearing {name}"
                ),
                "mel MAE": measure.mel_error([_compute_mel(wave) for wave in variant], speech),
                "PESQ": opinions.get("pesq_wb") if name != "recordings" else None,
                "STOI": opinions.get("stoi") if name != "recordings" else None,
            }
        notes = [
            self._describe_speech(),
            "DNSMOS (P.835 overall) and, where installed, DistillMOS stand in for UTMOS, whose "
            "weights no package ships. They, "
            f"PESQ and STOI are of {measure.OPINIONS} answers. The mel errors are of the waves, in "
            "one geometry.",
            f"The flow was trained for {self.runs.steps('flow')} steps.",
        ]
        columns = [
            Column("MOS (DNSMOS)", digits=2, share=False),
            Column("MOS (DistillMOS)", digits=2, share=False),
            _WER,
            _MEL,
            Column("PESQ", digits=2, share=False),
            Column("STOI", digits=3, share=False),
        ]
        return Table(3, columns, rows, notes)

    def data(self) -> Table:
        """Make Table 4: the mixture that stage 2 was trained on, by task."""
        totals: dict[str, dict[str, float]] = {}
        for task, figures in self._mixture():
            sums = totals.setdefault(task, dict.fromkeys(_MIXTURE, 0.0))
            for name, key in _MIXTURE.items():
                sums[name] += figures[key]
        rows = {
            task: {name: Measurement(value) for name, value in sums.items()}
            for task, sums in totals.items()
        }
        columns = [
            Column("examples", "", digits=0, share=False),
            Column("hours", "", digits=3, share=False),
            Column("share of rows", ""),
        ]
        notes = [
            "Hours of all members of a task, each recording as often as members have it: at other "
            "speeds, as words, and for every task that its record allows."
        ]
        return Table(4, columns, rows, notes)

    def _mixture(self) -> list[tuple[str, dict[str, Any]]]:
        """Return (task, its figures) of each member of the mixture."""
        folder = self.runs.get("stage2")
        config = layout.read_run_config(folder)
        if config is None:
            raise EvalError(f"{folder}: no config of the run")
        return mixture_figures(config)

    def stages(self) -> Table:
        """Make Table 5: a text model, and the speech models of one and two stages on top of it."""
        written, both = ("cloze_t2t", "qa_t2t"), ("cloze_t2t", "cloze_s2t", "qa_t2t", "qa_s2t")
        models = {
            "text alone": ("text", ["text"], written, ["text"]),
            "one stage": ("single", ["tokenizer", "single"], both, ["single"]),
            "two stages": (
                "stage2", ["tokenizer", "stage2"], both, ["stage1", "words", "stage2"]
            ),
        }  # fmt: skip
        rows, shares = {}, []
        for name, (run, runs, suites, trained) in models.items():
            figures = self._evaluate(run, runs, suites)
            if "cloze_s2t_transcribe_first" in figures:
                share = figures["cloze_s2t_transcribe_first"]
                shares.append(f"{name}: {share:.0%} of the questions")
            for way in ("t2t", "s2t"):
                if f"cloze_{way}" in figures:
                    rows[f"{name}, {way.replace('2', '->')}"] = {
                        "cloze": _read_figure(figures, f"cloze_{way}"),
                        "questions": _read_figure(figures, f"qa_{way}"),
                        "steps": "+".join(str(self.runs.steps(name)) for name in trained),
                    }
        notes = [
            "cloze: the right answer of a closed question against another of its category, by the "
            "mean log-likelihood of its tokens (chance 50 %), for s->t below the question as the "
            f"model reads it back ({', '.join(shares)}); questions: written freely, exact match. "
            "Held-out phrasings, and for s->t held-out voices.",
            "The runs have different numbers of steps, and the second stage begins with single "
            "words (`nano_words`), which the single stage has not: not the paper's ablation of the "
            "staging alone.",
        ]
        columns = [Column("cloze"), Column("questions"), Column("steps", "")]
        return Table(5, columns, rows, notes)

    def recognition(self) -> Table:
        """Make Table 6: this model beside the judge's recogniser, by condition."""
        rows: dict[str, dict[str, Measurement]] = {}
        for condition in CONDITIONS:
            config = self._config_with(condition=condition)
            name = "stage2" if condition == "clean" else f"stage2_{condition}"
            figures = self._evaluate(name, ["tokenizer", "stage2"], ["asr"], config)
            heard = self._judge_recognition(config, condition)
            for who, values in (("this model", figures), ("Whisper (judge)", heard)):
                cells = {name: _read_figure(values, key) for name, key in _RECOGNITION.items()}
                rows[f"{who}, {condition}"] = cells
        notes = [
            "Held-out closed sentences and questions of held-out voices. The judge is "
            f"{', '.join(self._judge.names.values())}: not Whisper-large-v3, and it does not know "
            "the closed vocabulary; Mandarin homophones count as errors of both.",
            "Conditions stand in for the paper's dialects: "
            + "; ".join(f"{name}, {says}" for name, says in CONDITIONS.items())
            + ".",
        ]
        return Table(6, [Column(name, "lower") for name in _RECOGNITION], rows, notes)

    def _judge_recognition(self, config: Mapping[str, Any], condition: str) -> dict[str, Any]:
        """Return the figures of the judge on the recordings of the asr suite."""
        bench = self._make_bench([self.runs.get("tokenizer")], (), config)
        records = [*bench.records.statements, *bench.records.questions]
        waves = [Wave(*read_audio(record.parts[0].audio)) for record in records]
        languages = [record.language for record in records]
        heard = bench.hear(waves, languages, f"recognising with the judge, {condition}")
        tallies = []
        for record, result in zip(records, measure.raise_failures(heard), strict=True):
            unit = language_pack(record.language).unit
            row = text.score_text(record.parts[0].text, result, record.language, unit)
            tallies.append(row | {"language": record.language})
        names = {"en": "asr_wer_en", "zh": "asr_cer_zh"}
        return bootstrap.rate_figures("asr_wer", tallies) | bootstrap.language_figures(
            tallies, names
        )

    def speech(self) -> Table:
        """Make Table 7: speech translation, and synthesis beside recordings."""
        runs = ["tokenizer", "flow", "stage2"]
        figures = self._evaluate("stage2_speech", runs, ["s2tt", "tts"])
        rows = {
            "this model": {
                "BLEU en->zh": _read_figure(figures, "s2tt_bleu_en_zh"),
                "BLEU zh->en": _read_figure(figures, "s2tt_bleu_zh_en"),
                "TTS WER": _read_figure(figures, "tts_judge_wer"),
            },
            "recordings": {"TTS WER": _read_figure(figures, "judge_wer_on_reference")},
        }
        notes = [
            "The paper's Table 7 is held against Qwen2-Audio-Base, which is not run here: no "
            "ordering of BLEU is claimed. The summary says that both directions are ahead of it.",
        ]
        if words := figures.get("tts_words_per_turn"):
            notes.append(f"TTS: a text is read and spoken in turns, {words} word(s) at a time.")
        columns = [
            Column("BLEU en->zh", share=False),
            Column("BLEU zh->en", share=False),
            Column("TTS WER", better="lower"),
        ]
        return Table(7, columns, rows, notes)

    def questions(self) -> Table:
        """Make Table 8: spoken questions, answered in writing and in speech."""
        runs = ["tokenizer", "flow", "stage2"]
        figures = self._evaluate("stage2_speech", runs, ["qa_s2t", "qa_s2s"])
        rows = {
            "s->t": {"right answers": _read_figure(figures, "qa_s2t")},
            "s->s": {
                "right answers": _read_figure(figures, "qa_s2s_text"),
                "as heard": _read_figure(figures, "qa_s2s"),
            },
        }
        notes = [
            "Closed questions in held-out phrasings and voices, exact match. s->s is scored on the "
            "text that is written between the speech, as in the paper, and on the speech as the "
            f"judge hears it ({figures['qa_s2s_scored']}). s->t is asked for by the task's prompt, "
            "s->s by the dialogue's roles."
        ]
        columns = [Column("right answers"), Column("as heard")]
        return Table(8, columns, rows, notes)


def mixture_figures(config: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(task, figures of `PackedBatches.report`) of each member of a run's mixture."""
    batches = open_batches(config["data"], config["model"])
    figures = batches.report()
    return [(member.maker.task, figures[member.name]) for member in batches.settings.mixture]


def _name_row(count: int) -> str:
    return f"{count} codebook{'s' * (count > 1)}"


def _decode(
    bench: Bench, codes: Sequence[np.ndarray], count: int | None = None
) -> list[np.ndarray]:
    """Decode the first `count` codebooks (None: all) to refined mels."""
    return [decoded.mel_TM for decoded in bench.model.synthesizer.decode(codes, codebooks=count)]


def _read_figure(figures: Mapping[str, Any], name: str) -> Measurement | None:
    """Return a figure with its interval, or None if it was not measured."""
    value = figures.get(name)
    return None if value is None else Measurement(value, figures.get(name + bootstrap.SUFFIX))


def _compute_mel(wave: Wave) -> np.ndarray:
    rate = HIFIGAN_MEL.sample_rate
    wave_S = wave.wave_S if wave.rate == rate else resample(wave.wave_S, wave.rate, rate)
    return log_mel(wave_S.astype(np.float32), HIFIGAN_MEL)
