"""Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks")."""

import numpy as np


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature that gives the lowest log loss of logits f32[n k] for labels i32[n]."""
    logits = logits.astype(np.float64)
    candidates = np.geomspace(0.05, 20, 400)

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        return float(np.mean(np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]))

    return float(candidates[int(np.argmin([loss(candidate) for candidate in candidates]))])
