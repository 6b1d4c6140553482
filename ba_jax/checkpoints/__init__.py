"""Checkpoints: streamed arrays, a run's checkpoints, components from several runs, checksums."""
