"""Synthetic aerial scenes with labels and planted anomalies, for the demo and for tests."""
