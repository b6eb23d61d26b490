"""Rasters and pixels: scenes, grids, bands, labels, score rasters and their styles. No torch."""
