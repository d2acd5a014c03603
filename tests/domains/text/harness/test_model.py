"""lm-evaluation-harness on our models: its scores are those of our own functions, and by hand."""

import math
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.tasks import TaskManager

import domains.text.harness
from domains.text.config import GenerationConfig
from domains.text.context import begin
from domains.text.generate import generate
from domains.text.harness import TitansLM
from domains.text.likelihood import encode_pair, follow
from domains.text.model import TitansForCausalLM
from domains.text.questions import ask, last_words, multiple_choice, read_arc, read_lambada, read_openbookqa, read_piqa
from domains.text.tokenizers import JsonTokenizer
from tests.domains.text.conftest import small
from titans_seq import UserError

TASKS = Path(domains.text.harness.__file__).parent / "tasks"
NAMES = sorted(path.stem for path in TASKS.glob("*.yaml"))


def manager(data: Path) -> TaskManager:
    return TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"data": str(data)})


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def scores(model: TitansForCausalLM, data: Path, **options: Any) -> dict[str, dict[str, float]]:
    results = lm_eval.simple_evaluate(
        TitansLM(model, batch_size=3), tasks=NAMES, task_manager=manager(data), bootstrap_iters=0, log_samples=False, **options
    )
    return results["results"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_the_local_tasks_score_as_our_own_functions(tokenizer: str, bpe: JsonTokenizer, data: Path) -> None:
    model = small()
    if tokenizer == "bpe":
        model = TitansForCausalLM(model.config.with_tokenizer(bpe), bpe).eval()
    found = scores(model, data)
    words = last_words(ask(model, read_lambada(data / "lambada" / "lambada_test.jsonl")))
    assert found["local_lambada"]["acc,none"] == words.accuracy
    assert found["local_lambada"]["perplexity,none"] == pytest.approx(words.perplexity, rel=1e-4)
    questions = {
        "local_piqa": read_piqa(data / "piqa" / "valid.jsonl", data / "piqa" / "valid-labels.lst"),
        "local_arc_challenge": read_arc(data / "arc" / "ARC-Challenge-Test.jsonl"),
        "local_openbookqa": read_openbookqa(data / "openbookqa" / "test.tsv"),
    }
    for name, some in questions.items():
        expected = multiple_choice(some, ask(model, some))
        assert [found[name][f"{metric},none"] for metric in ("acc", "acc_norm", "acc_bytes")] == list(expected)
    pages = [" = The ship = \n \n It went . \n = = Sea = = \n Over the sea . \n", " = Größe = \n \n <unk> \n"]
    nats = sum(float(follow(model, begin(model), model.tokenizer.encode_batch([page]))[0]) for page in [" \n", *pages] if page.strip())
    size = sum(len(page.encode()) for page in pages)
    assert found["local_wikitext2"]["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert found["local_wikitext2"]["byte_perplexity,none"] == pytest.approx(math.exp(nats / size), rel=1e-5)


def test_solved_examples_come_before_the_questions(model: TitansForCausalLM, data: Path) -> None:
    """From the split that the task names; the score is of other contexts than without."""
    assert scores(model, data, num_fewshot=2)["local_openbookqa"]["acc,none"] >= 0
    lm = TitansLM(model)
    task = manager(data).load(["local_openbookqa"])["tasks"]["local_openbookqa"]
    task.set_config("num_fewshot", 2)
    task.build_all_requests(limit=1)
    context = task.instances[0].args[0]
    assert context.count("sea\n\n") == 2  # the answer of the split `train`, after two of its questions
    assert lm.loglikelihood(task.instances, disable_tqdm=True)[0][0] < 0


def test_pairs_are_cut_as_the_harness_cuts_them(bpe: JsonTokenizer) -> None:
    lm = TitansLM(TitansForCausalLM(small().config.with_tokenizer(bpe), bpe).eval())
    for pair in (("the ship ", "went"), ("the shi", "p went"), ("Größe \n", " 水"), (" \n", "a")):
        theirs = lm._encode_pair(*pair)
        assert theirs == tuple(part.tolist() for part in encode_pair(bpe, *pair))


def test_requests_begin_documents_and_come_back_in_order(model: TitansForCausalLM) -> None:
    """Nothing of one request is left for the next, however they are ordered and batched."""
    pairs = [("the sea", " and the wind"), ("", "the"), ("a much longer context than the others have", " x"), ("the sea", ""), (" ", "a")]
    requests = [request("loglikelihood", *pair) for pair in pairs]
    one, three = (TitansLM(model, batch_size=size).loglikelihood(requests, disable_tqdm=True) for size in (1, 3))
    alone = [TitansLM(model).loglikelihood([each], disable_tqdm=True)[0] for each in requests]
    for found in (one, three):
        np.testing.assert_allclose([nats for nats, _ in found], [nats for nats, _ in alone], rtol=1e-5)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in alone]
    texts = [request("loglikelihood_rolling", text) for text in ("the ship went over the sea", "", "水")]
    rolling = TitansLM(model, batch_size=2).loglikelihood_rolling(texts, disable_tqdm=True)
    whole = TitansLM(model).loglikelihood([request("loglikelihood", "", text.args[0]) for text in (texts[0], texts[2])], disable_tqdm=True)
    np.testing.assert_allclose(rolling, [whole[0][0], 0.0, whole[1][0]], rtol=1e-5)


def test_answers_are_those_of_generate(model: TitansForCausalLM) -> None:
    """Greedy unless asked; up to a stop string; repeats of a request differ where it is sampled."""
    prompts = ["It was", "The ship went over the sea, and", ""]
    lm = TitansLM(model, batch_size=2)
    greedy = generate(model, prompts, GenerationConfig(max_tokens=9, temperature=0))
    asked: dict[str, Any] = {"until": [], "max_gen_toks": 9, "do_sample": False}
    assert lm.generate_until([request("generate_until", prompt, asked) for prompt in prompts], True) == [one.text for one in greedy]
    stop = greedy[1].text[3:5]
    (cut,) = lm.generate_until([request("generate_until", prompts[1], {**asked, "until": [stop]})], True)
    assert cut == greedy[1].text[: greedy[1].text.index(stop)]
    sampled = {**asked, "do_sample": True, "temperature": 0.9, "top_p": 0.9}
    repeats = lm.generate_until([request("generate_until", prompts[0], sampled)] * 4, True)
    assert len(set(repeats)) > 1
    assert repeats == lm.generate_until([request("generate_until", prompts[0], sampled)] * 4, True)
    with pytest.raises(UserError, match="generation_kwargs: top_q: not known; there are until, max_gen_toks"):
        lm.generate_until([request("generate_until", "", {**asked, "top_q": 1})], True)


class Refusing:
    """A model that answers nothing."""

    def __getattr__(self, name: str) -> Any:
        def refuse(requests: list[Instance]) -> None:
            raise AssertionError(f"{name} was asked again")

        return refuse


def test_what_is_done_is_cached(model: TitansForCausalLM, tmp_path: Path) -> None:
    """Each answer when it is there, under the harness's own key: a run that was stopped does not ask again."""
    lm = TitansLM(model)
    caching = CachingLM(lm, str(tmp_path / "cache.db"))
    requests = {
        "loglikelihood": [request("loglikelihood", "the", " sea")],
        "loglikelihood_rolling": [request("loglikelihood_rolling", "the sea")],
        "generate_until": [request("generate_until", "the", {"until": ["."], "max_gen_toks": 3})],
    }
    expected = {kind: getattr(lm, kind)(some) for kind, some in requests.items()}
    caching.lm = Refusing()
    assert {kind: getattr(caching, kind)(some) for kind, some in requests.items()} == expected
    caching.dbdict.close()


@pytest.mark.parametrize("device", [None, "cuda:0"])
def test_the_harness_knows_the_model_by_name(device: str | None, data: Path, tmp_path: Path) -> None:
    """And its own are still there. Its command names cuda:0 where there is no GPU, too."""
    from lm_eval.api.registry import get_model

    small().save_pretrained(tmp_path / "model")
    results = lm_eval.simple_evaluate(
        "titans-seq",
        {"pretrained": str(tmp_path / "model")},
        tasks=["local_lambada"],
        task_manager=manager(data),
        batch_size=2,
        bootstrap_iters=0,
        log_samples=False,
        device=device,
    )
    assert results["results"]["local_lambada"]["sample_len"] == 4
    assert get_model("dummy").__name__ == "DummyLM"
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        TitansLM(small(), batch_size=0)
