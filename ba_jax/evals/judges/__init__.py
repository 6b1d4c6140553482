"""Judges: a speech recogniser that hears answers, and judges of written answers."""
