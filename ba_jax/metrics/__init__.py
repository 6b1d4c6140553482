"""Metrics of a run: files and console (`writers`, `pictures`), rates (`throughput`), `flops`."""
