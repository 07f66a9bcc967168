"""Tiny random teachers saved by transformers, with what transformers computes for them.

Writes tests/golden/teacher/<name>/{config.json, model.safetensors, expected.safetensors}, and for the real model of
share/models/stories260K its greedy continuation of nothing (checked against expected_greedy.txt there) and the loss of every
token of it: teacher/stories260K.safetensors. Made with torch 2.11.0 and
transformers 5.23.0 on a CPU, float32, eager attention; seed 7. expected.safetensors holds, for `tokens` [B, S]:
  hidden.N     state after layer N, before the final norm         attention.N  output of layer N's attention, after o_proj
  last_hidden  after the final norm                               logits
  padded_last_hidden                                              the same with rows cut to `lengths` by an attention mask
  documents_last_hidden                                           every document run alone; `is_start` marks where they begin
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

SEED = 7
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
MODELS = {
    "llama": ("llama", dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                            num_key_value_heads=2, tie_word_embeddings=True, rms_norm_eps=1e-5, max_position_embeddings=64)),
    "llama3_odd": ("llama", dict(vocab_size=37, hidden_size=15, intermediate_size=21, num_hidden_layers=3, num_attention_heads=3,
                                 num_key_value_heads=1, head_dim=10, attention_bias=True, mlp_bias=True, max_position_embeddings=128,
                                 rope_parameters=dict(rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0,
                                                      high_freq_factor=4.0, original_max_position_embeddings=16))),
    "llama_linear": ("llama", dict(vocab_size=23, hidden_size=12, intermediate_size=13, num_hidden_layers=1, num_attention_heads=2,
                                   max_position_embeddings=64, rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=3.0))),
    "qwen2_yarn": ("qwen2", dict(vocab_size=31, hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
                                 num_key_value_heads=1, tie_word_embeddings=True, max_position_embeddings=64, use_sliding_window=False,
                                 rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=4.0,
                                                      original_max_position_embeddings=16))),
    "qwen3": ("qwen3", dict(vocab_size=29, hidden_size=14, intermediate_size=19, num_hidden_layers=2, num_attention_heads=4,
                            num_key_value_heads=2, head_dim=6, attention_bias=True, max_position_embeddings=64,
                            rope_parameters=dict(rope_type="default", rope_theta=1e6))),
}


def random_model(family, settings, seed=SEED):
    """Weights large enough that every part matters: at the usual 0.02, attention is nearly uniform."""
    config_class, model_class = FAMILIES[family]
    config = config_class(attn_implementation="eager", bos_token_id=0, eos_token_id=0, **settings)
    model = model_class(config).to(torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * 1.5 / parameter.shape[1] ** 0.5)
    return model


@torch.no_grad()
def last_hidden(model, tokens, **arguments):
    return model.model(tokens, use_cache=False, **arguments).last_hidden_state


@torch.no_grad()
def expected_outputs(model, tokens):
    """Outputs for tokens [B, S] by name, hooks on the layers give their states."""
    outputs, hooks = {}, []
    for index, layer in enumerate(model.model.layers):
        def keep(_, __, output, key=f"hidden.{index}"):
            outputs[key] = (output[0] if isinstance(output, tuple) else output).detach().clone()

        def keep_attention(_, __, output, key=f"attention.{index}"):
            outputs[key] = output[0].detach().clone()

        hooks += [layer.register_forward_hook(keep), layer.self_attn.register_forward_hook(keep_attention)]
    outputs["last_hidden"] = last_hidden(model, tokens)
    for hook in hooks:
        hook.remove()
    outputs["logits"] = model.lm_head(outputs["last_hidden"])
    outputs["tokens"] = tokens
    return outputs


def padded_outputs(model, tokens, lengths):
    mask = (torch.arange(tokens.shape[1])[None] < lengths[:, None]).long()
    return {"lengths": lengths, "padded_last_hidden": last_hidden(model, tokens, attention_mask=mask) * mask[..., None]}


def document_outputs(model, tokens, is_start):
    result = torch.zeros(*tokens.shape, model.config.hidden_size)
    for row in range(tokens.shape[0]):
        begins = [0] + [s for s in range(1, tokens.shape[1]) if is_start[row, s]] + [tokens.shape[1]]
        for begin, end in zip(begins, begins[1:]):
            result[row, begin:end] = last_hidden(model, tokens[row : row + 1, begin:end])[0]
    return {"is_start": is_start.to(torch.uint8), "documents_last_hidden": result}


def all_outputs(model, batch, length, seed=SEED):
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = torch.randint(0, model.config.vocab_size, (batch, length), generator=generator)
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    is_start = torch.rand(batch, length, generator=generator) < 0.25
    is_start[:, 0] = True
    return {**expected_outputs(model, tokens), **padded_outputs(model, tokens, lengths), **document_outputs(model, tokens, is_start)}


@torch.no_grad()
def stories_outputs(directory):
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    text = (directory / "expected_greedy.txt").read_text()
    tokens = [1]
    while len(tokens) <= 200:  # BOS and 200 steps
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    if tokenizer.decode(tokens).strip() != text.strip():
        raise SystemExit(f"the greedy text is not expected_greedy.txt:\n{tokenizer.decode(tokens)}")
    tokens = torch.tensor([tokens])
    nll = torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:], reduction="none")
    return {"tokens": tokens, "nll": nll[None]}


def main():
    torch.set_num_threads(1)
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "teacher")
    for name, (family, settings) in MODELS.items():
        model = random_model(family, settings)
        model.save_pretrained(root / name)
        (root / name / "generation_config.json").unlink(missing_ok=True)
        outputs = all_outputs(model, batch=2, length=9)
        save_file({key: value.contiguous() for key, value in outputs.items()}, root / name / "expected.safetensors")
    stories = pathlib.Path(__file__).parents[2] / "share/models/stories260K"
    save_file(stories_outputs(stories), root / "stories260K.safetensors")


if __name__ == "__main__":
    main()
