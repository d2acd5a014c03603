"""Adapter to lm-evaluation-harness (the extra `lm-eval`): import this, and the harness knows the model `titans-seq`.

>>> import domains.text.harness
>>> lm_eval.simple_evaluate("titans-seq", {"pretrained": "runs/novels/model"}, tasks=["lambada_openai"])

`titans-seq text eval` runs it on the tasks of this folder, which read local files.
"""

import lm_eval.models  # noqa: F401 - the harness looks for its own models only while it knows none

from domains.text.harness.model import TitansLM

__all__ = ["TitansLM"]
