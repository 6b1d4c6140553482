"""Records of a dataset, and their files: ArrayRecord shards in the layout of TFDS.

A record is an ordered list of parts; a part is text, speech, or speech with its text. Tasks make
examples from it (`ba_jax.data.tasks`), so that one stored recording serves recognition, synthesis
and translation.

    kind         parts
    speech       one: an utterance, perhaps with transcript, translation, timings
    interleaved  two or more that continue each other, each with text and speech
    dialogue     turns with roles; a turn is text, speech, or both
    text         one or more paragraphs without speech

TensorFlow is not needed to write or read.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from ba_jax.config import expected

KINDS = ("speech", "interleaved", "dialogue", "text")
ROLES = ("", "system", "user", "assistant")
LANGUAGES = ("en", "zh")
"""Languages of the embedded corpus, which have prompts for every task; datasets may have others."""
_LANGUAGE = re.compile("[a-z]{2,3}")
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Unicode ranges of Han characters, for a character class of a regular expression."""
EMBEDDED = "embedded"
"""Name, in place of a folder, of the corpus in the package."""
# TFDS makes files and slices ("train[:10]") of names; "all" is its word for all splits.
_NAME = re.compile("(?!all$)[A-Za-z][A-Za-z0-9_]{0,79}")
# Characters without a shape that Unicode counts as letters, marks or symbols.
_SHAPELESS = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\ufffc\ufffe\uffff"
    "\U000e0100-\U000e01ef]"
)


class RecordError(ValueError):
    """A record or a dataset that cannot be written, read, or made an example of a task."""


def check_name(value: str, field: str) -> str:
    """Return the name of a dataset or a split if TFDS can read it back, or raise RecordError."""
    if not _NAME.fullmatch(value):
        raise RecordError(
            f"{field} {value!r}, expected letters, digits and _, 80 at most, a letter first, not "
            "'all', which is all splits"
        )
    return value


def check_language(value: str) -> str:
    """Return a language if it has the form of a code of ISO 639, or raise RecordError."""
    if not isinstance(value, str) or not _LANGUAGE.fullmatch(value):
        raise RecordError(f"language {value!r}, expected a code of ISO 639 such as 'en'")
    return value


def drop_invisible(text: str) -> str:
    """Remove control and format characters, private ones and others without a shape.

    White space stays, and so do characters that this Python's Unicode does not know yet.
    """
    if not text.isascii():
        text = _SHAPELESS.sub("", text)
    if text.isprintable():
        return text
    return "".join(
        c for c in text if c.isprintable() or c.isspace() or unicodedata.category(c) == "Cn"
    )


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a part's text (in Mandarin a character) and its times in seconds."""

    text: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Part:
    """One utterance, turn or paragraph.

    Attributes:
      text: written text or transcript; "" if unknown.
      audio: an encoded audio file (Ogg Opus, FLAC); b"" without speech.
      codes_NQ: audio codes, int; None if unknown.
      seconds: length of the audio; 0 without audio.
      translation: translation of the text, into the other language; "" if unknown.
      role: in a dialogue "system", "user" or "assistant", else "".
      speaker: name; "" without speech or if unknown.
      words: words with their times; () if unknown.
      loss: False: never a target, in any task.
    """

    text: str = ""
    audio: bytes = b""
    codes_NQ: np.ndarray | None = None
    seconds: float = 0.0
    translation: str = ""
    role: str = ""
    speaker: str = ""
    words: tuple[Word, ...] = ()
    loss: bool = True

    @property
    def is_spoken(self) -> bool:
        """Whether the part has speech, encoded or as codes."""
        return bool(self.audio) or self.codes_NQ is not None


@dataclasses.dataclass(frozen=True)
class Record:
    """One item of a dataset.

    Attributes:
      id: unique in its dataset.
      kind: one of KINDS.
      language: language of the speech or text, a code of ISO 639.
      parts: in order.
      source: name of its corpus, "librispeech".
    """

    id: str
    kind: str
    language: str
    parts: tuple[Part, ...]
    source: str = ""

    @property
    def seconds(self) -> float:
        """Seconds of speech."""
        return sum(part.seconds for part in self.parts)


