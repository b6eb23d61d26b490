"""Measures bundles, and score files of any tool, on labelled scenes and published data sets."""
