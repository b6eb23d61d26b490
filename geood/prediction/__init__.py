"""From a scene to its score raster and polygons: plan, dispatch, score, journal, publish."""
