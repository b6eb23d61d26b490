"""From a config to a bundle: stages, losses, pasting, sources of negatives."""
