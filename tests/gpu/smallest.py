"""Forward and backward of every engine at sizes that are quick under compute-sanitizer.

PYTHONPATH=tests:tests/gpu compute-sanitizer --tool memcheck python tests/gpu/smallest.py
"""

import itertools

import cases
import torch
from cases import Case
from gpu_layers import BFLOAT16, FLOAT32, FLOAT64, TF32, run, takers

# H: fills no tile, a block, a cluster, a grid, what grid_flags is compiled for.
SIZES = ((3, 9, 5, 7), (2, 9, 5, 40), (2, 9, 17, 128), (2, 9, 5, 200), (2, 9, 5, 530))


def main() -> None:
    for cell, (T, B, I, H) in itertools.product(cases.CELLS, SIZES):  # noqa: E741
        case = Case(cell, T=T, B=B, I=I, H=H, lengths=True)
        for precision in (BFLOAT16, TF32) if H > 7 else (BFLOAT16, TF32, FLOAT32, FLOAT64):
            for engine in takers(case, precision):
                results = run(case, precision, engine)
                assert all(t.isfinite().all() for t in results.values()), (case, engine)
                print(case, precision, engine, flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
