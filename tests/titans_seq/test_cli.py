"""`titans-seq` as a user meets it: help that fits, exit statuses, third-party domains, completion, info and doctor."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cyclopts
import pytest
from rich.console import Console

from tests.limits import HANG
from titans_seq import cli
from titans_seq.checkpoint import load_model
from titans_seq.installed import OLDEST_TORCH

GOLDEN = Path(__file__).parent / "golden"
COMMAND = [str(Path(sys.executable).with_name("titans-seq"))]

SENSORS = '''
"""A domain of a third party."""
import sys
import time

from titans_seq.domain import Domain
from titans_seq.errors import UserError

DOMAIN = Domain(
    commands={"good": "sensors:good", "bad": "sensors:bad", "fail": "sensors:fail", "wait": "sensors:wait", "pour": "sensors:pour"},
    models={"sensor_model": "sensors:SensorModel"},
)


def good() -> None:
    """Do what is asked."""
    print("good")


def bad(value: int) -> None:
    """Refuse the input."""
    raise UserError(f"line 3: {value} is no reading")


def fail() -> None:
    """Fail on the way."""
    raise RuntimeError("the sensor is gone")


def wait() -> None:
    """Wait to be interrupted."""
    print("ready", flush=True)
    time.sleep(60)


def pour() -> None:
    """Print without end."""
    while True:
        print("x" * 1000)


def __getattr__(name: str) -> type:
    if name != "SensorModel":
        raise AttributeError(name)
    from titans_seq import presets
    from titans_seq.backbone import Titans

    return type("SensorModel", (Titans,), {"model_type": "sensor_model"})
'''


def install(site: Path, package: str, code: str, entry_point: str) -> None:
    """What pip leaves behind of a distribution with one module and one entry point."""
    (site / f"{package}.py").write_text(code)
    metadata = site / f"{package}-1.2.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(f"[titans_seq.domains]\n{entry_point}\n")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of installed packages with the domain `sensors`."""
    folder = tmp_path / "site"
    folder.mkdir()
    install(folder, "sensors", SENSORS, "sensors = sensors:DOMAIN")
    return folder


def run(*arguments: str, site: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", **variables} | ({"PYTHONPATH": str(site)} if site else {})
    return subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=HANG)


def every_app(app: cyclopts.App, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], cyclopts.App]]:
    yield path, app
    for name in app:
        if not name.startswith("-"):
            yield from every_app(app[name], (*path, name))


def test_help_of_every_level_fits_80_columns_and_says_what_everything_is() -> None:
    levels = dict(every_app(cli.build_app()))
    assert levels.keys() >= {(), ("forecast",), ("text", "train"), ("text", "score"), ("info",), ("doctor",), ("completion",)}
    for path, app in levels.items():
        screen = io.StringIO()
        cli.build_app().help_print(list(path), console=Console(file=screen, width=80))
        lines = screen.getvalue().splitlines()
        assert lines[0].startswith(" ".join(("Usage: titans-seq", *path)))
        assert max(map(len, lines)) <= 80
        assert not re.search(r"\bNone\b|[a-z]Config\b|\b(num_heads|num_layers|head_dim|max_steps)\b", screen.getvalue()), path
        assert app.help, path
        if app.default_command:
            for argument in app.assemble_argument_collection():
                assert argument.parameter.help or argument.children, f"{path}: {argument.names} has no help"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ((), 0, "Usage: titans-seq COMMAND"),
        (("--version",), 0, "titans-seq 0"),
        (("forecast", "backtest", "--help"), 0, "--backbone.memory.chunk-size"),
        (("text", "train", "--help"), 0, "--strategy"),
        (("text", "trian"), 2, 'Did you mean "train"?'),
        (("frcast",), 2, 'Did you mean "forecast"?'),
        (("forecast", "backtest", "--window", "3"), 2, "Did you mean --windows?"),
        (("forecast", "backtest", "--device", "cuda"), 2, "A GPU is used where there is one; titans-seq doctor says what is found."),
        (("forecast", "backtest", "--windows", "0"), 2, "Must be >= 1"),
        (("forecast", "backtest", "--windows", "2.5"), 2, "2.5"),
        (("forecast", "backtest", "--missing", "guess"), 2, 'Choose from: "error", "mask"'),
        (("forecast", "backtest", "--backbone.variant", "mac2"), 2, '"lmm", "mac", "mag", "mal"'),
        (("info",), 2, "info --help"),
    ],
)
def test_exit_statuses(arguments: tuple[str, ...], status: int, text: str) -> None:
    """Help and answers go to standard output, errors in one piece to standard error."""
    done = run(*arguments)
    assert done.returncode == status
    assert text in (done.stderr if status else done.stdout)
    assert done.stderr.startswith("Error: ") if status else not done.stderr
    assert "Traceback" not in done.stderr


