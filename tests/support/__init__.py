"""Helpers that several tests share: rasters and bundles made on the spot, miniatures of data sets, a server."""
