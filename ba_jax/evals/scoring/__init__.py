"""Scores of texts and of sound, with confidence intervals."""
