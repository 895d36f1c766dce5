"""LSTM, GRU and RNN with variational dropout (Gal and Ghahramani, 2016), fused C++/CUDA kernels."""

from . import functional, reference
from .engines import Plan, info, plan
from .functional import LayerMasks, LayerWeights
from .modules import BayesianEmbedding, BayesianGRU, BayesianLSTM, BayesianRNN, LockedDropout
from .objective import kl_penalty, weight_decay_groups
from .predict import MCPrediction, mc_dropout, mc_predict

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
    "functional",
    "info",
    "kl_penalty",
    "mc_dropout",
    "mc_predict",
    "plan",
    "reference",
    "weight_decay_groups",
]
