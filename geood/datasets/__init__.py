"""Data sets: what trains and evaluates a model, under one sample format."""
