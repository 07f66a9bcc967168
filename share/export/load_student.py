"""Opens this directory with the PyPI package `xlstm` (2.0.6): python load_student.py [DIRECTORY] [--text "Once upon a time"]

    from load_student import load_student
    model, tokenizer = load_student(".")          # an xlstm.xLSTMLMModel with every weight loaded (strict), a tokenizers.Tokenizer
    logits = model(token_ids)                     # (batch, sequence) int64 -> (batch, sequence, vocabulary)

Needs: pip install xlstm==2.0.6 safetensors tokenizers
"""
import argparse
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.modules.setdefault("omegaconf", types.SimpleNamespace(OmegaConf=object))  # the package imports it, only its examples use it
from xlstm import (FeedForwardConfig, mLSTMBlockConfig, mLSTMLayerConfig, sLSTMBlockConfig, sLSTMLayerConfig, xLSTMLMModel,
                   xLSTMLMModelConfig)


def pick(config, cls):
    """The entries of a JSON object that are fields which a user sets (underscored ones are derived by the package)."""
    return {k: v for k, v in (config or {}).items() if k in cls.__dataclass_fields__ and not k.startswith("_") and not isinstance(v, dict)}


def build_config(config, backend):
    mlstm_block = slstm_block = None
    if config.get("mlstm_block"):
        mlstm_block = mLSTMBlockConfig(mlstm=mLSTMLayerConfig(**pick(config["mlstm_block"]["mlstm"], mLSTMLayerConfig)))
    if config.get("slstm_block"):
        layer = {**pick(config["slstm_block"]["slstm"], sLSTMLayerConfig), "backend": backend}
        if backend == "vanilla":
            layer.update(dtype="float32", enable_automatic_mixed_precision=False)
        ffn = config["slstm_block"].get("feedforward")
        slstm_block = sLSTMBlockConfig(slstm=sLSTMLayerConfig(**layer),
                                       feedforward=FeedForwardConfig(**pick(ffn, FeedForwardConfig)) if ffn else None)
    top = {k: v for k, v in pick(config, xLSTMLMModelConfig).items() if k not in ("mlstm_block", "slstm_block")}
    return xLSTMLMModelConfig(mlstm_block=mlstm_block, slstm_block=slstm_block, **top)


def to_vanilla(state):
    """Recurrent matrices and biases stored as the package's `cuda` backend has them, reordered for its `vanilla` one."""
    for name in [n for n in state if n.endswith("_recurrent_kernel_")]:
        r = state[name]
        heads, rows, columns = r.shape
        if columns != 4 * rows:
            continue
        state[name] = r.reshape(heads, rows, 4, rows).permute(0, 2, 3, 1).reshape(heads, 4 * rows, rows).contiguous()
        bias = name.replace("_recurrent_kernel_", "_bias_")
        state[bias] = state[bias].reshape(heads, 4, rows).permute(1, 0, 2).reshape(-1).contiguous()
    return state


def load_student(directory=".", backend="vanilla"):
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text())
    state = load_file(directory / "model.safetensors")
    state.setdefault("lm_head.weight", state["token_embedding.weight"])
    if backend == "vanilla":
        state = to_vanilla(state)
    model = xLSTMLMModel(build_config(config, backend)).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)
    tokenizer = None
    if (directory / "tokenizer.json").exists():
        from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return model, tokenizer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", nargs="?", default=Path(__file__).resolve().parent)
    parser.add_argument("--text", default="Once upon a time")
    parser.add_argument("--tokens", type=int, default=40)
    args = parser.parse_args()
    student, tokenizer = load_student(args.directory)
    ids = tokenizer.encode(args.text).ids
    with torch.no_grad():
        for _ in range(args.tokens):
            window = ids[-student.config.context_length:]
            ids.append(int(student(torch.tensor([window]))[0, -1].argmax()))
    print(tokenizer.decode(ids))
