"""The speed benchmark runs, says what it measured and what not, and gives no speed to a form that is wrong."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from benchmarks.machine import ROOT, git, installed
from benchmarks.reporting import Section
from benchmarks.speed import __main__ as command
from benchmarks.speed import compare, measure, operations, parity, peers, plan, plots, profiling, report, subjects
from benchmarks.speed.cells import BACKWARD, DECODE, DECODE_WINDOW, DEPTH, FORWARD, WIDTH, Cell, Floor, Limits, Measurement, Result, Spread
from titans_seq.memory import chunks, chunkwise

LIMITS = Limits(1, 60.0)
NAMES = ("memory layer", "linear attention layer", "model attention")
FLAT = Spread.of([1.0, 2.0, 4.0])


def measurement(**values: Any) -> Measurement:
    return Measurement(
        **{
            "runs": 5,
            "warm_up_seconds": 1.0,
            "setup_seconds": 0.5,
            "seconds": FLAT,
            "tokens_per_second": FLAT,
            "finite": True,
            "cpu_per_wall": 1.0,
        }
        | values
    )


def measured(cell: Cell, seconds: float = 1.0, mib: float = 10.0) -> Result:
    spread = Spread.of([seconds])
    return Result(cell, measurement(seconds=spread, tokens_per_second=Spread.of([cell.tokens / seconds]), memory_mib=mib))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """One run of the command over every kind of subject, its JSON and what it printed."""
    output = tmp_path_factory.mktemp("speed") / "new" / "speed.json"
    chosen = "chunkwise,memory layer,linear attention layer,model attention"
    arguments = ["--quick", "--threads", "1", "--subjects", chosen, "--peers", "", "--output", str(output)]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(output.read_text()), run.stdout, output


def test_quick_run_writes_what_it_measured(quick: tuple[dict[str, Any], str, Path]) -> None:
    found, printed, output = quick
    assert "chunkwise" in printed
    assert found["command"].startswith("python -m benchmarks.speed --quick")
    assert found["torch"] == torch.__version__
    assert found["threads"] == 1
    known = {
        "date",
        "revision",
        "changes",
        "source",
        "python",
        "cpu",
        "cpus",
        "load",
        "load_at_end",
        "elapsed_seconds",
        "peers",
        "not_installed",
    }
    assert known <= set(found)
    checks = found["parity"]["checks"]
    assert {check["subject"] for check in checks} == {"chunkwise", *NAMES}
    assert all(check["passed"] and 0 <= check["largest_error"] <= 1e-9 and check["tensors"] > 4 for check in checks)

    modes = {(cell["subject"], cell["mode"]) for cell in found["cells"]}
    assert {(s, m) for s in NAMES for m in (FORWARD, BACKWARD, DECODE)} <= modes
    for cell in found["cells"]:
        assert cell["runs"] == 5
        assert cell["finite"]
        assert cell["memory_mib"] >= 0
        assert cell["cpu_per_wall"] > 0
        seconds = cell["seconds"]
        order = ("min", "lower_quartile", "median", "upper_quartile", "max")
        assert seconds["min"] > 0
        assert [seconds[name] for name in order] == sorted(seconds.values())
        tokens = DECODE_WINDOW if cell["mode"] == DECODE else cell["tokens"]
        assert cell["tokens_per_second"]["median"] == pytest.approx(tokens / seconds["median"])
        assert (cell["state_mib"] is None) == (cell["mode"] != DECODE)
        if cell["subject"] == "chunkwise":
            floor = cell["floor"]
            assert floor["reached"] == pytest.approx(floor["floor_seconds"] / seconds["median"])
            assert floor["gflop"] == pytest.approx(sum(product["gflop"] for product in floor["products"]))
        else:
            assert cell["floor"] is None
    for picture in ("tokens_per_second", "memory", "decode"):
        assert output.with_name(f"speed_{picture}.png").stat().st_size > 10_000


def test_results_are_the_same_after_json(quick: tuple[dict[str, Any], str, Path]) -> None:
    for cell in quick[0]["cells"]:
        assert Result.from_dict(cell).to_dict() == cell
    skipped = Result(Cell("recurrent", FORWARD, 8, expansion=1, chunk_size=4), skipped="why")
    assert Result.from_dict(json.loads(json.dumps(skipped.to_dict()))) == skipped


def test_resume_keeps_what_the_same_source_measured(quick: tuple[dict[str, Any], str, Path], tmp_path: Path) -> None:
    found, _, output = quick
    assert set(report.kept(output, found)) == {result.cell for result in report.read_results(found)}
    assert report.kept(output, {**found, "source": "another"}) == {}
    assert report.kept(tmp_path / "none.json", found) == {}


def test_known_cells_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [Cell("reference", FORWARD, T, expansion=1, chunk_size=4) for T in (8, 16)]
    known = measured(cells[0])
    monkeypatch.setattr(command, "measure", lambda cell, limits: measured(cell, 7.0))
    saved: list[int] = []
    _, results = command.run_cells(cells, LIMITS, lambda text: None, {cells[0]: known}, lambda p, r: saved.append(len(r)))
    assert results == [known, measured(cells[1], 7.0)]
    assert saved == [1, 2]


@pytest.mark.parametrize("broken", ["chunkwise", "memory layer", "model mag"])
def test_a_form_that_is_wrong_has_no_speed(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(parity, "TOKENS", 6)
    module: Any = subjects if broken == "chunkwise" else sys.modules["titans_seq.memory.layer"]
    right = module.neural_memory

    def wrong(
        q: Any, k: Any, v: Any, gates: Any, weights: Any, state: Any = None, chunk_size: int = 16, impl: str = "auto", **options: Any
    ) -> Any:
        y, state = right(q, k, v, gates, weights, state, chunk_size, impl, **options)
        return (y + 1e-7 * y.square() if impl in ("chunkwise", "auto") else y), state

    monkeypatch.setattr(module, "neural_memory", wrong)
    timed = []
    monkeypatch.setattr(command, "measure", lambda cell, limits: timed.append(cell.subject) or measured(cell))
    sizes = {"recurrent": (1, 4, None), "attention layer": (None, None, None), broken: (1, 4, 1 if broken == "model mag" else None)}
    cells = [Cell(s, mode, 32, 128, E, C, layers) for s, (E, C, layers) in sizes.items() for mode in (FORWARD, BACKWARD)]
    parities, results = command.run_cells(cells, LIMITS, lambda text: None)

    assert {check.subject: check.passed for check in parities} == {s: s != broken for s in sizes}
    assert set(timed) == set(sizes) - {broken}
    reasons = [result.skipped for result in results if result.cell.subject == broken]
    assert len(reasons) == 2
    assert all(reason and reason.startswith("refused: differs from the oracle by ") for reason in reasons)


def test_a_stream_that_differs_from_one_pass_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    form = parity.forms_to_check([Cell("linear attention layer", DECODE, 1)])[0]
    assert parity.check_parity(replace(form, tokens=70)).passed  # more than a chunk
    feed = subjects.Stream.feed

    def forgets(self: subjects.Stream, x: torch.Tensor) -> torch.Tensor:
        self.state = None
        return feed(self, x)

    monkeypatch.setattr(subjects.Stream, "feed", forgets)
    assert not parity.check_parity(replace(form, tokens=70)).passed


def test_a_form_that_is_not_finite_is_refused() -> None:
    assert not parity.Parity("chunkwise", 1, 16, 3, largest_error=None).passed


def test_what_is_not_measured_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    parities = [parity.Parity("recurrent", 1, 16, 3, largest_error=0.0)]

    def reason(subject: str, mode: str, tokens: int, chunk_size: int = 16) -> str:
        cell = Cell(subject, mode, tokens, expansion=1, chunk_size=chunk_size)
        return plan.reason_to_skip(cell, 16, parities, [], LIMITS) or ""

    assert reason("recurrent", FORWARD, 16384) == ""
    assert "backward keeps the weights" in reason("recurrent", BACKWARD, 4096)
    assert "oracle" in reason("reference", FORWARD, 4096)
    assert "does not change the work" in reason("recurrent", FORWARD, 1024, chunk_size=64)
    assert reason("chunkwise", FORWARD, 1024) == "refused: no parity check"
    monkeypatch.setattr(plan, "installed", lambda package: None)
    assert reason("titans-pytorch coarse", FORWARD, 1024) == "titans-pytorch is not installed"


def test_what_would_not_fit_is_not_tried() -> None:
    short, long = (Cell("attention layer", BACKWARD, T) for T in (1024, 4096))

    def reason(seconds: float, mib: float) -> str:
        return plan.reason_of_cost(long, [measured(short, seconds, mib)], Limits(1, 10.0), free_mib=1000.0) or ""

    assert reason(0.5, 100.0) == ""
    assert reason(1.0, 100.0) == "6 runs would take about 24 s, more than twice the budget of 10 s"
    assert reason(0.5, 300.0).startswith("would need about 1 GiB")
    longest = replace(long, tokens=131_072)  # also timed beside short ones
    expected = "7 runs would take about 218 s, more than twice the budget of 10 s"
    assert plan.reason_of_cost(longest, [measured(long, 1.0, 1.0)], Limits(1, 10.0), free_mib=1000.0) == expected
    with pytest.raises(measure.BeyondBudgetError, match=expected):
        measure.refuse_what_cannot_fit(longest, 32.0, Limits(1, 10.0))
    failed = Result(short, skipped="no result after 20 s")
    assert plan.reason_of_cost(long, [failed], LIMITS, 1000.0) == "not tried: already 1,024 tokens could not be measured"


def test_absent_peers_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "version", lambda package: (_ for _ in ()).throw(machine.PackageNotFoundError(package)))
    cells = plan.select(plan.plan(plan.QUICK, peers.chosen(["titans-pytorch"])), ["peers"], None, None)
    assert len(cells) == 6
    _, results = command.run_cells(cells, LIMITS, lambda text: None)
    assert {result.skipped for result in results} == {"titans-pytorch is not installed"}
    found = report.report(report.environment(LIMITS), [], results, 0.0)
    assert set(found["not_installed"]) == set(peers.packages())
    with pytest.raises(ValueError, match="unknown peers: titans-pytroch; known are"):
        peers.chosen(["titans-pytroch"])


@pytest.mark.parametrize("name", [name for name, peer in peers.PEERS.items() if not peer.needs_gpu])
def test_peers_run(name: str) -> None:
    if installed(peers.PEERS[name].package) is None:
        pytest.skip(f"{peers.PEERS[name].package} is not installed: pip install -e '.[bench]'")
    call = subjects.make_call(Cell(name, BACKWARD, 64, expansion=4))
    _, finite = measure.run_once(call, backward=True)
    assert finite


def test_names_that_are_not_known_are_refused() -> None:
    cells = plan.plan(plan.QUICK)
    assert {c.subject for c in plan.select(cells, ["layer"], None, [FORWARD])} == set(subjects.LAYERS)
    with pytest.raises(ValueError, match="unknown: chunkwize"):
        plan.select(cells, ["chunkwize"], None, None)
    with pytest.raises(ValueError, match="unknown: backward"):
        plan.select(cells, None, None, ["backward"])


def test_a_cell_beyond_twice_its_budget_is_ended() -> None:
    result = measure.measure(Cell("reference", BACKWARD, 1024, expansion=4, chunk_size=16), Limits(1, 0.05))
    assert result.measurement is None
    assert result.skipped == "no result after 0.1 s, twice the budget of a cell"


def test_a_long_input_is_timed_beside_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of the long one against a token of the short one; of layers alone, and not for decoding."""
    monkeypatch.setattr(measure, "SHORT", 8)
    monkeypatch.setattr(measure, "LONG", 64)
    cell = Cell("memory layer", BACKWARD, 64, expansion=1, chunk_size=16)
    result = Result(cell, measure.measure_here(cell, LIMITS))
    assert result.measurement is not None
    assert result.measurement.growth is not None
    assert 0.01 < result.measurement.growth.median < 3  # eight times the tokens at the same cost of calls
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    for other in (replace(cell, mode=DECODE), replace(cell, subject="chunkwise"), replace(cell, tokens=63)):
        assert measure.shorter_runs(other, "cpu") is None


