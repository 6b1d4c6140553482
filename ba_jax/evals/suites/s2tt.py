"""Speech translation into text: sacreBLEU's BLEU of each direction."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ba_jax.evals.bench import Bench
from ba_jax.evals.items import EvalError, EvalItem, Items, Line, Lines, Outputs, Results, make_items
from ba_jax.evals.scoring import bootstrap
from ba_jax.evals.suite import Suite
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_ENCODER

TOKENIZERS = {"en": "13a", "zh": "zh"}
"""Target language -> sacreBLEU's tokenizer."""
TARGETS = {"en": "zh", "zh": "en"}


@functools.cache
def bleu(target: str):
    """Return sacreBLEU's BLEU of a target language."""
    try:
        from sacrebleu.metrics import BLEU
    except ModuleNotFoundError:
        raise EvalError("s2tt: sacrebleu is not installed: pip install 'ba_jax[eval]'") from None
    return BLEU(tokenize=TOKENIZERS[target])


def corpus_bleu(
    hypotheses: Sequence[str], references: Sequence[str], target: str
) -> tuple[float, list[float], str]:
    """Return (BLEU of the corpus from 0 to 100, its interval, sacreBLEU's signature).

    Raises:
      EvalError: no texts, or no sacrebleu.
    """
    if not hypotheses:
        raise EvalError("BLEU of no texts, expected at least one")
    metric = bleu(target)
    score = metric.corpus_score(list(hypotheses), [list(references)]).score
    sentences = [
        metric.corpus_score([hypothesis], [[reference]])
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]
    # Per sentence: matching and all n-grams of orders 1 to 4, and both lengths.
    counts_IC = np.array([(*s.counts, *s.totals, s.sys_len, s.ref_len) for s in sentences])

    def score_sentences(index_I: np.ndarray) -> float:
        sums_C = counts_IC[index_I].sum(axis=0)
        # With the metric's settings: exponential smoothing of orders without a match.
        return metric.compute_bleu(
            correct=sums_C[:4].tolist(),
            total=sums_C[4:8].tolist(),
            sys_len=int(sums_C[8]),
            ref_len=int(sums_C[9]),
            smooth_method=metric.smooth_method,
            smooth_value=metric.smooth_value,
            effective_order=metric.effective_order,
            max_ngram_order=metric.max_ngram_order,
        ).score

    interval = bootstrap.interval(score_sentences, range(len(sentences)), vectorized=False)
    return float(score), interval, str(metric.get_signature())


class Translation(Suite):
    """`s2tt_bleu_en_zh` and `s2tt_bleu_zh_en`, of utterances with a reference translation."""

    name = "s2tt"
    components = (*LANGUAGE_MODEL, *SPEECH_ENCODER)

    def require(self) -> None:
        """Raise EvalError if sacrebleu is not installed."""
        bleu("en")

    def items(self, bench: Bench) -> list[EvalItem]:
        records = [*bench.records.statements, *bench.records.questions]
        return make_items([r for r in records if r.parts[0].translation.strip()])

    def generate(self, bench: Bench, items: Items) -> Results:
        return bench.ask(items, "s2tt", "translating")

    def score(self, bench: Bench, item: EvalItem, outputs: Outputs) -> Line:
        """Return hypothesis and reference; a failed item has an empty hypothesis."""
        part = item.record.parts[0]
        return {
            "language": TARGETS[item.language],
            "source_language": item.language,
            "question": part.text,
            "reference": part.translation,
            "hypothesis": outputs.generated.get("text", ""),
            "audio": {"heard": bench.recordings.save_reference(part, item.id)},
        }

    def figures(self, bench: Bench, rows: Lines) -> dict[str, Any]:
        """Compute BLEU of each direction, with sacreBLEU's signature."""
        figures: dict[str, Any] = {"s2tt_items": len(rows)}
        for source, target in TARGETS.items():
            selected = [row for row in rows if row.get("source_language") == source]
            if not selected:
                continue
            name = f"s2tt_bleu_{source}_{target}"
            hypotheses, references = (
                [row[key] for row in selected] for key in ("hypothesis", "reference")
            )
            score, interval, signature = corpus_bleu(hypotheses, references, target)
            figures |= {
                name: score,
                name + bootstrap.SUFFIX: interval,
                f"{name}_items": len(selected),
                f"{name}_signature": signature,
            }
        return figures


SUITES = (Translation(),)
