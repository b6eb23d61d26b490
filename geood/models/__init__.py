"""Networks, anomaly scores and the bundle file that holds a trained model."""
