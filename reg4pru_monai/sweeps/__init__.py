"""Experiments: many trainings that differ in little, run, skipped and resumed."""
