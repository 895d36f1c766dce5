"""The paper's sentiment regression: reviews, model, training task, calibration, presets."""
