"""Golden values of one mid-size student in float64, from the PyPI package `xlstm` 2.0.6 (torch 2.11.0): tests/golden/student.safetensors.

  python tests/golden/make_student.py

Both kinds of block, biases everywhere, odd sizes. The file holds every parameter in float32 (the model runs with them widened to float64)
in the layout of the vanilla backend, tokens, targets, and in float64: logits, hidden states, loss, the norm of every gradient, the logits
of the token-by-token form and its final states. `config.json` of the package goes into the metadata.
"""

import json
import pathlib
import sys
import types
from dataclasses import asdict

sys.modules.setdefault("omegaconf", types.SimpleNamespace(OmegaConf=object))

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from xlstm import (FeedForwardConfig, mLSTMBlockConfig, mLSTMLayerConfig, sLSTMBlockConfig, sLSTMLayerConfig)  # noqa: E402
from xlstm.xlstm_lm_model import xLSTMLMModel, xLSTMLMModelConfig  # noqa: E402

SEED = 20261122


def make_config(*, vocab_size, embedding_dim, num_blocks, slstm_at, num_heads, context_length, qkv_proj_blocksize=4, mlstm_heads=None,
                slstm_kernel=4, mlstm_kernel=4, proj_factor=2.0, ffn_factor=1.7, multiple=64, act_fn="gelu", bias=False, ffn_bias=False,
                post_norm=True, tie=False, feedforward=True, backend="vanilla", bias_init="powerlaw_blockdependent"):
    rounding = dict(round_proj_up_to_multiple_of=multiple)
    return xLSTMLMModelConfig(
        mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(
            num_heads=mlstm_heads or num_heads, conv1d_kernel_size=mlstm_kernel, qkv_proj_blocksize=qkv_proj_blocksize,
            proj_factor=proj_factor, **rounding)),
        slstm_block=sLSTMBlockConfig(
            slstm=sLSTMLayerConfig(backend=backend, num_heads=num_heads, conv1d_kernel_size=slstm_kernel, bias_init=bias_init,
                                   dtype="float32"),
            feedforward=FeedForwardConfig(proj_factor=ffn_factor, act_fn=act_fn, bias=ffn_bias, **rounding) if feedforward else None),
        context_length=context_length, num_blocks=num_blocks, embedding_dim=embedding_dim, slstm_at=slstm_at, vocab_size=vocab_size,
        bias=bias, add_post_blocks_norm=post_norm, tie_weights=tie)


def random_model(config, seed, scale=0.15):
    """Reset as the package does, then every parameter moved away from its special value; float32 values in a float64 model."""
    torch.manual_seed(seed)
    model = xLSTMLMModel(config)
    model.reset_parameters()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    return model.double()


def step_states(model, tokens, num_steps):
    """{name: tensor} after `num_steps` single tokens, named and shaped as tests/tools/student_dump.cpp writes them, and the logits."""
    state, logits = None, []
    for t in range(num_steps):
        out, state = model.step(tokens[:, t:t + 1], state)
        logits.append(out)
    tensors = {"step_logits": torch.cat(logits, dim=1)}
    for index, block in enumerate(model.xlstm_block_stack.blocks):
        entry = state[f"block_{index}"]
        if "slstm_state" in entry:
            heads = model.config.slstm_block.slstm.num_heads
            for name, value in zip("ycnm", entry["slstm_state"]):
                tensors[f"state.{index}.{name}"] = value.view(value.shape[0], heads, -1)
        else:
            cell, normalizer, stabilizer = entry["mlstm_state"]
            tensors[f"state.{index}.C"] = cell
            tensors[f"state.{index}.n"] = normalizer.squeeze(-1)
            tensors[f"state.{index}.m"] = stabilizer.flatten(1)
        if entry.get("conv_state") is not None:
            tensors[f"state.{index}.conv"] = entry["conv_state"][0][:, 1:]  # the package keeps one more input than is needed
    return tensors


def outputs(model, tokens, targets, num_steps):
    hidden = {}
    handles = [block.register_forward_hook(lambda _m, _i, out, index=index: hidden.__setitem__(f"hidden.{index}", out))
               for index, block in enumerate(model.xlstm_block_stack.blocks)]
    stack = model.xlstm_block_stack.register_forward_hook(lambda _m, _i, out: hidden.__setitem__("last_hidden", out))
    model.zero_grad()
    logits = model(tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    for handle in handles + [stack]:
        handle.remove()
    result = {"logits": logits, "loss": loss.reshape(1), **hidden}
    result.update({f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()})
    with torch.no_grad():
        result.update(step_states(model, tokens, num_steps))
    return {name: tensor.detach().clone().contiguous() for name, tensor in result.items()}


def main():
    config = make_config(vocab_size=37, embedding_dim=24, num_blocks=4, slstm_at=[1, 2], num_heads=3, context_length=19, mlstm_heads=4,
                         qkv_proj_blocksize=3, slstm_kernel=3, mlstm_kernel=5, proj_factor=1.6, ffn_factor=1.4, multiple=12, act_fn="swish",
                         bias=True, ffn_bias=True)
    model = random_model(config, SEED)
    tokens = torch.randint(37, (2, 19))
    targets = torch.randint(37, (2, 19))
    result = outputs(model, tokens, targets, num_steps=19)
    tensors = {"tokens": tokens, "targets": targets}
    tensors.update({f"parameter.{name}": value.float().contiguous() for name, value in model.state_dict().items()})
    for name, value in result.items():
        tensors[name.replace("grad.", "grad_norm.")] = value.norm().reshape(1) if name.startswith("grad.") else value
    path = pathlib.Path(__file__).with_name("student.safetensors")
    save_file(tensors, path, metadata={"config": json.dumps(asdict(config)), "versions": "xlstm 2.0.6, torch 2.11.0", "seed": str(SEED)})
    print(path, path.stat().st_size, "bytes, loss", float(result["loss"]))


if __name__ == "__main__":
    main()
