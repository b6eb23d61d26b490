"""From a score raster of any size to polygons in a file, in one pass of windows and in bounded memory.

`stretches` finds pixels that hang together within a window, `seams` what hangs together across windows, `components`
what is whole; `tally`, `quantiles` and `validity` are its figures, `outlines` its shape, `ellipsoid` its area.
`cutting` puts these together, `spool` keeps rows on disk until they can be sorted, `files` writes them. `geood.vector`
is the door.
"""
