"""Metrics of score maps: pixel curves, connected components, open-set segmentation, benchmark protocols."""
