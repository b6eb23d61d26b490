"""Configs as text."""

SMALL = """\
data:
  images: [a.tif]
  labels: [b.tif]
  classes: {0: land, 1: road}
"""
