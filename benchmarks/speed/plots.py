"""Pictures made from the results' JSON: speed and memory against length, decoding, and where the time goes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.speed.cells import BACKWARD, DECODE, FORWARD, Measurement, Result
from benchmarks.speed.report import Report, read_results

Value = Callable[[Measurement], float]
STYLES = ("-", "--", ":", "-.")
MARKERS = "osD^v<>PX*"


def draw(found: Report, output: Path) -> list[Path]:
    """The pictures beside `output` (a JSON), whichever the results allow."""
    results = [r for r in read_results(found) if r.measurement]
    passes = [r for r in results if r.cell.mode != DECODE]
    decoded = [r for r in results if r.cell.mode == DECODE]
    drawn = []
    if passes:
        for name, title, value in (
            ("tokens_per_second", "tokens per second", lambda m: m.tokens_per_second.median),
            ("memory", "growth of peak memory, MiB", lambda m: max(m.memory_mib, 0.1)),
        ):
            path = output.with_name(f"{output.stem}_{name}.png")
            _grid(passes, title, value, path, _caption(found))
            drawn.append(path)
    if decoded:
        path = output.with_name(f"{output.stem}_decode.png")
        _decode(decoded, path, _caption(found))
        drawn.append(path)
    if found.get("profile"):
        path = output.with_name(f"{output.stem}_profile.png")
        draw_profile(found["profile"], path)
        drawn.append(path)
    return drawn


def _caption(found: Report) -> str:
    where = found["gpu"] or f"{found['cpu']}, {found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    changes = "+changes" if found["changes"] else ""
    return f"{where}; torch {found['torch']}; revision {(found['revision'] or '?')[:10]}{changes}; {found['date'][:10]}"


def _grid(results: Sequence[Result], ylabel: str, value: Value, path: Path, caption: str) -> None:
    """Columns forward and forward + backward; rows one layer or operator, and whole models."""
    rows = [(name, [r for r in results if bool(r.cell.layers) == models]) for name, models in (("one layer", False), ("models", True))]
    rows = [(name, found) for name, found in rows if found]
    fig, axes = plt.subplots(len(rows), 2, figsize=(15, 5.6 * len(rows)), squeeze=False, sharey="row", layout="constrained")
    for (name, found), line in zip(rows, axes, strict=True):
        for mode, ax in zip((FORWARD, BACKWARD), line, strict=True):
            _lines(ax, [r for r in found if r.cell.mode == mode], _labels(found), value)
            ax.set(title=f"{name}, {mode}", xlabel="T, tokens", ylabel=ylabel if mode == FORWARD else "")
        _legend(line[-1], line)
    fig.suptitle(caption, fontsize=9)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def _decode(results: Sequence[Result], path: Path, caption: str) -> None:
    fig, (speed, state) = plt.subplots(1, 2, figsize=(15, 6), layout="constrained")
    labels = _labels(results)
    _lines(speed, results, labels, lambda m: 1e3 / m.tokens_per_second.median)
    low, high = speed.get_ylim()
    speed.set_ylim(low / 3, high * 3)  # what is flat shall look flat
    speed.set(title="cost of the next token", xlabel="tokens read before", ylabel="milliseconds a token")
    _lines(state, results, labels, lambda m: m.state_mib or 1e-3)
    state.set(title="carried from token to token", xlabel="tokens read before", ylabel="MiB")
    _legend(state, (speed, state))
    fig.suptitle(caption, fontsize=9)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def _labels(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(r.cell.label for r in results))


def _lines(ax: Axes, results: Sequence[Result], labels: Sequence[str], value: Value) -> None:
    """One line a subject; a subject has the same look in every panel of its row."""
    colours = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for i, label in enumerate(labels):
        points = sorted((r.cell.tokens, value(r.measurement)) for r in results if r.cell.label == label and r.measurement)
        if points:
            look: dict[str, Any] = {
                "color": colours[i % 10],
                "linestyle": STYLES[i // 10 % 4],
                "marker": MARKERS[(i + i // 10) % 10],
                "markersize": 5,
            }
            ax.plot(*zip(*points, strict=True), label=label, **look)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ticks = sorted({r.cell.tokens for r in results})
    ax.set_xticks(ticks, [f"{T:,}" for T in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(alpha=0.3)


def _legend(beside: Axes, axes: Sequence[Axes]) -> None:
    """All labels of a row, once, to its right."""
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    beside.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)


def draw_profile(profile: Report, path: Path) -> None:
    """Where the time of each profiled run goes: one panel a run, one bar a group."""
    runs = profile["runs"]
    fig, axes = plt.subplots(len(runs), 1, figsize=(11, 1.2 + 2.6 * len(runs)), squeeze=False, layout="constrained")
    for run, ax in zip(runs, axes[:, 0], strict=True):
        groups = sorted(run["groups"].items(), key=lambda item: item[1])
        shares = [100 * seconds / run["profiled_seconds"] for _, seconds in groups]
        bars = ax.barh([name for name, _ in groups], shares, color="tab:blue")
        ax.bar_label(bars, [f" {1e3 * s:.1f} ms, {p:.0f} %" for (_, s), p in zip(groups, shares, strict=True)], fontsize=9)
        ax.set_xlim(0, 1.25 * max(shares))
        ax.set_xlabel("% of the profiled run")
        ax.set_title(
            f"{run['label']}, T {run['tokens']:,}, {run['mode']}: {1e3 * run['profiled_seconds']:.0f} ms profiled, "
            f"{1e3 * run['seconds']:.0f} ms without the profiler",
            fontsize=10,
            loc="left",
        )
    fig.savefig(path, dpi=110)
    plt.close(fig)
