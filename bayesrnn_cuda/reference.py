"""LSTM, GRU and RNN with variational dropout in plain PyTorch: what every engine is tested against.

Any dtype and device, any order of derivatives, a Python loop over time. One notation throughout:
a_k = W_k (m^x_k s_x x_t) + b^ih_k is the input part of gate k and
r_k = U_k (m^h_k s_h h_{t-1}) + b^hh_k its recurrent part,
with keep_* = m the masks and scale_* = s = 1 / (1 - p).

Called directly nothing is checked: a wrong shape may broadcast, lengths and resets too. Through
`bayesrnn_cuda.functional` with engine="reference" all arguments are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .masks import LayerMasks


class LayerWeights(NamedTuple):
    """The weights of one layer in one direction, in PyTorch's layout and gate order: a named tuple.

    Attributes:
        weight_ih: [G*H, I].
        weight_hh: [G*H, H].
        bias_ih: [G*H], or None.
        bias_hh: [G*H], or None.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: LayerWeights,
    masks: LayerMasks | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM layer in one direction. Arguments and results as `bayesrnn_cuda.functional.lstm`."""
    masks = masks or LayerMasks()
    x, resets = _inside(x, lengths), entering(resets, lengths, reverse)
    h, c = h0, c0
    y = [x.new_zeros(h0.shape)] * x.shape[0]
    for t in _steps(x.shape[0], reverse):
        h, c = _entered(t, resets, h), _entered(t, resets, c)
        a = _linear(x[t], weights.weight_ih, weights.bias_ih, masks.keep_x, masks.scale_x, 4)
        r = _linear(h, weights.weight_hh, weights.bias_hh, masks.keep_h, masks.scale_h, 4)
        i = torch.sigmoid(a[0] + r[0])
        f = torch.sigmoid(a[1] + r[1])
        g = torch.tanh(a[2] + r[2])
        o = torch.sigmoid(a[3] + r[3])
        c_t = f * c + i * g
        h_t = o * torch.tanh(c_t)
        h, c, y[t] = _advance(t, lengths, (h_t, h), (c_t, c))
    return torch.stack(y), h, c


def gru(
    x: Tensor,
    h0: Tensor,
    weights: LayerWeights,
    masks: LayerMasks | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    reset_after: bool = True,
) -> tuple[Tensor, Tensor]:
    """One GRU layer in one direction. Arguments and results as `bayesrnn_cuda.functional.gru`."""
    masks = masks or LayerMasks()
    x, resets = _inside(x, lengths), entering(resets, lengths, reverse)
    h = h0
    y = [x.new_zeros(h0.shape)] * x.shape[0]
    for t in _steps(x.shape[0], reverse):
        h = _entered(t, resets, h)
        a = _linear(x[t], weights.weight_ih, weights.bias_ih, masks.keep_x, masks.scale_x, 3)
        q = _masked(h, masks.keep_h, masks.scale_h, 3)
        u, b = _per_gate(weights.weight_hh, weights.bias_hh, 3)
        r = torch.sigmoid(a[0] + _affine(q[0], u[0], b[0]))
        z = torch.sigmoid(a[1] + _affine(q[1], u[1], b[1]))
        if reset_after:
            n = torch.tanh(a[2] + r * _affine(q[2], u[2], b[2]))
        else:
            n = torch.tanh(a[2] + _affine(r * q[2], u[2], b[2]))
        h_t = (1 - z) * n + z * h
        h, _, y[t] = _advance(t, lengths, (h_t, h), (h_t, h))
    return torch.stack(y), h


def rnn(
    x: Tensor,
    h0: Tensor,
    weights: LayerWeights,
    masks: LayerMasks | None = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """One RNN layer in one direction. Arguments and results as `bayesrnn_cuda.functional.rnn`."""
    masks = masks or LayerMasks()
    x, resets = _inside(x, lengths), entering(resets, lengths, reverse)
    h = h0
    y = [x.new_zeros(h0.shape)] * x.shape[0]
    for t in _steps(x.shape[0], reverse):
        h = _entered(t, resets, h)
        (a,) = _linear(x[t], weights.weight_ih, weights.bias_ih, masks.keep_x, masks.scale_x, 1)
        (r,) = _linear(h, weights.weight_hh, weights.bias_hh, masks.keep_h, masks.scale_h, 1)
        h_t = torch.tanh(a + r)
        h, _, y[t] = _advance(t, lengths, (h_t, h), (h_t, h))
    return torch.stack(y), h


def _steps(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def entering(resets: Tensor | None, lengths: Tensor | None, reverse: bool) -> Tensor | None:
    """Where zero enters a step in the direction of the run, as the compiled ops take it: [T, B].

    `resets` [T, B] says where segments begin. A reversed run enters a segment at its last step,
    the one before the next segment's first; what enters the last segment is h_0, as it enters the
    first one of a run that is not reversed. Past its length no sequence has segments.
    """
    if resets is None or (lengths is None and not reverse):
        return resets
    steps = torch.arange(resets.shape[0], device=resets.device)
    if reverse:  # roll, whose result has the shape of resets whatever that is, for torch.export
        resets, steps = resets.roll(-1, 0), steps + 1
    inside = steps.unsqueeze(1) < (resets.shape[0] if lengths is None else lengths)
    return resets & inside


def _entered(t: int, resets: Tensor | None, state: Tensor) -> Tensor:
    """What enters step t: the state, or zero. The select keeps a NaN of the segment before out."""
    if resets is None:
        return state
    return torch.where(resets[t].unsqueeze(1), state.new_zeros(()), state)


def _inside(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x [T, B, I] with zeros past each length: a NaN there must not reach a gradient as 0 * NaN."""
    if lengths is None:
        return x
    steps = torch.arange(x.shape[0], device=x.device)
    inside = steps.unsqueeze(1) < lengths
    return torch.where(inside.unsqueeze(2), x, x.new_zeros(()))


def _masked(v: Tensor, keep: Tensor | None, scale: float, gates: int) -> list[Tensor]:
    """What each gate sees of v [B, K]: m_k s v. The select keeps a dropped NaN out."""
    if keep is None:
        return [v * scale if scale != 1.0 else v] * gates
    zero = v.new_zeros(())
    return [torch.where(m, v * scale, zero) for m in keep.expand(gates, -1, -1)]


def _per_gate(weight: Tensor, bias: Tensor | None, gates: int) -> tuple[list, list]:
    """weight [G*H, K] and bias [G*H] cut into G blocks."""
    return list(weight.chunk(gates)), [None] * gates if bias is None else list(bias.chunk(gates))


def _affine(v: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(v, weight, bias)


def _linear(
    v: Tensor, weight: Tensor, bias: Tensor | None, keep: Tensor | None, scale: float, gates: int
) -> list[Tensor]:
    """One [B, H] per gate k: weight_k (m_k s v) + bias_k."""
    w, b = _per_gate(weight, bias, gates)
    q = _masked(v, keep, scale, gates)
    return [_affine(q[k], w[k], b[k]) for k in range(gates)]


def _advance(
    t: int, lengths: Tensor | None, h: tuple[Tensor, Tensor], c: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """(h, c, y_t) after step t; h and c hold (new, old). Past its length a sequence keeps its
    state and writes zeros."""
    if lengths is None:
        return h[0], c[0], h[0]
    inside = (t < lengths).unsqueeze(1)
    h_t = torch.where(inside, *h)
    return h_t, torch.where(inside, *c), torch.where(inside, h[0], h[0].new_zeros(()))