def test_a_cell_whose_runs_would_not_fit_is_left() -> None:
    measure.refuse_what_cannot_fit(Cell("chunkwise", FORWARD, 8), 3.0, Limits(1, 10.0))
    measure.refuse_what_cannot_fit(Cell("titans-pytorch coarse", FORWARD, 8), 9.0, Limits(1, 10.0))
    with pytest.raises(measure.BeyondBudgetError, match="6 runs would take about 24 s, more than twice the budget of 10 s"):
        measure.refuse_what_cannot_fit(Cell("chunkwise", FORWARD, 8), 4.0, Limits(1, 10.0))


def test_a_subject_that_raises_is_a_reason() -> None:
    result = measure.measure(Cell("memory layer", FORWARD, 8, expansion=0, chunk_size=4), LIMITS)
    assert result.skipped is not None
    assert result.skipped.startswith("failed: ConfigError: MemoryConfig.expansion")


# Counted operations


@pytest.mark.parametrize("expansion", [1, 4])
@pytest.mark.parametrize("chunk_size", [16, 64])
def test_counted_operations_are_those_of_the_matrix_products(monkeypatch: pytest.MonkeyPatch, chunk_size: int, expansion: int) -> None:
    """All products that torch counts in a forward, and in the backward that follows it, looking into the two operators."""
    tokens = 2 * chunk_size
    cell = Cell("chunkwise", FORWARD, tokens, expansion=expansion, chunk_size=chunk_size)
    called: list[tuple[Any, ...]] = []
    monkeypatch.setattr(chunkwise, "memory_chunks", lambda *arguments: called.append(arguments) or chunkwise._forward(*arguments))
    in_place = {torch.ops.aten.baddbmm_: lambda shape, a, b, *_, **__: 2 * math.prod(a) * b[-1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, torch.no_grad():
        subjects.make_call(cell).function()
    forward = operations.forward_operations(expansion, chunk_size)
    assert counter.get_total_flops() == tokens * cell.heads * forward
    z, *rest = chunkwise._forward(*called[0][:-1], True)
    state, kept = rest[: 2 * DEPTH], rest[2 * DEPTH :]
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter, torch.no_grad():
        chunkwise._backward(*called[0][:-1], kept, [torch.ones_like(x) for x in (z, *state)])
    assert counter.get_total_flops() == tokens * cell.heads * operations.backward_operations(expansion, chunk_size)


def test_segments_are_those_of_the_library() -> None:
    assert operations.SEGMENT_CHUNKS == chunks.SEGMENT_CHUNKS


@pytest.mark.parametrize("segment", [1, 5])
@pytest.mark.parametrize("expansion", [1, 4])
def test_products_add_up_to_the_counted_operations(segment: int, expansion: int) -> None:
    heads, C = 3, 16
    forward = operations.forward_operations(expansion, C)
    for backward, expected in ((False, forward), (True, forward + operations.backward_operations(expansion, C))):
        found = operations.products(heads, expansion, C, segment, backward=backward)
        assert sum(product.operations_a_chunk() for product in found) == pytest.approx(heads * C * expected)


def test_profile_accounts_for_the_whole_run(tmp_path: Path) -> None:
    found = profiling.profile_operator(LIMITS, tokens=32, sizes=[(1, 16)])
    assert [run["mode"] for run in found["runs"]] == [FORWARD, BACKWARD]
    for run in found["runs"]:
        assert sum(run["groups"].values()) == pytest.approx(run["profiled_seconds"], rel=0.05)
        assert {profiling.PRODUCTS, profiling.ACTIVATION, profiling.ELEMENTWISE, profiling.PYTHON} <= set(run["groups"])
    plots.draw_profile(json.loads(json.dumps(found)), tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 10_000


# Two revisions


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of three commits: titans_seq as it is, one that is slower, one that is wrong."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "titans_seq", folder / "titans_seq", ignore=shutil.ignore_patterns("__pycache__"))
    git("init", "-q", folder=folder)
    functional = folder / "titans_seq" / "memory" / "functional.py"
    source = functional.read_text()
    slower = source.replace("\n    _check(q,", "\n    import time\n\n    time.sleep(0.2)\n    _check(q,", 1)
    wrong = source.replace("return y.to(output_dtype), state", "return (y if impl == 'reference' else y + 1e-6).to(output_dtype), state", 1)
    for name, text in (("first", source), ("slower", slower), ("wrong", wrong)):
        assert name == "first" or text != source
        functional.write_text(text)
        git("add", ".", folder=folder)
        git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", name, "--allow-empty", folder=folder)
        git("tag", name, folder=folder)
    return folder


def test_two_revisions_are_compared(repository: Path) -> None:
    cell = Cell("chunkwise", FORWARD, 8, 64, 1, 4)
    (found,) = compare.compare("slower", "first", [cell], Limits(1, 2.0), rounds=1, repository=repository)
    assert found.ratio is not None
    assert found.ratio.median > 1.5
    assert 1 <= found.pairs <= 5
    assert git("worktree", "list", folder=repository).count("\n") == 0, "worktrees are taken away"


def test_a_revision_that_is_wrong_is_not_compared(repository: Path) -> None:
    with compare.source_tree(compare.WORKING_TREE, repository) as tree, compare.Side(tree, LIMITS) as side:
        with pytest.raises(RuntimeError, match="refused: differs from the oracle by"):
            side.check(Cell("chunkwise", FORWARD, 8, 64, 1, 4))
        with pytest.raises(RuntimeError, match="MemoryConfig"):
            side.ask("cell", Cell("memory layer", FORWARD, 8, 64, 0, 4))


# The README's table


def example() -> dict[str, Any]:
    floor = Floor(1.0, 1.0, 0.5, 0.5, [])
    results = [
        Result(Cell("chunkwise", FORWARD, 1024, expansion=4, chunk_size=16), measurement(memory_mib=12.0, floor=floor)),
        measured(Cell("memory layer", FORWARD, 1024, expansion=4, chunk_size=16), 0.1),
        measured(Cell("memory layer", BACKWARD, 1024, expansion=4, chunk_size=16), 0.5, 2048.0),
        Result(Cell("memory layer", BACKWARD, 4096, expansion=4, chunk_size=16), skipped="too long"),
        Result(Cell("memory layer", DECODE, 1024, expansion=4, chunk_size=16), measurement(memory_mib=0.0, state_mib=1.5)),
    ]
    return report.report(report.environment(LIMITS), [], results, 1.0)


def test_the_readme_has_layers_and_peers_and_the_page_has_all() -> None:
    tables = report.sections(json.loads(json.dumps(example())))
    for table in tables.values():
        assert "| memory layer, E 4, C 16 | 10,200 / 2,050 (10 MiB / 2.0 GiB) | - |" in table
        assert "| memory layer, E 4, C 16 | 2.0 (1.5 MiB) |" in table
    assert "| chunkwise, E 4, C 16 |" in tables[report.FULL]
    assert "| chunkwise, E 4, C 16 |" not in tables[report.README]


SHOWN = [(ROOT / "README.md", report.README), (ROOT / "docs" / "speed_benchmark.md", report.FULL)]


@pytest.mark.parametrize(("page", "section"), SHOWN, ids=["README", "page"])
def test_the_shipped_results_are_shown(page: Path, section: Section) -> None:
    shown = section.read(page.read_text())
    assert shown is not None, f"{page} has lost its markers"
    assert shown == report.sections(json.loads((ROOT / "benchmarks" / "results" / "speed_cpu.json").read_text()))[section]


def test_tables_are_put_there_by_their_command(tmp_path: Path) -> None:
    files = [tmp_path / page.name for page, _ in SHOWN]
    for file, (_, section) in zip(files, SHOWN, strict=True):
        file.write_text(f"before {section.begin}old{section.end} after")
    command.main(["--table", "--readme", *map(str, files)])
    for file, (page, section) in zip(files, SHOWN, strict=True):
        assert section.read(file.read_text()) == section.read(page.read_text())


GOALS = {
    "forward + backward over titans-pytorch with weights of every token": "{0:.0f} times as many tokens a second as titans-pytorch",
    "the operator's forward over the rate of torch.bmm": "{0:.0f} to {1:.0f} % of `torch.bmm`'s rate at E 4, {2:.0f} to {3:.0f} % at E 1",
    "the operator's forward + backward over forward": "takes {0:.1f} to {1:.1f} times as long as forward",
    "time a token at 131,072": "{0:.1f} to {1:.1f} times one of 4,096 forward, and {2:.1f} to {3:.1f} times forward + backward",
}


@pytest.mark.parametrize("goal", GOALS)
def test_readme_says_what_was_measured(goal: str) -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "speed_cpu.json").read_text())
    (reached,) = (entry["reached"] for entry in found["goals"] if entry["goal"].startswith(goal))
    parts = {
        "the operator's forward over": ("E 4", "E 1"),
        "time a token": ("forward, T", "forward + backward, T"),
    }
    groups = next((names for begin, names in parts.items() if goal.startswith(begin)), ("",))
    scale = 100 if "torch.bmm" in goal else 1
    bounds = [scale * bound(v for name, v in reached.items() if group in name) for group in groups for bound in (min, max)]
    assert GOALS[goal].format(*bounds) in " ".join((ROOT / "README.md").read_text().split())


def test_width_of_the_heads_divides_every_dim() -> None:
    assert all(cell.dim % WIDTH == 0 for cell in plan.plan(plan.Grid(), list(peers.PEERS)))
