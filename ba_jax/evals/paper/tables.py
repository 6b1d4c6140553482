"""Makes each table of ours from runs: what is evaluated, on what, and how."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ba_jax import evaluate as command
from ba_jax.audio import read_audio
from ba_jax.audio.mel import HIFIGAN_MEL, log_mel
from ba_jax.audio.resample import resample
from ba_jax.checkpoints import components as restore
from ba_jax.config import from_mapping
from ba_jax.data.record import RecordSource
from ba_jax.evals import runner
from ba_jax.evals.base import Bench, EvalSettings
from ba_jax.evals.judges.recogniser import Judge
from ba_jax.evals.paper import measure
from ba_jax.evals.paper.published import CODEBOOKS
from ba_jax.evals.paper.runs import NanoRuns
from ba_jax.evals.paper.table import Column, Measured, Table
from ba_jax.evals.scoring import bootstrap, text
from ba_jax.evals.suite import EvalError
from ba_jax.evals.suites.registry import SUITES
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.speech_model import SpeechModel, load_speech_model
from ba_jax.sampling.synthesize import Wave
from ba_jax.types import Failure
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_ENCODER, SPEECH_TOKENIZER

_FLOW = (*SPEECH_TOKENIZER, "flow_prenet", "flow_unet")
_LM = (*LANGUAGE_MODEL, *SPEECH_ENCODER)


class Maker:
    """Makes tables.

    Args:
      runs: where weights come from.
      out: folder for the evaluations.
      config: as `configs/eval.py` makes it.
      judge: the recogniser.
      retrain: Table 1 with a tokenizer trained for each number of codebooks.
    """

    def __init__(
        self,
        runs: NanoRuns,
        out: pathlib.Path,
        config: Mapping[str, Any],
        judge: Judge,
        *,
        retrain: bool = False,
    ):
        self.runs, self.out, self.config, self.retrain = runs, pathlib.Path(out), config, retrain
        self._judge = judge

    def __call__(self, number: int) -> Table:
        """A table of the paper.

        Raises:
          EvalError: no such table, or nothing to evaluate on.
          RunError, CheckpointError: a run that cannot be had.
        """
        made: Mapping[int, Callable[[], Table]] = {
            1: self.codebooks,
            2: self.quantisation,
            3: self.flow,
            4: self.data,
            5: self.stages,
            6: self.recognition,
            7: self.speech,
            8: self.questions,
        }
        if number not in made:
            raise EvalError(f"table {number}, expected 1 to {max(made)}")
        return made[number]()

    # Tools

    def _bench(
        self, runs: Sequence[pathlib.Path], components: Sequence[str], config: Mapping | None = None
    ) -> Bench:
        """A bench of components of runs; the last run that holds one gives it."""
        config = self.config if config is None else config
        model = from_mapping(BaichuanAudioConfig, config["model"])
        settings = from_mapping(EvalSettings, config["eval"], "eval")
        sources = restore.find([str(run) for run in runs], model, components)
        speech_model = load_speech_model(model, sources, settings, run=self._judge.map)
        return Bench(speech_model, settings, self.out, self._judge)

    def _evaluate(self, name: str, runs: Sequence[str], suites: Sequence[str]) -> dict[str, Any]:
        """Figures of suites; those that are there are not made again."""
        folders = [str(self.runs.get(run)) for run in runs]
        return command.evaluate(self.config, folders, self.out / "eval" / name, suites)

    def _voice(self) -> str:
        """What is said of the speech that Tables 1 to 3 are measured on."""
        return (
            "Mel errors and resynthesis are of held-out answers in the assistant's two voices, by "
            "the decoder that the flow's run trains on these voices, inverted by Griffin-Lim and "
            f"heard by {', '.join(self._judge.names.values())}."
        )

    # Tables

    def codebooks(self) -> Table:
        """Table 1: the first 1, 4, 6 and 8 codebooks."""
        flow = self._bench([self.runs.get("flow")], SPEECH_TOKENIZER)
        own, others = measure.answers(flow), measure.statements(flow)
        first = self._bench([self.runs.get("tokenizer")], SPEECH_TOKENIZER)
        codes = measure.codes_of(flow, own)
        codes_of_others = measure.codes_of(first, others)
        listener = self._bench([self.runs.get("tokenizer"), self.runs.get("stage2")], _LM)
        rows = {}
        for count in CODEBOOKS:
            decoded = [one.mel_TM for one in flow.model.synthesizer.decode(codes, codebooks=count)]
            waves = flow.model.synthesizer.invert(decoded, HIFIGAN_MEL)
            before = first.model.synthesizer.decode(codes_of_others, codebooks=count)
            rows[_codebooks(count)] = {
                "recognition WER": self._recognised(listener, count),
                "WER of resynthesis": measure.wer(flow, waves, own, f"hearing {count} codebooks"),
                "mel MAE": measure.mel_mae(decoded, own),
                "mel MAE, other voices": measure.mel_mae([d.mel_TM for d in before], others),
            }
        notes = [
            "Recognition: the language model of stage 2 writes down held-out sentences and "
            "questions of voices that it has not met, the embeddings of later codebooks left out "
            "(in training, frames lose their later codebooks at random).",
            self._voice(),
            "mel MAE, other voices: statements of held-out speakers, by the tokenizer's own "
            "decoder, before the flow's run.",
        ]
        columns = [
            Column("recognition WER", better="lower"),
            Column("WER of resynthesis", better="lower"),
            Column("mel MAE", better="lower", digits=3, share=False),
            Column("mel MAE, other voices", better="lower", digits=3, share=False),
        ]
        if self.retrain:
            columns.append(Column("mel MAE, retrained", better="lower", digits=3, share=False))
            for count in CODEBOOKS:
                rows[_codebooks(count)]["mel MAE, retrained"] = self._retrained(count)
            notes.append("retrained: other voices, a tokenizer trained with so many codebooks.")
        return Table(1, columns, rows, notes)

    def _recognised(self, bench: Bench, count: int) -> Measured:
        """Words and characters that the language model gets wrong, with so many codebooks."""
        heard = Bench(
            SpeechModel(
                bench.model.config,
                measure.hears_fewer(bench.model.variables, count),
                bench.settings,
                run=self._judge.map,
            ),
            bench.settings,
            self.out / "eval" / f"codebooks_{count}",
            self._judge,
        )
        sources = {part: str(self.runs.get("stage2")) for part in ("llm",)}
        sources["vq_bridge"] = str(self.runs.get("tokenizer"))
        folders = restore.find(list(sources.values()), bench.model.config, _LM)
        stamps = {s: f"{m}/{count}" for s, m in command.made_with(self.config, folders).items()}
        return _figure(runner.run(SUITES["asr"], heard, stamps)["figures"], "asr_wer")

    def _retrained(self, count: int) -> Measured:
        config = copy.deepcopy(dict(self.config))
        for part in ("vq_bridge", "audio_embed", "audio_head"):
            sizes = config["model"][part]["codebook_sizes"]
            config["model"][part] |= {"codebook_sizes": tuple(sizes[:count])}
        bench = self._bench([self.runs.tokenizer_of(count)], SPEECH_TOKENIZER, config)
        speech = measure.statements(bench)
        decoded = bench.model.synthesizer.decode(measure.codes_of(bench, speech))
        return measure.mel_mae([one.mel_TM for one in decoded], speech)

    def quantisation(self) -> Table:
        """Table 2: through the codebooks, or past them."""
        rows: dict[str, dict[str, Any]] = {}
        flow = self._bench([self.runs.get("flow")], SPEECH_TOKENIZER)
        first = self._bench([self.runs.get("tokenizer")], SPEECH_TOKENIZER)
        own, others = measure.answers(flow), measure.statements(first)
        for name, quantised in (("no VQ", False), ("VQ", True)):
            mels = measure.refined_mels(flow, own, quantised=quantised)
            waves = flow.model.synthesizer.invert(mels, HIFIGAN_MEL)
            before = measure.refined_mels(first, others, quantised=quantised)
            rows[name] = {
                "mel MAE": measure.mel_mae(mels, own),
                "mel MAE, other voices": measure.mel_mae(before, others),
                "WER of resynthesis": measure.wer(flow, waves, own, f"hearing {name}"),
            }
        notes = [
            self._voice(),
            "mel MAE, other voices: statements of held-out speakers, by the tokenizer's own "
            "decoder, which trains on both kinds of features (the share of quantised items grows "
            "to all). The flow's run trains its decoder on quantised features alone: that its "
            "figures are worse without VQ says so, and nothing of VQ.",
        ]
        columns = [
            Column("mel MAE", better="lower", digits=3, share=False),
            Column("mel MAE, other voices", better="lower", digits=3, share=False),
            Column("WER of resynthesis", better="lower"),
        ]
        return Table(2, columns, rows, notes)

    def flow(self) -> Table:
        """Table 3: resynthesis with and without flow matching, beside the recordings."""
        bench = self._bench([self.runs.get("flow")], _FLOW)
        speech = measure.answers(bench)
        codes = measure.codes_of(bench, speech)
        mels = bench.model.synthesizer.flow_mels(codes, range(len(codes)))
        waves = {
            "recordings": measure.recordings(speech),
            "with flow": bench.model.synthesizer.waves_of_mels(mels, range(len(codes))),
            "without flow": bench.model.synthesizer.waves_without_flow(codes),
        }
        rows = {}
        for name, own in waves.items():
            opinions = measure.opinions(bench, own, speech)
            rows[name] = {
                "MOS (DNSMOS)": opinions.get("dnsmos_overall"),
                "WER of resynthesis": measure.wer(bench, own, speech, f"hearing {name}"),
                "mel MAE": measure.mel_mae([_mel_of(wave) for wave in own], speech),
                "PESQ": opinions.get("pesq_wb") if name != "recordings" else None,
                "STOI": opinions.get("stoi") if name != "recordings" else None,
            }
        notes = [
            self._voice(),
            "DNSMOS (P.835 overall) stands for UTMOS, whose weights no package ships; it, PESQ and "
            f"STOI are of {measure.OPINIONS} answers. The mel errors are of the waves, in one "
            "geometry.",
            f"The flow was trained for {self.runs.steps('flow')} steps.",
        ]
        columns = [
            Column("MOS (DNSMOS)", digits=2, share=False),
            Column("WER of resynthesis", better="lower"),
            Column("mel MAE", better="lower", digits=3, share=False),
            Column("PESQ", digits=2, share=False),
            Column("STOI", digits=3, share=False),
        ]
        return Table(3, columns, rows, notes)

    def data(self) -> Table:
        """Table 4: hours of each kind of records that are trained on."""
        source = RecordSource(self.config["eval"]["dataset"], "train")
        totals: dict[str, tuple[int, float]] = {}
        for i in range(len(source)):
            record = source[i]
            count, seconds = totals.get(record.kind, (0, 0.0))
            totals[record.kind] = (count + 1, seconds + record.seconds)
        rows = {
            kind: {"records": Measured(count), "hours": Measured(seconds / 3600)}
            for kind, (count, seconds) in totals.items()
        }
        columns = [
            Column("records", "", digits=0, share=False),
            Column("hours", "", digits=3, share=False),
        ]
        notes = [
            "The paper has (thousand hours) ASR 185, AQA 21, S2TT 15, INTLV 393, TTS 51, ITTS 142, "
            "pure audio 80. Here one recording serves every task that its record allows."
        ]
        return Table(4, columns, rows, notes)

    def stages(self) -> Table:
        """Table 5: a text model before speech, and what one and two stages make of it."""
        written, both = ("cloze_t2t", "qa_t2t"), ("cloze_t2t", "cloze_s2t", "qa_t2t", "qa_s2t")
        found = {
            "text alone": self._evaluate("text", ["text"], written),
            "one stage": self._evaluate("single", ["tokenizer", "single"], both),
            "two stages": self._evaluate("stage2", ["tokenizer", "stage2"], both),
        }
        steps = {
            "text alone": str(self.runs.steps("text")),
            "one stage": str(self.runs.steps("single")),
            "two stages": "+".join(str(self.runs.steps(r)) for r in ("stage1", "words", "stage2")),
        }
        shares = ", ".join(
            f"{name}: {figures['cloze_s2t_transcribe_first']:.0%} of the questions"
            for name, figures in found.items()
            if "cloze_s2t_transcribe_first" in figures
        )
        rows = {}
        for name, figures in found.items():
            for way in ("t2t", "s2t"):
                if f"cloze_{way}" in figures:
                    rows[f"{name}, {way.replace('2', '->')}"] = {
                        "cloze": _figure(figures, f"cloze_{way}"),
                        "questions": _figure(figures, f"qa_{way}"),
                        "steps": steps[name],
                    }
        notes = [
            "cloze: the right answer of a closed question against another of its category, by the "
            "mean log-likelihood of its tokens (chance 50 %), for s->t below the question as the "
            f"model reads it back ({shares}); questions: written freely, exact match. Held-out "
            "phrasings, and for s->t held-out voices.",
            "The runs have different numbers of steps, and the second stage begins with single "
            "words (`nano_words`), which the single stage has not: not the paper's ablation of the "
            "staging alone.",
        ]
        columns = [Column("cloze"), Column("questions"), Column("steps", "")]
        return Table(5, columns, rows, notes)

    def recognition(self) -> Table:
        """Table 6: this model beside the judge's recogniser on the same recordings."""
        figures = self._evaluate("stage2", ["tokenizer", "stage2"], ["asr"])
        bench = self._bench([self.runs.get("tokenizer")], ())
        records = [*bench.statements, *bench.questions]
        waves = [Wave(*read_audio(record.parts[0].audio)) for record in records]
        languages = [record.language for record in records]
        heard = bench.hear(waves, languages, "recognising with the judge")
        tallies = []
        for record, said in zip(records, heard, strict=True):
            if isinstance(said, Failure):
                raise EvalError(said.reason)
            unit = text.WRITTEN[record.language]
            tally = text.tally(record.parts[0].text, said, record.language, unit)
            one = {"errors": tally.errors, "units": tally.units, "language": record.language}
            tallies.append(one)
        judged = bootstrap.rate_figures("all", tallies)
        judged |= bootstrap.by_language(tallies, {"en": "en", "zh": "zh"})
        rows = {
            "this model": {
                "WER en / CER zh": _figure(figures, "asr_wer"),
                "WER en": _figure(figures, "asr_wer_en"),
                "CER zh": _figure(figures, "asr_cer_zh"),
            },
            "Whisper (judge)": {
                "WER en / CER zh": _figure(judged, "all"),
                "WER en": _figure(judged, "en"),
                "CER zh": _figure(judged, "zh"),
            },
        }
        notes = [
            "Held-out closed sentences and questions of held-out voices. The judge is "
            f"{', '.join(self._judge.names.values())}: not Whisper-large-v3, and it does not know "
            "the closed vocabulary; Mandarin homophones count as errors of both.",
        ]
        columns = [Column(n, better="lower") for n in ("WER en / CER zh", "WER en", "CER zh")]
        return Table(6, columns, rows, notes)

    def speech(self) -> Table:
        """Table 7: speech translation, and synthesis beside recordings."""
        runs = ["tokenizer", "flow", "stage2"]
        figures = self._evaluate("stage2_speech", runs, ["s2tt", "tts"])
        rows = {
            "this model": {
                "BLEU en->zh": _figure(figures, "s2tt_bleu_en_zh"),
                "BLEU zh->en": _figure(figures, "s2tt_bleu_zh_en"),
                "TTS WER": _figure(figures, "tts_judge_wer"),
            },
            "recordings": {"TTS WER": _figure(figures, "judge_wer_on_reference")},
        }
        notes = [
            "The paper's Table 7 is held against Qwen2-Audio-Base, which is not run here: no "
            "ordering of BLEU is claimed. The summary says that both directions are ahead of it.",
        ]
        if words := figures.get("tts_words_per_turn"):
            notes.append(f"TTS: texts are read and said in turns, {words} word(s) at a time.")
        columns = [
            Column("BLEU en->zh", share=False),
            Column("BLEU zh->en", share=False),
            Column("TTS WER", better="lower"),
        ]
        return Table(7, columns, rows, notes)

    def questions(self) -> Table:
        """Table 8: spoken questions, answered in writing and in speech."""
        runs = ["tokenizer", "flow", "stage2"]
        figures = self._evaluate("stage2_speech", runs, ["qa_s2t", "qa_s2s"])
        rows = {
            "s->t": {"right answers": _figure(figures, "qa_s2t")},
            "s->s": {
                "right answers": _figure(figures, "qa_s2s"),
                "text before the speech": _figure(figures, "qa_s2s_text"),
            },
        }
        notes = [
            "Closed questions in held-out phrasings and voices, exact match; speech as the judge "
            f"hears it ({figures['qa_s2s_scored']}). s->t is asked for by the task's prompt, s->s "
            "by the dialogue's roles."
        ]
        columns = [Column("right answers"), Column("text before the speech")]
        return Table(8, columns, rows, notes)


def _codebooks(count: int) -> str:
    return f"{count} codebook{'s' * (count > 1)}"


def _figure(figures: Mapping[str, Any], name: str) -> Measured | None:
    """A figure with its interval; None where there is none."""
    value = figures.get(name)
    return None if value is None else Measured(value, figures.get(name + bootstrap.SUFFIX))


def _mel_of(wave: Wave) -> np.ndarray:
    rate = HIFIGAN_MEL.sample_rate
    wave_S = wave.wave_S if wave.rate == rate else resample(wave.wave_S, wave.rate, rate)
    return log_mel(wave_S.astype(np.float32), HIFIGAN_MEL)
