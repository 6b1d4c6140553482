"""Interleaved data (paper Figure 4): where to cut speech and text, and what to keep.

Pure logic, without heavy tools and without files; the pipelines that run the tools are
`ba_jax.corpora.sources.crawl` and `ba_jax.corpora.sources.synthetic`.

    cuts       the best places to cut a sequence, by dynamic programming; filling records
    text       normalisation of text, and where it may be cut
    timing     words of a transcript with their times; parts that begin and end in pauses
    regions    stretches of speech by one voice out of a long recording
    filters    what of the recogniser's output is not to be trusted, and why
    agreement  how far two transcripts differ
    voices     who speaks a record
"""
