"""Layouts of public benchmarks."""
