"""Records, text tokenizers and batches. Importing it loads no JAX: Grain workers start cheaply."""
