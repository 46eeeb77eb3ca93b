"""A language model as a policy: states are texts so far, actions are tokens, and one pass scores whole groups of completions.

The module inside is an ordinary Transformers model; nothing of it is rewritten. Its parameters are the float32 masters that the
update moves. Where the processor computes faster in another precision (:func:`~upslope.language.machine.preferred`), each pass
casts them first, and their gradients come back in float32.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.errors import UsageError, require
from upslope.language import models, plain, pretrained
from upslope.language.architecture import BRIEF, inspect, inspect_beyond
from upslope.language.attention import Packed, borrowed
from upslope.language.checks import Prompt
from upslope.language.head import Head, TokenLogProb
from upslope.language.machine import keep_large_blocks, preferred
from upslope.language.models import PACKED, Attention, changes_with_length
from upslope.language.rendering import Rendering
from upslope.records import Evaluation
from upslope.temperature import check_temperature


class Body(nn.Module):
    """Model, and value head where there is one: what a pass runs, with whatever precision its parameters are given in."""

    def __init__(self, model: PreTrainedModel, value_head: nn.Linear | None) -> None:
        super().__init__()
        self.model, self.value_head = model, value_head

    def forward(self, layout: Any) -> Any:
        """Last hidden states of a packed row, ``[N, H]``; logits and hidden states of a plain one."""
        if isinstance(layout, plain.PlainText):
            return layout.run(self.model)
        with borrowed(self.model):
            ids, positions = layout.ids.unsqueeze(0), layout.positions.unsqueeze(0)
            found = self.model.base_model(input_ids=ids, position_ids=positions, use_cache=False, layout=layout)
        return found.last_hidden_state[0]


class LanguagePolicy(nn.Module):
    """Samples and scores completions with one distribution: ``softmax(logits / temperature)``, dropout off in both.

    Args:
        model: a decoder-only Transformers model; it stays an ordinary one, and ``policy.model`` gives it back.
        tokenizer: the one that belongs to it.
        temperature: of the distribution that is sampled *and* trained; there is no top-k or top-p, which would make the two differ.
        value_head: add a scalar head on the last hidden state, as PPO's critic or as a reward model.
        compute_dtype: of the passes; None is bfloat16 where this processor or GPU has instructions for it, else float32.
        dtype: of the parameters, which are converted **in place**: None is float32, in which steps of 1e-6 move a weight (models come in
            bfloat16 by default, where one weight in a thousand would). ``torch.bfloat16`` keeps half the memory; updates then round
            stochastically, so that small steps are kept on average.

    A model inside a peft wrapper trains its adapters. The model is changed in two more ways: it is in ``eval()`` for good, without the
    dropout that its configuration may name, and its embeddings forget ``padding_idx``, so that a padding token that also ends texts is
    learned.

    Raises:
        UsageError: an architecture that is not a causal decoder, a tokenizer without an end token, a temperature below 0.01,
            gradient checkpointing or adapter dropout switched on, which would have no effect.

    ``policy.attention`` says whether texts pass packed or one row at a time (:mod:`~upslope.language.architecture`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float = 1.0,
        value_head: bool = False,
        compute_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_temperature(temperature)
        model, adapter = models.unwrapped(model)
        models.check_settings(model)
        models.masters(model, dtype)
        self.assemble(model, temperature, value_head, compute_dtype)
        self.adapter += [] if adapter is None else [adapter.eval()]
        self.tokenizer = tokenizer
        self.rendering = Rendering(tokenizer, models.generation_stops(model))
        message = "tokenizer: it has no end-of-sequence token, so no completion would ever end; set eos_token"
        require(tokenizer.eos_token_id is not None or self.rendering.turn.end_id is not None, message)
        self.given_stop_ids = None
        self.attention = inspect(self)
        if len(tokenizer) > self.vocabulary:
            raise UsageError(f"tokenizer: it has {len(tokenizer)} tokens, the model {self.vocabulary}; they do not belong together")

    def assemble(self, model: PreTrainedModel, temperature: float, value_head: bool, compute_dtype: torch.dtype | None) -> None:
        """The parts that need no tokenizer."""
        super().__init__()
        config: Any = model.config
        model.eval()
        for layer in model.modules():
            if isinstance(layer, nn.Embedding):
                layer.padding_idx = None  # the padding token is often the end token, whose gradient must not be dropped
        head = None
        if value_head:
            head = nn.Linear(config.get_text_config().hidden_size, 1, bias=True)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            head.to(model.device)
        self.body = Body(model, head)
        self.temperature = temperature
        self.compute_dtype = compute_dtype or preferred(model.device)
        self.adapter: list[Any] = []  # the peft wrapper, kept from being registered: its modules already are the model's
        self.given_stop_ids: frozenset[int] | None = frozenset()
        self.attention, self.inspected = PACKED, BRIEF
        self.context = models.longest_text(model)
        """The longest text that the model can see, in tokens."""
        self.beyond = "" if changes_with_length(model) is None else ", beyond which its rotary scaling changes for the whole text"
        self.logit_scale, self.logit_cap = models.logit_scale(model), models.logit_cap(model)
        self.has_value = value_head
        """Whether there is a value head."""

    @classmethod
    def around(cls, model: PreTrainedModel, attention: Attention = PACKED) -> Self:
        """A policy without a tokenizer, in its parameters' precision: what :mod:`~upslope.language.architecture` compares with."""
        policy = cls.__new__(cls)
        policy.assemble(model, 1.0, False, next(model.parameters()).dtype)
        policy.attention, policy.inspected = attention, 1 << 60
        return policy

    def look_up_to(self, length: int) -> None:
        """Make sure that texts of up to ``length`` tokens will pass rightly: packed or not, and without dropout that came on since."""
        for module in self.modules():
            if module.training or getattr(module, "gradient_checkpointing", False):
                models.check_settings(self.train().model)
        if length > self.inspected:
            self.inspected = 2 * length
            self.attention = inspect_beyond(self, self.inspected)

    # ------------------------------------------------------------------------------------------------ what it is made of

    @property
    def model(self) -> PreTrainedModel:
        return self.body.model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def vocabulary(self) -> int:
        return int(cast(Any, self.model).get_output_embeddings().weight.shape[0])

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion: the tokenizer's, those of the model's generation settings, the chat template's end of a turn."""
        return self.rendering.stop_ids if self.given_stop_ids is None else self.given_stop_ids

    @stop_ids.setter
    def stop_ids(self, ids: frozenset[int]) -> None:
        self.given_stop_ids = ids

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, *, lora_rank: int | None = None, **options: Any) -> Self:
        """A model and tokenizer from a folder (or a hub's name, where there is one); ``options`` as for the class.

        ``lora_rank`` trains low-rank adapters on every linear layer instead of the weights themselves.

        On Linux a model on the processor also has glibc's allocator keep large blocks, in the whole process: passes are faster then, and
        the memory of the largest one stays taken (:mod:`~upslope.language.machine`). A ``MALLOC_…`` environment variable prevents it.

        Raises:
            UsageError: in one line, whatever is wrong with the folder.
        """
        model, tokenizer = pretrained.load_pretrained(name_or_folder)
        policy = cls(model, tokenizer, **options)
        if policy.device.type == "cpu":
            keep_large_blocks()
        if policy.body.value_head is not None and (Path(name_or_folder) / pretrained.VALUE_HEAD).exists():
            pretrained.load_value_head(policy.body.value_head, Path(name_or_folder))
        if lora_rank is not None:
            policy.adapter[:] = [pretrained.with_adapters(policy.model, lora_rank)]
        return policy

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None, merge: bool = True) -> None:
        """Write an ordinary Transformers folder that plain Transformers and vLLM load; adapters are merged unless ``merge`` is False.

        A temperature that is not 1 is written to the generation settings of a whole model, and the base's other ones are turned off.
        """
        parts = (self.model, self.tokenizer, self.adapter[0] if self.adapter else None, self.body.value_head)
        pretrained.write_pretrained(Path(folder), *parts, dtype=dtype, merge=merge, temperature=self.temperature)

    def frozen(self) -> Self:
        """A copy that never changes, in the compute precision: the reference of a KL term, or a reward model."""
        twin = copy.deepcopy(self).requires_grad_(False)
        for p in twin.model.parameters():
            p.data = p.data.to(self.compute_dtype)  # not the buffers: rounded rotary frequencies would be those of another model
        return twin

    def train(self, mode: bool = True) -> Self:
        """Dropout stays off, whoever asks: what samples and what scores must be one distribution."""
        return super().train(False)

    # --------------------------------------------------------------------------------------------------------- text and ids

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt: ``tokenizer(text)``, or messages through the chat template, ready for the assistant's turn.

        Where the last message is the assistant's, that turn is continued.
        """
        return self.encode_all([prompt], ["prompt"])[0]

    def encode_all(self, prompts: Sequence[Prompt], places: Sequence[str] | None = None) -> list[list[int]]:
        """:meth:`encode` of each prompt, several times faster than one by one; ``places`` name them in errors."""
        return self.rendering.prompts(prompts, places)

    def decode(self, ids: Sequence[int], after: Prompt | None = None) -> str:
        """The text of a completion, without its end token and other special ones. For people and rewards; nothing is trained on it.

        Say ``after`` which prompt it stands: tokenizers that mark the starts of words lose a first blank without it.
        """
        return self.rendering.decode(ids, after)

    # ------------------------------------------------------------------------------------------------------------- scoring

    def evaluate(self, *, prompt_ids: Tensor, prompt_length: Tensor, completion_ids: Tensor, completion_length: Tensor) -> Evaluation:
        """Log-probability, entropy and value of every completion token: ``[B, G, T]``, 0 behind a completion's end.

        ``prompt_ids [B, P]`` and ``completion_ids [B, G, T]`` are right-padded; ``value`` at a token is that of the text before it.
        """
        texts = prompt_ids, prompt_length, completion_ids, completion_length
        if (longest := int((prompt_length[:, None] + completion_length).max())) > self.context:
            raise self.too_long(longest)
        if not self.attention.packed:
            return plain.evaluate(self, *texts)
        row, weights = Packed.of(*texts), self.weights()
        hidden, head = self.run(row, weights)[row.predicts], self.head(weights)
        real = torch.arange(completion_ids.shape[-1], device=completion_ids.device) < completion_length[..., None]
        found = cast(Any, TokenLogProb).apply(hidden, head.weight, head.bias, completion_ids[real], head.scale, head.cap)
        found = {"log_prob": found[0], "entropy": found[1], **({"value": self.values(hidden)} if self.has_value else {})}
        return Evaluation(**{name: x.new_zeros(real.shape).masked_scatter(real, x) for name, x in found.items()})

    forward = evaluate

    def score(self, *, prompt_ids: Tensor, prompt_length: Tensor, completion_ids: Tensor, completion_length: Tensor) -> Tensor:
        """What the value head gives each whole completion ``[B, G]``: a reward model."""
        if self.body.value_head is None:
            raise UsageError("policy: a reward model needs a value head; make it with value_head=True")
        texts = prompt_ids, prompt_length, completion_ids, completion_length
        if (longest := int((prompt_length[:, None] + completion_length).max())) > self.context:
            raise self.too_long(longest)
        if not self.attention.packed:
            return plain.score(self, *texts)
        row = Packed.of(*texts, whole=True)
        return self.values(self.run(row, self.weights())[row.last])

    def too_long(self, longest: int) -> UsageError:
        """For texts that the model cannot see, or not as it sees shorter ones."""
        return UsageError(f"texts: {longest} tokens exceed the model's context of {self.context}{self.beyond}; shorten them")

    def values(self, hidden: Tensor) -> Tensor:
        """The value head, in float32."""
        head = self.body.value_head
        if head is None:
            raise UsageError("policy: it has no value head; make it with value_head=True")
        return nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias).squeeze(-1).float()

    def weights(self) -> dict[str, Tensor] | None:
        """The parameters cast to the compute precision, by name; None where they are in it already."""
        self.look_up_to(0)
        if all(p.dtype == self.compute_dtype for p in self.body.model.parameters()):
            return None
        exact = tuple(getattr(self.model, "_keep_in_fp32_modules_strict", None) or ())  # layers that lose their meaning when rounded
        return {
            name: p.to(self.compute_dtype) if p.is_floating_point() and not any(part in name.split(".") for part in exact) else p
            for name, p in self.body.named_parameters()
        }

    def head(self, weights: dict[str, Tensor] | None) -> Head:
        """The last layer in a pass with these weights; its scale holds the temperature."""
        layer = cast(Any, self.body.model).get_output_embeddings()
        rounded: dict[Any, Any] = {} if weights is None else {p: weights[name] for name, p in self.body.named_parameters()}
        bias = None if layer.bias is None else rounded.get(layer.bias, layer.bias)
        return Head(rounded.get(layer.weight, layer.weight), bias, self.logit_scale / self.temperature, self.logit_cap)

    def run(self, layout: Any, weights: dict[str, Tensor] | None) -> Any:
        """Last hidden states ``[N, H]`` of a packed row; logits and hidden states of a plain one."""
        return self.body(layout) if weights is None else torch.func.functional_call(self.body, weights, (layout,))
