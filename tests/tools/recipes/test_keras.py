"""Layers from Keras's own, under two of its backends; tests/layer/test_keras_weights.py without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from page import package, recipe

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when Keras is imported
package("keras")

SCRIPT = Path(__file__).with_name("keras_layers.py")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_layers_and_masks_compute_the_same(backend):
    if backend == "jax":
        pytest.importorskip("jax")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=os.environ | {"KERAS_BACKEND": backend},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert differences.pop("backend") == backend
    assert differences.pop("relu") == "layer: expected activation 'tanh', got 'relu'"
    assert differences.pop("bfloat16") == 0.0
    assert len(differences) == 19
    assert max(differences.values()) < 2e-6, differences


def test_recipe():
    done = recipe("Weights of Keras")
    assert done.largest_difference < 1e-6
