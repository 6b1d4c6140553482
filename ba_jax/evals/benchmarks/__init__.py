"""Loaders of public benchmarks as their authors lay them out, one a benchmark."""
