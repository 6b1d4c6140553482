"""What a run tells: files and console (`writers`, `pictures`), rates (`throughput`), `flops`."""