def test_a_third_party_domain(site: Path) -> None:
    """Its commands run, its input errors end with 2, its failures with 1, and tracebacks are for those who ask."""
    done = run("good", site=site)
    assert (done.returncode, done.stdout, done.stderr) == (0, "good\n", "")
    done = run("bad", "4", site=site)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "Error: line 3: 4 is no reading\n")
    done = run("fail", site=site)
    assert (done.returncode, done.stderr) == (1, "Error: RuntimeError: the sensor is gone (TITANS_SEQ_DEBUG=1 shows where)\n")
    done = run("fail", site=site, TITANS_SEQ_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "Do what is asked." in run("--help", site=site).stdout


def test_broken_domains_do_not_harm_the_others(site: Path) -> None:
    install(site, "mended", "import nothing_of_that_name", "mended = mended:DOMAIN")
    install(site, "old", "def register(app): ...", "old = old:register")
    greedy = 'from titans_seq.domain import Domain\nDOMAIN = Domain(commands={"info": "greedy:DOMAIN", "more": "greedy:more"})'
    install(site, "greedy", greedy, "greedy = greedy:DOMAIN")
    done = run("good", site=site)
    assert (done.returncode, done.stdout) == (0, "good\n")
    for name, problem in (
        ("mended", "No module named 'nothing_of_that_name'"),
        ("old", "old:register is a function, expected a titans_seq.domain.Domain"),
        ("greedy", "its command 'info' exists already"),
        ("greedy", "its command 'more': ImportError: cannot import 'more' from 'greedy'"),
    ):
        (line,) = (line for line in done.stderr.splitlines() if problem in line)
        assert line.startswith(f"Warning: domain '{name}' of package {name} 1.2")
    assert "Traceback" not in done.stderr
    assert run("--help", site=site).returncode == 0
    assert 'Did you mean "good"' in run("goood", site=site).stderr

    report = run("doctor", "--json", site=site)
    assert report.returncode == 1
    found = json.loads(report.stdout)
    assert found["domains"]["sensors"].startswith("sensors 1.2: good, bad")
    assert found["domains"]["mended"] == "mended 1.2: broken"
    assert any("nothing_of_that_name" in problem for problem in found["problems"])


def test_a_torch_that_is_too_old_is_said_so(tmp_path: Path) -> None:
    """By commands, by doctor and by an import, with an empty stand-in of it first on the path."""
    (tmp_path / "torch-2.4.0.dist-info").mkdir()
    (tmp_path / "torch-2.4.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.4.0\n")
    (tmp_path / "torch.py").write_text("__version__ = '2.4.0'\n")
    said = "torch 2.4.0 is too old, titans_seq needs 2.11 or newer: pip install --upgrade 'torch>=2.11'"
    trained = run("text", "train", str(tmp_path / "torch.py"), "-o", str(tmp_path / "run"), site=tmp_path)
    assert (trained.returncode, " ".join(trained.stderr.split())) == (1, f"Error: {said}")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    used = subprocess.run(
        [sys.executable, "-c", "from titans_seq import Titans"], env=environment, capture_output=True, text=True, check=False
    )
    assert used.stderr.splitlines()[-1] == f"ImportError: {said}"


def test_the_oldest_torch_is_what_the_project_asks_for() -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert f"torch>={'.'.join(map(str, OLDEST_TORCH))}" in settings["project"]["dependencies"]


@pytest.mark.usefixtures("ctrl_c_is_heard")
def test_ctrl_c_is_quiet(site: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    with subprocess.Popen([*COMMAND, "wait"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=HANG)
    assert (process.returncode, rest, errors) == (130, "", "")


def test_a_reader_that_goes_away_is_no_error_to_talk_about(site: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    with subprocess.Popen([*COMMAND, "pour"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=HANG) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_completion_completes(tmp_path: Path) -> None:
    """The script of every shell is made; bash, as far as it is here, completes commands and options with its own."""
    for shell, mark in (("zsh", "#compdef titans-seq"), ("fish", "complete -c titans-seq"), ("bash", "complete -F")):
        script = run("completion", shell).stdout
        assert mark in script
        for word in ("forecast", "doctor", "prediction-length", "backbone.memory.chunk-size"):
            assert word in script, (shell, word)
    (tmp_path / "titans-seq.bash").write_text(script)
    for line, wanted in (("titans-seq fo", "forecast"), ("titans-seq forecast backtest --wind", "--windows")):
        code = (
            f"source {tmp_path}/titans-seq.bash; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=($COMP_LINE); "
            "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
            "$(complete -p titans-seq | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
        assert done.stdout.split() == [wanted], done.stderr


def holds(config: dict[str, Any], older: dict[str, Any]) -> bool:
    """Whether all that stands in the older one stands in config."""
    return all(holds(config[key], value) if isinstance(value, dict) else config[key] == value for key, value in older.items())


def test_info_says_what_a_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lmm", "forecaster"):
        cli.build_app()(["info", str(GOLDEN / name), "--json"])
        found, model = json.loads(capsys.readouterr().out), load_model(GOLDEN / name)
        assert found["model_type"] == model.model_type
        assert found["parameters"] == sum(found["parameters_by_part"].values()) == sum(x.numel() for x in model.parameters())
        assert found["dtype"] == ["float32"]
        assert found["bytes_on_disk"]["model.safetensors"] == (GOLDEN / name / "model.safetensors").stat().st_size
        backbone = model.titans if name == "forecaster" else model
        assert found["state_bytes_per_stream"] == backbone.init_state(1).nbytes
        assert found["config"] == json.loads(json.dumps(model.config.to_dict()))  # an older file's, with the defaults of what came since
        assert holds(found["config"], json.loads((GOLDEN / name / "config.json").read_text())["config"])
        cli.build_app()(["info", str(GOLDEN / name)])
        lines = capsys.readouterr().out
        assert f"{found['parameters']:,}" in lines
        assert "KiB" in lines


def test_info_of_a_third_partys_model(site: Path, tmp_path: Path) -> None:
    values = json.loads((GOLDEN / "lmm" / "config.json").read_text()) | {"model_type": "sensor_model"}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    (tmp_path / "model" / "model.safetensors").write_bytes((GOLDEN / "lmm" / "model.safetensors").read_bytes())
    assert "SensorModel" in run("info", str(tmp_path / "model"), "--json", site=site).stdout
    done = run("info", str(tmp_path / "model"))
    assert done.returncode == 2
    assert "no installed package has the model_type 'sensor_model'" in done.stderr


def test_doctor_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    cli.build_app()(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert all(found["packages"].values())
    assert found["domains"]["timeseries"].endswith("forecast, titans_forecaster")
    assert any(form.startswith(("chunkwise: ", "fused: ")) for form in found["memory_form"].values())
    cli.build_app()(["doctor"])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["torch", found["packages"]["torch"]] in lines
    assert ["problems", "none"] in lines


def test_doctor_finds_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("doctor", "--json", HF_HOME=str(tmp_path / "file" / "home"))
    assert done.returncode == 1
    assert "cannot be written" in json.loads(done.stdout)["problems"][0]