def check_record(record: Record) -> Record:
    """Return the record if it is well formed, or raise RecordError that names the record."""

    def fail(what: str) -> None:
        raise RecordError(f"{record.source}:{record.id}: {what}")

    if not record.id:
        fail("an empty id")
    if record.kind not in KINDS:
        fail(f"kind {record.kind!r}, expected one of {KINDS}")
    try:
        check_language(record.language)
    except RecordError as error:
        fail(str(error))
    count = len(record.parts)
    low = 2 if record.kind in ("interleaved", "dialogue") else 1
    if count < low or (record.kind == "speech" and count != 1):
        fail(f"{count} parts, expected {'1' if record.kind == 'speech' else f'at least {low}'}")
    for number, part in enumerate(record.parts):
        name = f"part {number}"
        for field in ("text", "translation", "speaker"):
            value = getattr(part, field)
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                fail(f"{name}: {field} {value!r} holds half of a surrogate pair, expected Unicode")
        if part.role not in ROLES or bool(part.role) != (record.kind == "dialogue"):
            fail(f"{name}: role {part.role!r} in a record of kind {record.kind!r}")
        if not part.is_spoken and not part.text.strip():
            fail(f"{name}: neither text nor speech")
        if part.is_spoken != (part.seconds > 0) or not np.isfinite(part.seconds):
            fail(f"{name}: {part.seconds} seconds, expected more than 0 with speech, else 0")
        if record.kind == "speech" and not part.is_spoken:
            fail(f"{name}: no speech")
        if record.kind == "interleaved" and not (part.is_spoken and part.text.strip()):
            fail(f"{name}: expected both text and speech")
        if record.kind == "text" and part.is_spoken:
            fail(f"{name}: speech in a record of kind 'text'")
        codes = part.codes_NQ
        if codes is not None:
            if codes.ndim != 2 or not codes.size or codes.dtype.kind not in "iu":
                fail(f"{name}: codes {codes.dtype}{codes.shape}, expected integers (N >= 1, Q)")
            if codes.min() < 0 or codes.max() > np.iinfo(np.uint16).max:
                fail(f"{name}: codes from {codes.min()} to {codes.max()}, expected 0 to 65535")
    return record


# --- one record as bytes ------------------------------------------------------------------------


@functools.cache
def features():
    """TFDS features of a record."""
    import tensorflow_datasets as tfds

    blob = tfds.features.Tensor(shape=(), dtype=np.object_)
    text = tfds.features.Text()
    part = {
        "text": text,
        "audio": blob,
        "codes": blob,
        "codebooks": np.int32,
        "seconds": np.float32,
        "translation": text,
        "role": text,
        "speaker": text,
        "loss": np.int32,
    }
    word = {"part": np.int32, "text": text, "start": np.float32, "end": np.float32}
    return tfds.features.FeaturesDict(
        {
            "id": text,
            "kind": text,
            "language": text,
            "source": text,
            "parts": tfds.features.Sequence(part),
            "words": tfds.features.Sequence(word),
        }
    )


@functools.cache
def _serializer():
    from tensorflow_datasets.core import example_serializer

    return example_serializer.ExampleSerializer(features().get_serialized_info())


def to_bytes(record: Record) -> bytes:
    """Check and serialise a record."""
    check_record(record)
    parts, words = [], []
    for number, part in enumerate(record.parts):
        codes = part.codes_NQ
        parts.append(
            {
                "text": part.text,
                "audio": part.audio,
                # Codes need 14 bits at most (8192 and its end class).
                "codes": b"" if codes is None else codes.astype("<u2").tobytes(),
                "codebooks": 0 if codes is None else codes.shape[1],
                "seconds": part.seconds,
                "translation": part.translation,
                "role": part.role,
                "speaker": part.speaker,
                "loss": int(part.loss),
            }
        )
        for word in part.words:
            words.append({"part": number, "text": word.text, "start": word.start, "end": word.end})
    example = {
        "id": record.id,
        "kind": record.kind,
        "language": record.language,
        "source": record.source,
        "parts": parts,
        "words": words,
    }
    message = _serializer().get_tf_example(features().encode_example(example))
    # Plain serialisation orders a message's map differently in each process.
    return message.SerializeToString(deterministic=True)


