"""Records of a dataset that an evaluation uses, by kind."""

from __future__ import annotations

import dataclasses
import functools

from ba_jax.audio import AudioError
from ba_jax.data.record import Record, RecordError, RecordSource
from ba_jax.evals.conditions import change_record
from ba_jax.evals.items import EvalError
from ba_jax.evals.settings import EvalSettings


class EvalRecords:
    """The selected records of a split, loaded when first needed.

    Attributes:
      damaged: number in the split -> error, of records that could not be read.
    """

    def __init__(self, settings: EvalSettings):
        self._settings = settings
        self.damaged: dict[int, str] = {}

    @functools.cached_property
    def selected(self) -> list[Record]:
        """All selected records, in order; raises EvalError if there is none."""
        s = self._settings
        source = RecordSource(s.dataset, s.split)
        records, counts = [], {}
        for i in range(len(source)):
            try:
                record = source[i]
            except RecordError as error:
                self.damaged[i] = str(error)
                continue
            if s.sources and record.source not in s.sources:
                continue
            group = (record.kind, record.language)
            counts[group] = counts.get(group, 0) + 1
            if not s.limit or counts[group] <= s.limit:
                try:
                    records.append(change_record(record, s.condition))
                except AudioError as error:
                    self.damaged[i] = str(error)
        if not records:
            raise EvalError(f"{s.dataset}, split {s.split}: no record of {s.sources or 'any'}")
        return records

    @functools.cached_property
    def statements(self) -> list[Record]:
        """Single utterances."""
        return [record for record in self.selected if record.kind == "speech"]

    @functools.cached_property
    def dialogues(self) -> list[Record]:
        """Dialogues of a spoken question and an answer."""
        return [
            record
            for record in self.selected
            if record.kind == "dialogue"
            and [part.role for part in record.parts] == ["user", "assistant"]
            and record.parts[0].is_spoken
        ]

    @functools.cached_property
    def questions(self) -> list[Record]:
        """The questions of `dialogues`, as single utterances."""
        replace, questions = dataclasses.replace, []
        for record in self.dialogues:
            parts = (replace(record.parts[0], role=""),)
            questions.append(
                replace(record, id=f"{record.id}-question", kind="speech", parts=parts)
            )
        return questions
