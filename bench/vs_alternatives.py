"""One training job from end to end with what else a user could take.

python -m bench.vs_alternatives [--words 10000] [--compile] [--out FILE]

A language model of two layers of 200 units on windows of 35 steps of 20 sequences: embedding,
layers, softmax over all words, gradients clipped at 5, SGD. Nothing is timed before the losses of
three updates without dropout have been compared. Time is that of an update with held masks of p =
0.25, but for torch's own layer, which has none.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import bayesrnn_cuda as brnn

from . import harness, options

Arrays = dict[str, np.ndarray]  # names as of nn.LSTM, and "embedding", "decoder"
Update = Callable[[np.ndarray, np.ndarray], float]  # tokens and targets [T, B] -> the loss
LAYERS, CLIP, RATE = 2, 5.0, 1.0


@dataclass(frozen=True)
class Job:
    """The sizes of the job; p is of dropping, on inputs and recurrence of each layer."""

    words: int
    steps: int = 35
    batch: int = 20
    hidden: int = 200
    p: float = 0.25

    def arrays(self) -> Arrays:
        """Initial parameters, the same for all."""
        draw = np.random.default_rng(1)
        sizes = {"embedding": (self.words, self.hidden), "decoder": (self.words, self.hidden)}
        for layer in range(LAYERS):
            for name in ("weight_ih", "weight_hh"):
                sizes[f"{name}_l{layer}"] = (4 * self.hidden, self.hidden)
        most = 2 / self.hidden**0.5  # so that states, and what is wrong with them, show in the loss
        return {name: draw.uniform(-most, most, size).astype("f") for name, size in sizes.items()}

    def batches(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tokens and the words after them."""
        draw = np.random.default_rng(2)
        for _ in range(count):
            tokens = draw.integers(self.words, size=(self.steps + 1, self.batch), dtype=np.int32)
            yield tokens[:-1], tokens[1:]


