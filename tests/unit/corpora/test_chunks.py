"""Division of a shard's recordings into batches of chunks."""

from __future__ import annotations

from ba_jax.corpora.chunks import divide_chunks
from ba_jax.corpora.shards import Job
from ba_jax.corpora.sources.base import Item
from ba_jax.corpora.sources.tokenized import Entry, TokenizedSource
from ba_jax.data import features
from ba_jax.data.features import Bucket


def test_every_chunk_is_in_a_single_batch_and_fits():
    seconds = (0.3, 5.1, 1.2, 0.0, 0.05, 2.0, 1.0, 0.9, 31.0, 0.5)
    items = tuple(
        Item(f"r{i}", "train", f"r{i}", Entry(i, seconds[: i + 1])) for i in range(len(seconds))
    )
    source = TokenizedSource("d", "w", chunk_seconds=2.0)
    buckets = features.check_buckets([Bucket(2.0, 3), Bucket(1.0, 6)])
    batches = divide_chunks(Job("train", 0, 1, items), source, buckets)
    chunks = [chunk for batch in batches for chunk in batch.chunks]
    assert len(set(chunks)) == len(chunks)
    for number, item in enumerate(items):
        for part, length in enumerate(item.payload.seconds):
            part_chunks = sorted(
                (c for c in chunks if (c.item, c.part) == (number, part)), key=lambda c: c.number
            )
            assert tuple(c.samples for c in part_chunks) == features.chunk_samples(
                features.total_samples(length), 2.0
            )
            assert [c.first for c in part_chunks] == [32_000 * c.number for c in part_chunks]
    for batch in batches:
        assert 1 <= len(batch.chunks) <= batch.bucket.count
        assert all(chunk.samples <= batch.bucket.samples for chunk in batch.chunks)
    assert [len(batch.chunks) for batch in batches[:-1]] == [b.bucket.count for b in batches[:-1]]
