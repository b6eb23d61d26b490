"""Raster I/O and pixel geometry: scenes, grids, bands, labels, score rasters and QGIS styles. Imports no torch."""
