"""Cloud-optimized GeoTIFFs (COG): encoding of tiles, byte layout, and assembly while tiles are scored."""
