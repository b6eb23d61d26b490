"""From a score raster of any size to polygons in a file, in one pass of windows and in bounded memory.

`runs` finds the connected components of one window, `seams` joins them across windows, `components` passes on what is
whole; `statistics`, `quantiles` and `valid_counts` are its figures, `rings` its outline, `geodesic_area` its area.
`extraction` puts these together, `external_sort` keeps rows on disk until they can be sorted, `formats` writes them.
`export` is the door.
"""