def from_bytes(data: bytes) -> Record:
    """Parse the bytes of `to_bytes`, or raise RecordError.

    Reads the protobuf message itself: TFDS's general parser takes six times as long.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return _from_message(tf_example_pb2.Example.FromString(data).features.feature)
    except Exception as error:  # protobuf's own classes, and those of wrong fields
        raise RecordError(f"{len(data)} bytes that are no record: {error!r}") from None


def _from_message(feature: Mapping) -> Record:
    def texts(name: str) -> list[str]:
        return [value.decode("utf-8") for value in feature[name].bytes_list.value]

    words: dict[int, list[Word]] = {}
    for number, text, start, end in zip(
        feature["words/part"].int64_list.value,
        texts("words/text"),
        feature["words/start"].float_list.value,
        feature["words/end"].float_list.value,
        strict=True,
    ):
        words.setdefault(number, []).append(Word(text, start, end))
    columns = zip(
        texts("parts/text"),
        feature["parts/audio"].bytes_list.value,
        feature["parts/codes"].bytes_list.value,
        feature["parts/codebooks"].int64_list.value,
        feature["parts/seconds"].float_list.value,
        texts("parts/translation"),
        texts("parts/role"),
        texts("parts/speaker"),
        feature["parts/loss"].int64_list.value,
        strict=True,
    )
    parts = []
    for number, (text, audio, codes, codebooks, *others, loss) in enumerate(columns):
        codes_NQ = None
        if codebooks:
            codes_NQ = np.frombuffer(codes, "<u2").reshape(-1, codebooks).astype(np.int32)
        part_words = tuple(words.pop(number, ()))
        parts.append(Part(text, audio, codes_NQ, *others, part_words, loss != 0))
    if words:
        raise RecordError(f"words of part {min(words)}, but {len(parts)} parts")
    (id,), (kind,), (language,), (source,) = map(texts, ("id", "kind", "language", "source"))
    return Record(id, kind, language, tuple(parts), source)


# --- files --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shard:
    """Number of records and of serialised bytes of a shard."""

    records: int
    size: int


def shard_name(name: str, split: str, number: int, count: int) -> str:
    """File name of a shard in TFDS: `name-train.array_record-00000-of-00004`."""
    return f"{name}-{split}.array_record-{number:05d}-of-{count:05d}"


def write_shard(path: str | os.PathLike, records: Iterable[Record]) -> Shard:
    """Write one ArrayRecord file; it appears under its name only when it is complete."""
    from array_record.python.array_record_module import ArrayRecordWriter

    path = pathlib.Path(path)
    part = path.with_name(path.name + ".incomplete")
    # One record a chunk: random access then reads no neighbours.
    writer = ArrayRecordWriter(str(part), "group_size:1")
    count = size = 0
    try:
        for record in records:
            data = to_bytes(record)
            writer.write(data)
            count, size = count + 1, size + len(data)
    finally:
        writer.close()
    part.replace(path)
    return Shard(count, size)


def write_metadata(
    directory: str | os.PathLike,
    name: str,
    splits: Mapping[str, Sequence[Shard]],
    *,
    description: str = "",
    licence: str = "",
) -> None:
    """Make a folder of shards a TFDS dataset, for `tfds.builder_from_directory(directory)`.

    The shards are named by `shard_name`; `splits` is split -> its shards, in order.
    """
    import tensorflow_datasets as tfds

    directory = pathlib.Path(directory)
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory,
        dataset_name=name,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    )
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in shards],
            num_bytes=sum(shard.size for shard in shards),
            filename_template=template.replace(split=split),
        )
        for split, shards in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features(),
        split_infos=infos,
        version="1.0.0",
        filename_template=template,
        check_data=False,
        description=description,
        license=licence or None,
    )


def dataset_directory(dataset: str | os.PathLike) -> pathlib.Path:
    """Folder of a dataset; EMBEDDED is the corpus in the package."""
    if os.fspath(dataset) == EMBEDDED:
        return pathlib.Path(__file__).parent / "corpus" / EMBEDDED
    return pathlib.Path(dataset)


class RecordSource(Sequence[Record]):
    """Random access to one split of a dataset; can be pickled to a worker.

    A missing dataset or split, and a damaged record when it is read, raise RecordError.
    """

    def __init__(self, dataset: str | os.PathLike, split: str):
        self.directory = dataset_directory(dataset)
        self.split = split
        self._source = None
        self._length = len(self._open())

    def _open(self):
        if self._source is None:
            import tensorflow_datasets as tfds

            if not (self.directory / "dataset_info.json").is_file():
                raise RecordError(f"{self.directory}: no dataset_info.json, expected a dataset")
            builder = tfds.builder_from_directory(self.directory)
            if self.split not in builder.info.splits:
                raise RecordError(
                    f"{self.directory}: split {expected(self.split, sorted(builder.info.splits))}"
                )
            if not builder.info.splits[self.split].num_examples:
                raise RecordError(f"{self.directory}: split {self.split!r} has no record")
            stored = builder.info.features
            if sorted(stored) != sorted(features()):
                raise RecordError(
                    f"{self.directory}: fields {sorted(stored)}, expected {sorted(features())}"
                )
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            self._source = builder.as_data_source(self.split, deserialize_method=raw)
        return self._source

    def __getstate__(self):
        return self.__dict__ | {"_source": None}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of {self._length} in {self.directory}")
        source = self._open()
        try:
            return from_bytes(source[index])
        except Exception as error:  # ArrayRecord's own classes too
            reason = error if isinstance(error, RecordError) else repr(error)
            raise RecordError(
                f"{self.directory}: split {self.split!r}, record {index} is damaged: {reason}"
            ) from None

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(self._length))
