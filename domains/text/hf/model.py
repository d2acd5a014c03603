"""`TitansForCausalLM` as a model of transformers. Shapes: B rows, T tokens, V tokens of the vocabulary."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg

from domains.text.hf.cache import TitansCache
from domains.text.hf.config import TitansTextConfig
from domains.text.model import TitansForCausalLM
from titans_seq.checkpoint import ALL_FILES
from titans_seq.errors import UserError
from titans_seq.hub import locate
from titans_seq.losses import IGNORED, total_nats
from titans_seq.packing import LeftAligned

_PREFIX = "model."


class TitansTextForCausalLM(PreTrainedModel, GenerationMixin):
    """Logits, loss, `generate`, `Trainer` and pipelines of transformers over a `TitansForCausalLM`, which is `self.model`.

    The files are ours, read and written as they are. There is no maximum length, and the cache has one size.
    """

    config_class = TitansTextConfig
    base_model_prefix = "model"
    accepts_loss_kwargs = True
    _is_stateful = True
    _no_split_modules = ("Block",)

    def __init__(self, config: TitansTextConfig) -> None:
        super().__init__(config)
        self.model = TitansForCausalLM(config.text)
        self.post_init()

    @deprecate_kwarg("past_key_values", "6.0.0", new_name="cache")
    @deprecate_kwarg("cache_params", "6.0.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: TitansCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of the token after each, and the loss.

        Args:
            input_ids: (B, T) int64; with a cache the new tokens alone.
            attention_mask: (B, at least T), 0 for padding, which is anywhere as if it were absent; the last T columns count.
            cache: what was read before; changed in place unless `use_cache` is False.
            labels: (B, T), the tokens themselves, -100 for those that do not count; those of padding and the first do not either. Each is
                predicted from the token before it in its row; the model's z-loss has its part in the gradient.
            use_cache: give the cache; None for the configuration's, but not in training.
            logits_to_keep: of the last so many tokens, or of those at these places; 0 for all.
            num_items_in_batch: what the loss is divided by, in place of the number of labels that count.
            return_dict: False for a tuple.

        Returns:
            logits (B, T, V), those of padding being the ones after the row's last token before it; loss in nats a token; cache. In
            training with labels there are no logits, None, unless `logits_to_keep` asks for some: the loss never has (B, T, V) at once.

        Raises:
            ValueError: a shape or a token that does not fit, or a cache of other rows or of another model.
        """
        mask = _mask(attention_mask, input_ids)
        state = None if cache is None else cache.state
        if state is None and mask is not None:
            state = self.model.init_state(len(input_ids))
        y, state = self.model.hidden(input_ids, state, mask=mask)
        loss = None if labels is None else self._loss(y, labels, mask, num_items_in_batch)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache:
            cache = TitansCache() if cache is None else cache
            cache.state = state
        all_kept = isinstance(logits_to_keep, int) and logits_to_keep == 0
        logits = None if self.training and labels is not None and all_kept else self._logits(y, mask, logits_to_keep)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache if use_cache else None)
        return output.to_tuple() if return_dict is False else output

    def _logits(self, y: Tensor, mask: Tensor | None, kept: int | Tensor) -> Tensor:
        """(B, kept, V): those of the last so many tokens, or of those at these places; 0 for all."""
        shown = y if mask is None else _carried_over(y, mask)
        return self.model.logits_of(shown[:, slice(-kept if kept else None, None) if isinstance(kept, int) else kept])

    def _loss(self, y: Tensor, labels: Tensor, mask: Tensor | None, count: Tensor | int | None) -> Tensor:
        if labels.shape != y.shape[:2]:
            raise ValueError(f"labels must be {tuple(y.shape[:2])}, as input_ids, got {tuple(labels.shape)}")
        if mask is not None:
            aligned = LeftAligned(mask, None)
            y, labels = aligned.take(y), torch.where(aligned.mask, labels.gather(1, aligned.order), IGNORED)
        targets = labels[:, 1:].flatten()
        total = total_nats(y[:, :-1].flatten(0, 1), self.model.output_weight, targets, self.config.text.z_loss)
        return total / ((targets != IGNORED).sum().clamp(min=1) if count is None else count)

    def prepare_inputs_for_generation(self, *given: Any, tokenizer: Any = None, assistant_tokenizer: Any = None, **kwargs: Any) -> Any:
        """As of transformers; `generate` hands on the tokenisers that it looks for stop strings with."""
        return super().prepare_inputs_for_generation(*given, **kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes its own

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: `TitansForCausalLM` has done it."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None where it has the weights of the embedding."""
        return self.model.head

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *given: Any, **named: Any) -> nn.Module:
        """Refused but for the size that there is: the tokens are the tokeniser's, which is saved with the model."""
        if new_num_tokens not in (None, self.config.vocab_size):
            raise UserError(
                f"the model's tokeniser has {self.config.vocab_size} tokens, not {new_num_tokens}; another needs a model of its own."
            )
        return self.model.embedding

    def load_state_dict(self, state_dict: Any, *given: Any, **named: Any) -> Any:
        """As of a module, also of the file's names, as `Trainer` loads its checkpoints."""
        return super().load_state_dict({_PREFIX + name.removeprefix(_PREFIX): x for name, x in state_dict.items()}, *given, **named)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *given: Any, output_loading_info: bool = False, subfolder: str = "", **options: Any
    ) -> Any:
        """As of transformers; a file that is damaged, lacks weights of the model or has others is refused by its name.

        Raises:
            UserError: one is, they do not fit a configuration that is given, or tokenizer.json is not the model's.
        """
        if subfolder:
            raise UserError(f"{pretrained_model_name_or_path}: name the folder {subfolder} itself; subfolder= is not known here.")
        hub = {name: options[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in options}
        folder = locate(pretrained_model_name_or_path, ALL_FILES, **hub)
        TitansForCausalLM.from_pretrained(folder, device="meta")  # which reads no values: for its errors
        model, info = super().from_pretrained(pretrained_model_name_or_path, *given, output_loading_info=True, **options)
        wrong = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]}
        if wrong:
            raise UserError(f"{pretrained_model_name_or_path}: the weights do not fit the configuration: {wrong}")
        model.model._load_more(folder)
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **unused: Any,
    ) -> None:
        """As `TitansForCausalLM.save_pretrained`, and generation_config.json: the folder is one of ours.

        Args:
            save_directory: made if it is not there.
            is_main_process: another writes nothing.
            state_dict: weights to write in place of those that are here, which may be shards.
            push_to_hub: refused, see `push_to_hub`.
            unused: other options of transformers, such as max_shard_size: there is one file.
        """
        if push_to_hub:
            raise ValueError("save_pretrained writes a folder; upload with model.push_to_hub(name)")
        if not is_main_process:
            return
        model = self.model
        if state_dict is not None:
            with torch.device("meta"):
                model = TitansForCausalLM(self.config.text, self.model._tokenizer)
            model.load_state_dict({name.removeprefix(_PREFIX): x for name, x in state_dict.items()}, assign=True)
        model.save_pretrained(save_directory)
        self.generation_config.save_pretrained(save_directory)


def _mask(attention_mask: Tensor | None, input_ids: Tensor) -> Tensor | None:
    """(B, T) bool, True for tokens; None if all are."""
    if attention_mask is None:
        return None
    length = input_ids.shape[1]
    if attention_mask.dim() != 2 or len(attention_mask) != len(input_ids) or attention_mask.shape[1] < length:
        raise ValueError(f"attention_mask must be (B, at least T) of input_ids {(*input_ids.shape,)}, got {(*attention_mask.shape,)}")
    mask = attention_mask[:, attention_mask.shape[1] - length :] != 0
    return None if bool(mask.all()) else mask


def _carried_over(y: Tensor, mask: Tensor) -> Tensor:
    """y (B, T, dim) with, at padding, that of the row's last token before it: `generate` takes what stands last."""
    place = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), 0).cummax(1).values
    return y.gather(1, place[:, :, None].expand_as(y))
