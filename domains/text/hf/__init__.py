"""Our language models in Hugging Face transformers (extra `hf`): import this, and its Auto classes load what `save_pretrained` wrote.

>>> import domains.text.hf
>>> from transformers import AutoModelForCausalLM, AutoTokenizer
>>> model, tokenizer = (auto.from_pretrained("runs/novels/model") for auto in (AutoModelForCausalLM, AutoTokenizer))
"""

try:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.versions import require_version

    require_version("transformers>=5.24")  # where caches go by the name `cache`
except ImportError as error:
    raise ImportError(f"domains.text.hf needs transformers 5.24 or later: pip install 'titans-seq[hf]' ({error})") from error

from domains.text.hf.cache import TitansCache
from domains.text.hf.config import TitansTextConfig
from domains.text.hf.model import TitansTextForCausalLM
from domains.text.hf.tokenizer import TitansTextTokenizer

__all__ = ["TitansCache", "TitansTextConfig", "TitansTextForCausalLM", "TitansTextTokenizer"]

AutoConfig.register(TitansTextConfig.model_type, TitansTextConfig)
AutoModelForCausalLM.register(TitansTextConfig, TitansTextForCausalLM)
AutoTokenizer.register(TitansTextConfig, TitansTextTokenizer)
