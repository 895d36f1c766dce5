"""LSTM, GRU and RNN with variational dropout (Gal and Ghahramani, 2016), fused C++/CUDA kernels."""

# Before torch, whose import it guards.
from . import startup  # noqa: F401  # isort: skip

import torch

from . import functional, reference
from .calibration import (
    conformal_scale,
    coverage,
    fit_noise,
    interval_width,
    model_precision,
)
from .conversion import convert, to_torch
from .engines import Plan, info, plan
from .functional import LayerMasks, LayerWeights
from .keras_weights import from_keras, load_keras_weights
from .modules import BayesianEmbedding, BayesianGRU, BayesianLSTM, BayesianRNN, LockedDropout
from .objective import kl_penalty, weight_decay_groups
from .predict import hold_masks, mc_dropout, mc_predict
from .prediction import HeteroscedasticPrediction, MCPrediction
from .switch import MaskDropout

# A checkpoint of a whole module, of masks or of a prediction loads under torch.load's default,
# weights_only=True.
torch.serialization.add_safe_globals(
    [
        BayesianEmbedding,
        BayesianGRU,
        BayesianLSTM,
        BayesianRNN,
        HeteroscedasticPrediction,
        LayerMasks,
        LayerWeights,
        LockedDropout,
        MCPrediction,
        MaskDropout,
    ]
)

__version__ = "0.1.0"

__all__ = [
    "BayesianEmbedding",
    "BayesianGRU",
    "BayesianLSTM",
    "BayesianRNN",
    "LayerMasks",
    "LayerWeights",
    "LockedDropout",
    "MCPrediction",
    "Plan",
    "conformal_scale",
    "convert",
    "coverage",
    "fit_noise",
    "from_keras",
    "functional",
    "hold_masks",
    "info",
    "interval_width",
    "kl_penalty",
    "load_keras_weights",
    "mc_dropout",
    "mc_predict",
    "model_precision",
    "plan",
    "reference",
    "to_torch",
    "weight_decay_groups",
]
