"""The report of a main job: a folder of runs and evaluation results becomes one HTML page."""
