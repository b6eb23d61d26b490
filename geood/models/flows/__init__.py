"""Normalizing flows over image patches, of invertible parts."""
