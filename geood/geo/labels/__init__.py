"""Labels as class ids on a pixel grid, from rasters and vector files."""
