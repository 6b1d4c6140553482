"""Print one example of a mixture as tokens, codes, loss mask and text; or the mixture's summary.

    python -m ba_jax.data.show --config=configs/lm_stage2.py:nano --member=asr --index=3
    python -m ba_jax.data.show --config=configs/lm_stage2.py:nano --summary

A line is a run of text tokens with their ids, one special token, or audio frames with their codes.
Its last column names the loss there: `text` (the LM head predicts these tokens), `audio` (the audio
head predicts these codes), `end` (codebook 0 predicts the end of audio), or nothing.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator

import numpy as np
from absl import flags, logging

from ba_jax import cli
from ba_jax.config import ConfigError, expected
from ba_jax.data.batches import batch_settings, open_batches
from ba_jax.data.examples import NotForTask
from ba_jax.data.features import ModelFormat
from ba_jax.data.packed import PackedBatches, open_builders
from ba_jax.data.record import RecordError, RecordSource
from ba_jax.data.sequence import TokenSequence
from ba_jax.data.text_tokenizer import TextTokenizer
from ba_jax.types import Example

_GREEN, _MAGENTA, _YELLOW, _GREY, _BOLD = "32", "35", "33", "90", "1"
_TEXT_WIDTH = 48


def _runs(sequence: TokenSequence, tokenizer: TextTokenizer) -> Iterator[tuple[str, int, int]]:
    """Yield (kind, start, end) of runs of one kind ("text", "special", "frames") and one loss."""
    names = tokenizer.special_names
    pad = tokenizer.audio_tokens.audio_pad

    def key(i: int):
        token = int(sequence.ids_L[i])
        kind = "frames" if token == pad else "special" if token in names else "text"
        return kind, bool(sequence.text_target_L[i]), bool(sequence.audio_target_L[i])

    start = 0
    for i in range(1, len(sequence) + 1):
        if i == len(sequence) or key(i) != key(start) or key(start)[0] == "special":
            yield key(start)[0], start, i
            start = i


def _loss(sequence: TokenSequence, kind: str, at: int) -> str:
    heads = "text" if sequence.text_target_L[at] else ""
    if sequence.audio_target_L[at]:
        heads += " audio" if kind == "frames" else " end"
    return heads.strip()


def _width(text: str) -> int:
    """Width in columns of a terminal: Han characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def render(
    example: Example,
    sequence: TokenSequence,
    tokenizer: TextTokenizer,
    *,
    color: bool = False,
    frames: int = 3,
) -> str:
    """Format one example as lines: positions, ids, token or text, codes, loss.

    Colours: green for LM targets, magenta for audio targets, yellow for special tokens, grey for
    positions without loss. `frames` audio frames are printed of each end of a longer run.
    """

    def paint(text: str, code: str) -> str:
        return f"\033[{code}m{text}\033[0m" if color else text

    columns = sequence.codes_LQ.shape[1]
    wide = max(4, len(str(max(sequence.ids_L.max(), sequence.codes_LQ.max()))))
    title = f"{example.source}:{example.id}  task {example.task}  language {example.language}"
    if example.speaker:
        title += f"  speaker {example.speaker}"
    learnt = int(sequence.text_target_L.sum()), int(sequence.audio_target_L.sum())
    lines = [
        paint(title, _BOLD),
        f"{len(sequence)} positions; {learnt[0]} with text loss, {learnt[1]} with audio loss",
        f"{'position':>11}  {'':{_TEXT_WIDTH}}  {'ids, codes':<{(wide + 1) * columns}}  loss",
    ]
    waiting = np.zeros(len(sequence), bool)
    for span in sequence.spans:
        waiting[span.start : span.start + span.frames] = True

    def line(start: int, end: int, text: str, numbers, kind: str) -> None:
        where = f"{start}" if end - start == 1 else f"{start}-{end - 1}"
        loss = _loss(sequence, kind, start)
        tint = _MAGENTA if sequence.audio_target_L[start] else _GREEN if loss else _GREY
        shown = paint(text, _YELLOW if kind == "special" else tint)
        shown += " " * max(0, _TEXT_WIDTH - _width(text))
        if not isinstance(numbers, str):
            numbers = "".join(f"{number:>{wide}} " for number in numbers)
        numbers = f"{numbers:<{(wide + 1) * columns}}"
        lines.append(f"{where:>11}  {shown}  {paint(numbers, tint)}  {paint(loss, tint)}".rstrip())

    for kind, start, end in _runs(sequence, tokenizer):
        if kind == "text":
            for first, last, text in _pieces(sequence.ids_L, start, end, tokenizer, columns):
                line(first, last, repr(text)[1:-1], sequence.ids_L[first:last], kind)
        elif kind == "special":
            token = int(sequence.ids_L[start])
            codes = sequence.codes_LQ[start] if sequence.audio_target_L[start] else [token]
            line(start, end, tokenizer.special_names[token], codes, kind)
        elif waiting[start]:
            line(start, end, f"{end - start} frames", "not tokenised yet", kind)
        else:
            head = range(start, min(start + frames, end))
            tail = range(max(head.stop, end - frames), end)
            for at in head:
                line(at, at + 1, "frame", sequence.codes_LQ[at], kind)
            if tail.start > head.stop:
                line(head.stop, tail.start, f"{tail.start - head.stop} more frames", "...", kind)
            for at in tail:
                line(at, at + 1, "frame", sequence.codes_LQ[at], kind)
    return "\n".join(lines)


