"""Interleaved data (paper Figure 4): cutting speech and text into parts, and filtering them.

Pure logic, without heavy tools and without files; the pipelines that run the tools are
`ba_jax.corpora.sources.crawl` and `ba_jax.corpora.sources.synthetic`.

    cuts       the best places to cut a sequence, by dynamic programming; filling records
    text       normalisation of text, and its possible cuts
    timing     words of a transcript with their times; parts that begin and end in pauses
    regions    stretches of speech by one voice out of a long recording
    filters    transcripts that are not to be trusted, alone or compared with a second one
    voices     the voice and speed of a synthetic record
"""
