"""Progress bars: on a terminal, nowhere else, and in a real notebook's kernel."""

import warnings
from io import StringIO
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console

from tests.limits import HANG
from titans_seq.progress import NotebookProgress, make_bar, progress
from titans_seq.quiet import quiet_import


def test_on_a_terminal() -> None:
    screen = StringIO()
    with make_bar(console=Console(file=screen, force_terminal=True, width=80), transient=False) as bar:
        bar.advance(bar.add_task("reading", total=4), 4)
    assert "reading" in screen.getvalue()
    assert "100%" in screen.getvalue()


def test_nothing_is_left_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 4) as advance:
        advance(4)
    with progress("reading", 4, quiet=True) as advance:
        advance(4)
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


def run(tmp_path: Path, *cells: str) -> list[list[nbformat.NotebookNode]]:
    """The outputs of each cell, run in a kernel."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=HANG, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    return [cell.outputs for cell in notebook.cells]


def test_in_a_notebook_a_bar_is_one_line_that_is_replaced(tmp_path: Path) -> None:
    """One output a bar, which holds how it ended; what is printed on the way is beside it; a disabled bar and a failed one."""
    ended, quiet, failed, tracked = run(
        tmp_path,
        "from titans_seq.progress import make_bar, progress\n"
        "with progress('reading', 40) as advance:\n    for _ in range(40):\n        advance(1)\n    print('beside')",
        "with progress('reading', 40, quiet=True) as advance:\n    advance(40)",
        "try:\n    with progress('reading', 40) as advance:\n        advance(10)\n        raise KeyError\nexcept KeyError:\n    pass",
        "with make_bar() as bar:\n    print(sum(bar.track(range(10), description='adding')))",
    )
    assert [output.output_type for output in ended] == ["display_data", "stream"]
    assert ended[0].data.keys() == {"text/plain"}
    assert ended[0].data["text/plain"].startswith("reading ━")
    assert "100%" in ended[0].data["text/plain"]
    assert quiet == []
    assert "25%" in failed[0].data["text/plain"]
    assert tracked[0].data["text/plain"].startswith("adding ━")
    assert tracked[1].text == "45\n"


TRAINING = """
from pathlib import Path
from domains.dna.config import of_preset
from domains.dna.train import pretrain
from titans_seq.training.config import TrainingConfig
Path("g.fa").write_text(">one\\n" + "ACGTTGCA" * 200 + "\\n")
settings = TrainingConfig(max_steps=6, batch_size=2, segment_length=16, validate_every=3)
pretrain(["g.fa"], "run", of_preset("debug"), settings, guard=16);
"""


def test_training_in_a_notebook_shows_a_bar_and_its_validations(tmp_path: Path) -> None:
    ((told, *outputs),) = run(tmp_path, TRAINING)
    assert (told.output_type, told.name, told.text[:10]) == ("stream", "stdout", "Trained on")
    bars = [output.data["text/plain"] for output in outputs if output.output_type == "display_data" and "6/6" in output.data["text/plain"]]
    assert len(bars) == 1
    assert "bits per base" in bars[0]
    assert "0:00:00 left" in bars[0]
    assert [output.output_type for output in outputs] == ["display_data"] * 3  # no warning, of ours or of a library's
    assert ["validation" in output.data["text/plain"] for output in outputs] == [False, True, True]


CARD = """
from titans_seq.card import Card, render_card
render_card(Card(title="one", description="two"), model_type="titans", version="0", parameters=1);
"""
NO_WIDGETS = "import sys\nsys.modules['ipywidgets'] = None\n"


def test_only_what_is_imported_here_is_quiet_about_widgets(tmp_path: Path) -> None:
    """In a notebook without ipywidgets: a bar of the user's own says that it needs them, whether ours had to import tqdm before or not."""
    ours, more, theirs = run(tmp_path, NO_WIDGETS + CARD, "import domains.timeseries.estimator", "from tqdm.auto import tqdm")
    assert ours == more == []
    assert "IProgress not found" in theirs[0].text
    ours, theirs = run(tmp_path, NO_WIDGETS + "import titans_seq", "from tqdm.auto import tqdm")
    assert ours == []
    assert "IProgress not found" in theirs[0].text


def test_what_else_an_import_says_is_heard_and_its_filters_stay() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet_import():
            warnings.filterwarnings("ignore", message="set aside")
            warnings.warn("IProgress not found. Please update", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        warnings.warn("set aside by the library", stacklevel=1)
        warnings.warn("IProgress not found. Please update", stacklevel=1)
    assert [str(warning.message) for warning in heard] == ["something else", "IProgress not found. Please update"]


def test_it_shows_at_most_four_lines_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[dict[str, str]] = []

    class Output:
        def update(self, data: dict[str, str], raw: bool) -> None:
            updates.append(data)

    monkeypatch.setattr("IPython.display.display", lambda *args, **kwargs: Output())
    now = [0.0]
    monkeypatch.setattr("titans_seq.progress.time.monotonic", lambda: now[0])
    with NotebookProgress() as bar:
        task = bar.add_task("reading", total=100)
        for _ in range(100):
            now[0] += 0.01
            bar.advance(task)
    assert 4 <= len(updates) <= 6
    assert "100%" in updates[-1]["text/plain"]
