"""Evaluations, a file for each kind."""