def _pieces(
    ids_L: np.ndarray, start: int, end: int, tokenizer: TextTokenizer, count: int
) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, text) of pieces of about `count` tokens, cut between whole characters."""
    stream, text, first = tokenizer.stream(), "", start
    for at in range(start, end):
        new = stream.push(ids_L[at])
        text += new
        if at + 1 == end:
            yield first, end, text + stream.flush()
        elif new and at + 1 - first >= count:
            yield first, at + 1, text
            text, first = "", at + 1


def _choose_member(data, name: str | None) -> str:
    members = sorted(name for name, m in data["mixture"].items() if m.get("weight", 1) != 0)
    name = name or members[0]
    if name not in members:
        raise ConfigError(f"--member={expected(name, members)}")
    return name


def find_example(config, member: str, index: int):
    """Find the index-th example that the task of a member of the mixture can use, in dataset order.

    Returns:
      (example, sequence, tokenizer).
    """
    only = dict(config["data"]) | {"mixture": {member: config["data"]["mixture"][member]}}
    settings = batch_settings(only)
    if only["kind"] != "packed":
        raise ValueError(f"data.kind {only['kind']!r}: only packed batches hold tokens")
    selection = settings.mixture[0]
    (builder,) = open_builders(settings, ModelFormat.of(config["model"]))
    count = 0
    for record in RecordSource(selection.dataset, selection.split):
        try:
            example, sequence = builder(record)
        except NotForTask:
            continue
        if count == index:
            return example, sequence, builder.tokenizer
        count += 1
    raise ValueError(f"index {index}: {selection.name} has {count} examples")


def format_summary(batches: PackedBatches) -> str:
    """Format a table of the members of a mixture."""
    figures = batches.report()
    rows = [("member", "examples", "rows", "tokens", "hours", "real positions", "share of rows")]
    for name, member in figures.items():
        rows.append(
            (
                name,
                f"{member['examples']:,}",
                f"{member['rows']:,}",
                f"{member['tokens']:,}",
                f"{member['hours']:.2f}",
                f"{100 * member['real_share']:.1f} %",
                f"{100 * member['share_of_rows']:.1f} %",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    for name, member in figures.items():
        for reason, records in member["left_out"].items():
            lines.append(f"{name}: left out {records:,} records: {reason}")
    return "\n".join(lines)


def define_flags() -> None:
    """Define the command line's flags."""
    cli.define_config("A config with `data` and `model`.")
    flags.DEFINE_string("member", None, "Name in data.mixture; default: the first.")
    flags.DEFINE_integer("index", 0, "Which of the member's examples.", lower_bound=0)
    flags.DEFINE_integer("frames", 3, "Audio frames to print of each end of a run.", 1)
    flags.DEFINE_bool("summary", False, "Print a table of the members instead.")
    flags.DEFINE_enum("color", "auto", ["auto", "always", "never"], "Colour the output.")


def main(argv: list[str]) -> int:
    """Print an example or the summary."""
    values = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    config = values.config.to_dict()
    try:
        if values.summary:
            batches = open_batches(config["data"], config["model"])
            if not isinstance(batches, PackedBatches):
                raise ConfigError(f"data.kind {config['data']['kind']!r}: expected 'packed'")
            print(format_summary(batches))
            return 0
        member = _choose_member(config["data"], values.member)
        example, sequence, tokenizer = find_example(config, member, values.index)
    except ConfigError:
        raise
    except (ValueError, RecordError, OSError) as error:
        return cli.fail("ba_jax.data.show", error, 1)
    color = sys.stdout.isatty() if values.color == "auto" else values.color == "always"
    print(render(example, sequence, tokenizer, color=color, frames=values.frames))
    return 0


if __name__ == "__main__":
    cli.run("ba_jax.data.show", define_flags, main)
