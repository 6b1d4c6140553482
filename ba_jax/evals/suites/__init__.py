"""Evaluation suites, one file a kind of task."""
