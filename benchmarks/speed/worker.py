"""One side of a comparison: `python -m benchmarks.speed.worker` reads requests, a line each, and answers each with a line of JSON.

It runs with this benchmark's code and the `titans_seq` that comes first on its path.
"""

import json
import statistics
import sys
from typing import Any

import torch

import titans_seq
from benchmarks.speed.cells import Cell, Limits
from benchmarks.speed.measure import bound_memory, prepare
from benchmarks.speed.parity import check_parity, forms_to_check

SHORTEST = 0.1  # seconds of one timing: what takes less is run several times, and the median counts


def answer(request: dict[str, Any], state: dict[str, Any]) -> Any:
    """`cell` prepares one and makes the warm-up run, `parity` checks its form, `run` times it."""
    if request["do"] == "run":
        return statistics.median(state["run"]()[0] for _ in range(state["repeat"]))
    if request["limits"]["device"] == "cpu":
        bound_memory()
    cell, limits = Cell(**request["cell"]), Limits(**request["limits"])
    torch.set_num_threads(limits.threads)
    if request["do"] == "parity":
        return {"from": titans_seq.__file__, "checks": [check_parity(form, limits.device).to_dict() for form in forms_to_check([cell])]}
    state["run"], _ = prepare(cell, limits.device)
    warm_up = state["run"]()[0]
    state["repeat"] = max(1, round(SHORTEST / warm_up))
    return warm_up


def main() -> None:
    state: dict[str, Any] = {}
    for line in sys.stdin:
        try:
            reply = {"answer": answer(json.loads(line), state)}
        except Exception as error:  # noqa: BLE001 - a revision that cannot run this is a result
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
