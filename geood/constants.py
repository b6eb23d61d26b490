"""Numbers with a meaning of their own in masks, truths, rasters and tables; what tells vector files from rasters."""

IGNORE = 255  # mask value of unlabelled pixels (ignore index)
UNSTATED = 254  # mask value of inliers of no stated class, and their id in reviewed labels
INLIER = 0  # in truth masks: a pixel of a known class
ANOMALY = 1  # in truth masks: a pixel of an unknown class
NO_CLASS = 255  # class-raster value of pixels without data
DIGITS = 7  # of the figures of polygons in files: scores have fewer, and people read them
VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".parquet")  # of files of shapes that geood reads
