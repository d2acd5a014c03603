"""`python -m benchmarks.text.memory_tasks`: what is measured, gone on with, and shown."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.text import memory_tasks, stages
from benchmarks.text.baselines import count


def test_what_is_measured_once_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "found.json"
    arguments = ["--tasks", "mqar,mad_compression", "--steps", "1", "--output", str(output)]
    memory_tasks.main([*arguments, "--subjects", "titans"])
    first = json.loads(output.read_text())["cells"]
    assert list(first) == ["mqar | titans | 0", "mad_compression | titans | 0"]
    assert list(first["mqar | titans | 0"]["scores"]) == ["1", "4", "16", "64"]
    memory_tasks.main([*arguments, "--subjects", "titans,transformer"])
    second = json.loads(output.read_text())["cells"]
    assert second.keys() - first.keys() == {"mqar | transformer | 0", "mad_compression | transformer | 0"}
    assert all(second[key] == cell for key, cell in first.items())
    sizes = [second[f"mqar | {key} | 0"]["parameters"] for key in ("titans", "transformer")]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02
    searched = json.loads(output.with_name("found_search.json").read_text())["cells"]
    text = memory_tasks.markdown(second, searched)
    assert "| task | length, tokens | Titans | transformer | *Titans, published* |" in text
    assert text.count("\n| ") == 7 + 4  # two of the head, four lengths, one; then two of the head, two tasks
    assert "*0.496*" in text
    assert text in capsys.readouterr().out


def test_a_cell_has_the_rate_that_was_best_on_other_examples(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    memory_tasks.main(["--tasks", "mqar", "--subjects", "transformer", "--steps", "1", "--output", str(output)])
    searched = json.loads(output.with_name("found_search.json").read_text())["cells"]
    assert list(searched) == [f"mqar | transformer | {rate:g}" for rate in memory_tasks.RATES]
    assert [cell["settings"]["training"]["learning_rate"] for cell in searched.values()] == list(memory_tasks.RATES)
    measured = json.loads(output.read_text())["cells"]["mqar | transformer | 0"]
    rate = measured["settings"]["training"]["learning_rate"]
    accuracies = {cell["settings"]["training"]["learning_rate"]: cell["accuracy"] for cell in searched.values()}
    assert accuracies[rate] == max(accuracies.values())


def test_what_forgets_less_in_tests_is_trained_once(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    memory_tasks.main(["--tasks", "mqar", "--subjects", "titans-to-first,titans-to-first-far", "--steps", "2", "--output", str(output)])
    searched = json.loads(output.with_name("found_search.json").read_text())["cells"]
    assert {key.split(" | ")[1] for key in searched} == {"titans-to-first"}
    assert len(list((tmp_path / memory_tasks.TRAINED).iterdir())) == len(memory_tasks.RATES) + 1, "the search, and one for both"
    plain, far = (json.loads(output.read_text())["cells"][f"mqar | titans-to-first{far} | 0"] for far in ("", "-far"))
    assert far["settings"]["training"] == plain["settings"]["training"]
    bits = [[cell["scores"][times]["bits"] for cell in (plain, far)] for times in ("1", "64")]
    assert abs(bits[0][0] - bits[0][1]) < 0.1 * abs(bits[1][0] - bits[1][1]), "it reads short texts as before, and longer ones otherwise"


def test_a_trial_goes_on_at_longer_lengths_from_what_it_learned(tmp_path: Path) -> None:
    short = memory_tasks.Trial("mqar", {"symbols": 64, "length": 32, "pairs": 4}, training={"batch_size": 4, "max_steps": 3}, rates=(1e-3,))
    longer = replace(short, longer=((2, 1, 1e-3),))
    alone, both = (
        memory_tasks.trained(trial, "transformer", 0, memory_tasks.settings(trial, "transformer", 1e-3, None, None), tmp_path, tmp_path)[0]
        for trial in (short, longer)
    )
    windows = [model.config.titans.attention.sliding_window for model in (alone, both)]
    assert windows == [32, 64], "a transformer sees the longest text that it is trained on"
    moved = (alone.output_weight - both.output_weight).abs().max()
    assert 0 < moved < 0.01, "one step of warm-up away from the weights that it begins with"


def test_a_trial_begins_with_its_lessons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    taught = stages.train

    def noted(task: memory_tasks.Task, output: Path, config: object, plan: memory_tasks.TrainingConfig, **given: object) -> Path:
        seen.append((task.length, plan.batch_size, plan.max_steps))
        return taught(task, output, config, plan, **given)

    monkeypatch.setattr(stages, "train", noted)
    trial = memory_tasks.Trial(
        "mqar",
        {"symbols": 64, "length": 64, "pairs": 4},
        training={"batch_size": 4, "max_steps": 3},
        longer=((2, 2, 1e-3),),
        lessons=(("mqar", 1),),
    )
    of = memory_tasks.settings(trial, "transformer", 1e-3, None, None)
    model, _ = memory_tasks.trained(trial, "transformer", 0, of, tmp_path, tmp_path)
    assert seen == [(32, 128, 1), (64, 4, 3), (128, 2, 2)]
    assert model.config.titans.attention.sliding_window == 128
    alone = memory_tasks.settings(replace(trial, lessons=()), "transformer", 1e-3, None, None)
    assert of != alone, "a cell is measured anew where its lessons are others"
    further = replace(trial, longer=(*trial.longer, (4, 1, 1e-3)))
    of = memory_tasks.settings(further, "gated-delta", 1e-3, None, None)
    _, begun = memory_tasks.trained(trial, "gated-delta", 0, of | {"longer": trial.longer}, tmp_path, tmp_path)
    del seen[:]
    memory_tasks.trained(further, "gated-delta", 0, of, tmp_path, tmp_path)
    assert seen == [(256, 1, 1)], "stages that were trained before are not trained again"
    _, again = memory_tasks.trained(trial, "gated-delta", 0, of | {"longer": trial.longer}, tmp_path, tmp_path)
    assert again == begun, "seconds are those of all stages, whenever they were trained"
    memory_tasks.trained(further, "gated-delta", 1, of, tmp_path, tmp_path)
    assert len(seen) == 5, "another seed begins anew"
    monkeypatch.setattr(stages, "CODE", "changed")
    memory_tasks.trained(further, "gated-delta", 1, of, tmp_path, tmp_path)
    assert len(seen) == 9, "so does other code"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]


def test_tasks_of_text_have_pieces_of_their_own_training(tmp_path: Path) -> None:
    task = memory_tasks.load(memory_tasks.TRIALS["facts"], tmp_path, "training")
    assert task.tokenizer_identity != "bytes"
    assert len(task.tokenizer.encode_batch(["The candle is crimson. The grass is green."])[0]) == 10  # words and full stops


def test_every_subject_and_trial_can_be_made() -> None:
    """Settings are the tasks' own; subjects have as many parameters as Titans."""
    from domains.text.tasks.registry import default_settings

    for trial in memory_tasks.TRIALS.values():
        assert set(trial.settings) <= set(default_settings(trial.name))
        assert trial.tests.keys() == set(trial.times)
        assert trial.validated in trial.times
    base = memory_tasks.config_for(memory_tasks.load_task("mqar", symbols=64), memory_tasks.TextConfig(titans=memory_tasks.BACKBONE))
    size = count(memory_tasks.configure("titans", base))
    for key in memory_tasks.USUAL:
        assert abs(count(memory_tasks.configure(key, base, size, context=64)) / size - 1) < 0.02
