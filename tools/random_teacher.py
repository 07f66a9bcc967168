"""Writes a Hugging Face directory with a teacher's geometry and random weights: speed and memory do not depend on the values.

usage: python tools/random_teacher.py CONFIG_JSON OUTPUT [--tokenizer TOKENIZER_JSON] [--dtype bfloat16]
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("config", type=Path)
parser.add_argument("output", type=Path)
parser.add_argument("--tokenizer", type=Path)
parser.add_argument("--dtype", default="bfloat16")
args = parser.parse_args()
torch.manual_seed(0)
torch.set_default_dtype(getattr(torch, args.dtype))
config = AutoConfig.for_model(**json.loads(args.config.read_text()))
model = AutoModelForCausalLM.from_config(config)
args.output.mkdir(parents=True, exist_ok=True)
tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if not (config.tie_word_embeddings and name == "lm_head.weight")}
save_file(tensors, args.output / "model.safetensors", metadata={"format": "pt"})
shutil.copy(args.config, args.output / "config.json")
if args.tokenizer:
    shutil.copy(args.tokenizer, args.output / "tokenizer.json")
print(args.output, sum(t.numel() for t in tensors.values()) / 1e6, "M parameters")
