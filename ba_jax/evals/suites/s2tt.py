"""Speech translated into writing: BLEU as sacreBLEU counts it, for each direction there is."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ba_jax.evals.base import Bench
from ba_jax.evals.scoring import bootstrap
from ba_jax.evals.suite import EvalError, Item, Line, Suite, items_of
from ba_jax.types import Failure
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_ENCODER

TOKENIZERS = {"en": "13a", "zh": "zh"}
"""sacreBLEU's, of each target language."""
TARGETS = {"en": "zh", "zh": "en"}


@functools.cache
def bleu(target: str):
    """sacreBLEU's BLEU of a target language.

    Raises:
      EvalError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ModuleNotFoundError:
        raise EvalError("s2tt: sacrebleu is not installed: pip install 'ba_jax[eval]'") from None
    return BLEU(tokenize=TOKENIZERS[target])


def corpus_bleu(
    hypotheses: Sequence[str], references: Sequence[str], target: str
) -> tuple[float, list[float], str]:
    """(BLEU of the corpus from 0 to 100, its interval, sacreBLEU's signature).

    Raises:
      EvalError: as `bleu`, or no texts.
    """
    if not hypotheses:
        raise EvalError("BLEU of no texts, expected at least one")
    metric = bleu(target)
    whole = metric.corpus_score(list(hypotheses), [list(references)]).score
    # Of each sentence: matching and all n-grams of orders 1 to 4, and both lengths.
    counts_IC = np.array(
        [
            (*one.counts, *one.totals, one.sys_len, one.ref_len)
            for one in (
                metric.corpus_score([said], [[wanted]])
                for said, wanted in zip(hypotheses, references, strict=True)
            )
        ]
    )
    values = []
    for index_RI in bootstrap.resamples(len(counts_IC)):
        for sums_C in counts_IC[index_RI].sum(axis=1):
            # As the metric itself computes it: exponential smoothing of orders without a match.
            found = metric.compute_bleu(
                correct=sums_C[:4].tolist(),
                total=sums_C[4:8].tolist(),
                sys_len=int(sums_C[8]),
                ref_len=int(sums_C[9]),
                smooth_method=metric.smooth_method,
                smooth_value=metric.smooth_value,
                effective_order=metric.effective_order,
                max_ngram_order=metric.max_ngram_order,
            )
            values.append(found.score)
    interval = bootstrap.interval(np.array(values))
    return float(whole), interval, str(metric.get_signature())


class Translation(Suite):
    """`s2tt_bleu_en_zh` and `s2tt_bleu_zh_en`, of utterances whose translation is known."""

    name = "s2tt"
    components = (*LANGUAGE_MODEL, *SPEECH_ENCODER)

    def require(self) -> None:
        """Raises EvalError: no sacrebleu."""
        bleu("en")

    def items(self, bench: Bench) -> list[Item]:
        """Raises EvalError: no utterance with a translation."""
        spoken = [*bench.statements, *bench.questions]
        found = items_of([record for record in spoken if record.parts[0].translation.strip()])
        if not found:
            raise EvalError("s2tt: no utterance with a translation in the data")
        return found

    def generate(self, bench: Bench, items: Sequence[Item]) -> list[Line | Failure]:
        """Text in the other language."""
        return bench.ask(items, "s2tt", "translating")

    def score(
        self, bench: Bench, item: Item, made: Line | None, given: Line | None, judged: Line | None
    ) -> Line:
        """What failed has written nothing, which counts in BLEU."""
        part = item.record.parts[0]
        return {
            "id": item.id,
            "language": TARGETS[item.language],
            "source_language": item.language,
            "question": part.text,
            "reference": part.translation,
            "hypothesis": made["text"] if made else "",
            "audio": {"heard": bench.recording(part, item.id)},
        }

    def figures(self, bench: Bench, rows: Sequence[Line]) -> dict[str, Any]:
        """BLEU of each direction, with the signature that says how it was counted."""
        found: dict[str, Any] = {"s2tt_items": len(rows)}
        for source, target in TARGETS.items():
            own = [row for row in rows if row.get("source_language") == source]
            if not own:
                continue
            name = f"s2tt_bleu_{source}_{target}"
            value, interval, signature = corpus_bleu(
                [row["hypothesis"] for row in own], [row["reference"] for row in own], target
            )
            found |= {name: value, name + bootstrap.SUFFIX: interval}
            found |= {f"{name}_items": len(own), f"{name}_signature": signature}
        return found