class CellLoop(nn.Module):
    """LSTMCells in a loop, one mask a sequence for inputs and for the recurrence of each layer."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTMCell(job.hidden, job.hidden) for _ in range(LAYERS))
        self.p = job.p

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        steps = x.unbind(0)
        for cell in self.cells:
            keep_x, keep_h = (
                torch.empty_like(steps[0]).bernoulli_(1 - self.p).div_(1 - self.p) for _ in range(2)
            )
            h = c = torch.zeros_like(steps[0])
            outputs = []
            for step in steps:
                h, c = cell(step * keep_x, (h * keep_h, c))
                outputs.append(h)
            steps = outputs
        return torch.stack(list(steps)), None

    def load(self, arrays: dict[str, Tensor]) -> None:
        for name, value in arrays.items():
            getattr(self.cells[int(name[-1])], name[:-3]).copy_(value)


class TorchModel(nn.Module):
    """Embedding, `recurrent`, decoder; gives the loss of a window."""

    def __init__(self, job: Job, arrays: Arrays, recurrent: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(job.words, job.hidden)
        self.recurrent, self.decoder = recurrent, nn.Linear(job.hidden, job.words)
        weights = {name: torch.from_numpy(value) for name, value in arrays.items()}
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.embedding.weight.copy_(weights.pop("embedding"))
            self.decoder.weight.copy_(weights.pop("decoder"))
            if isinstance(recurrent, CellLoop):
                recurrent.load(weights)
            else:
                recurrent.load_state_dict(weights, strict=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        return nn.functional.cross_entropy(
            self.decoder(states).flatten(0, 1), targets.flatten().long()
        )


def torch_update(model: TorchModel, compiled: bool = False) -> Update:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    if compiled:
        model.recurrent = torch.compile(model.recurrent)

    def update(tokens: np.ndarray, targets: np.ndarray) -> float:
        loss = model(torch.from_numpy(tokens), torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return update


def jax_update(job: Job, arrays: Arrays) -> Update:
    """A scan over the steps with held masks, all of the update in one jitted function."""
    import jax
    from jax import numpy as jnp

    parameters = {name: jnp.asarray(value) for name, value in arrays.items()}
    parameters["decoder_bias"] = jnp.zeros(job.words)
    for layer in range(LAYERS):
        parameters |= {
            f"{name}_l{layer}": jnp.zeros(4 * job.hidden) for name in ("bias_ih", "bias_hh")
        }

    def run_layer(parameters: Any, layer: int, x: Any, key: Any) -> Any:
        w, u, b_ih, b_hh = (
            parameters[f"{name}_l{layer}"]
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        shape = (2, job.batch, job.hidden)
        keep_x, keep_h = jax.random.bernoulli(key, 1 - job.p, shape) / (1 - job.p)
        a = (x * keep_x) @ w.T + b_ih + b_hh

        def step(state: Any, a: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.split(a + (h * keep_h) @ u.T, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((job.batch, job.hidden))
        return jax.lax.scan(step, (zero, zero), a)[1]

    def loss_of(parameters: Any, tokens: Any, targets: Any, key: Any) -> Any:
        x = parameters["embedding"][tokens]
        for layer, part in enumerate(jax.random.split(key, LAYERS)):
            x = run_layer(parameters, layer, x, part)
        log_p = jax.nn.log_softmax(x @ parameters["decoder"].T + parameters["decoder_bias"])
        return -jnp.take_along_axis(log_p, targets[..., None], axis=-1).mean()

    def step(parameters: Any, tokens: Any, targets: Any, key: Any) -> Any:
        key, part = jax.random.split(key)
        loss, gradients = jax.value_and_grad(loss_of)(parameters, tokens, targets, part)
        norm = jnp.sqrt(sum((g * g).sum() for g in gradients.values()))
        rate = RATE * jnp.minimum(1, CLIP / (norm + 1e-6))
        return {name: w - rate * gradients[name] for name, w in parameters.items()}, key, loss

    jitted, state = jax.jit(step, donate_argnums=0), [parameters, jax.random.key(1)]

    def update(tokens: np.ndarray, targets: np.ndarray) -> float:
        *state[:], loss = jitted(state[0], tokens, targets, state[1])
        return float(loss)

    return update


def keras_update(job: Job, arrays: Arrays) -> Update:
    """keras.layers.LSTM on JAX: one bias where the others have two, masks that all gates share."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    layers = [
        keras.layers.LSTM(job.hidden, return_sequences=True, dropout=job.p, recurrent_dropout=job.p)
        for _ in range(LAYERS)
    ]
    model = keras.Sequential(
        [keras.layers.Embedding(job.words, job.hidden), *layers, keras.layers.Dense(job.words)]
    )
    model.build((job.batch, job.steps))
    model.layers[0].set_weights([arrays["embedding"]])
    model.layers[-1].set_weights([arrays["decoder"].T, np.zeros(job.words)])
    for index, layer in enumerate(layers):
        kernels = [arrays[f"weight_{part}_l{index}"].T for part in ("ih", "hh")]
        layer.set_weights([*kernels, np.zeros(4 * job.hidden)])
    model.compile(
        optimizer=keras.optimizers.SGD(RATE, global_clipnorm=CLIP),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return lambda tokens, targets: float(model.train_on_batch(tokens.T, targets.T))


def alternatives(compiled: bool) -> dict[str, Callable[[Job, Arrays], Update]]:
    """Name -> what makes an update of it."""

    def torchs(make: Callable[[Job], nn.Module], **settings: Any) -> Callable[..., Update]:
        return lambda job, arrays: torch_update(TorchModel(job, arrays, make(job)), **settings)

    def ours(tied: bool) -> Callable[[Job], nn.Module]:
        return lambda job: brnn.BayesianLSTM(
            job.hidden, job.hidden, LAYERS, input_dropout=job.p, recurrent_dropout=job.p,
            tie_gates=tied,
        )  # fmt: skip

    return {
        "torch.nn.LSTM, no dropout": torchs(lambda job: nn.LSTM(job.hidden, job.hidden, LAYERS)),
        "bayesrnn untied": torchs(ours(False)),
        "bayesrnn tied": torchs(ours(True)),
        "loop over LSTMCell": torchs(CellLoop),
        **({"that loop, compiled": torchs(CellLoop, compiled=True)} if compiled else {}),
        "JAX, scan": jax_update,
        "Keras on JAX": keras_update,
    }


@dataclass
class Result:
    """Of one alternative: seconds of its first update, which compiles; milliseconds of the others
    (median, quartile range); their ratio to the first alternative."""

    name: str
    first_s: float | None = None
    update_ms: float | None = None
    spread_ms: float | None = None
    ratio: float | None = None
    skipped: str | None = None


def measure(job: Job, makers: dict[str, Any], runs: int) -> list[Result]:
    """Compares the losses, then times the updates in turn, `runs` rounds of at least 0.2 s each."""
    results, updates, expected = [], {}, None
    for name, make in makers.items():
        try:
            losses = _losses(make(Job(**{**asdict(job), "p": 0.0}), job.arrays()), job)
        except ImportError as error:
            results.append(Result(name, skipped=f"not measured, {error}"))
            continue
        expected = expected or losses
        # Keras has one bias where the others have two, which learn twice as fast together.
        limit = 1e-2 if "Keras" in name else 1e-4
        for at, (got, want) in enumerate(zip(losses, expected, strict=True)):
            if not abs(got - want) <= (limit if at else 1e-5) * want:
                raise AssertionError(f"{job}: {name} has the losses {losses}, not {expected}")
        update = make(job, job.arrays())
        began = time.perf_counter()
        _run(update, job, 1)
        results.append(Result(name, first_s=time.perf_counter() - began))
        updates[name] = update
    counts = {name: max(1, int(0.2 / _run(update, job, 1))) for name, update in updates.items()}
    times = {name: [] for name in updates}
    for _ in range(runs):
        for name, update in updates.items():
            times[name].append(1e3 * _run(update, job, counts[name]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for result in results:
        if result.skipped is None:
            result.update_ms = medians[result.name]
            result.ratio = result.update_ms / next(iter(medians.values()))
            if runs > 1:
                quartiles = statistics.quantiles(times[result.name], n=4)
                result.spread_ms = quartiles[2] - quartiles[0]
    return results


def _losses(update: Update, job: Job) -> list[float]:
    return [update(*batch) for batch in job.batches(3)]


def _run(update: Update, job: Job, count: int) -> float:
    """Seconds of an update."""
    batches = list(job.batches(count))
    began = time.perf_counter()
    for batch in batches:
        update(*batch)
    return (time.perf_counter() - began) / count


def main() -> None:
    parser = options.OneLineParser(description=__doc__)
    parser.add_argument("--words", action="append", type=options.count, help="of the vocabulary")
    for name in ("steps", "batch", "hidden"):
        parser.add_argument(f"--{name}", type=options.count, default=getattr(Job, name))
    parser.add_argument("--compile", action="store_true", help="the loop under torch.compile too")
    parser.add_argument("--runs", type=options.count, default=9, help="rounds of the timing")
    parser.add_argument("--threads", type=options.count, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write JSON there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    records = []
    for words in arguments.words or (10_000, 50):
        job = Job(words, arguments.steps, arguments.batch, arguments.hidden)
        torch.compiler.reset()
        results = measure(job, alternatives(arguments.compile), arguments.runs)
        print(f"{LAYERS} x {job.hidden}, T={job.steps} B={job.batch}, {job.words:,} words")
        for row in results:
            line = row.skipped or (
                f"{row.update_ms:9.2f} ms an update {row.ratio:6.2f}   first {row.first_s:6.1f} s"
            )
            print(f"  {row.name:28}{line}", flush=True)
        records.append({**asdict(job), "rows": [asdict(row) for row in results]})
        if arguments.out:
            _save(arguments.out, records)  # after every job: what is there survives a stop
    if arguments.out:
        print(f"results: {arguments.out}")


def _save(path: Path, records: list[dict[str, Any]]) -> None:
    """JSON with machine and versions."""
    machine = harness.machine(torch.device("cpu"))
    for package in ("jax", "keras"):
        if package in sys.modules:
            machine[package] = sys.modules[package].__version__
    path.write_text(json.dumps({"machine": machine, "results": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
