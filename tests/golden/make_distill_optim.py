"""Writes distill_optim.json: ten steps of torch.optim.AdamW with clipping, and transformers' learning-rate schedules. Seed 11;
torch 2.11.0, transformers 5.23.

usage: python make_distill_optim.py
"""

import json
import math
import pathlib

import torch
import transformers

torch.manual_seed(11)
shapes = {"blocks.0.weight": [3, 5], "blocks.0.bias": [7], "post_norm.weight": [4]}
parameters = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
start = {name: p.detach().flatten().tolist() for name, p in parameters.items()}
optimizer = torch.optim.AdamW(
    [
        dict(params=[parameters["blocks.0.weight"]], weight_decay=0.1),
        dict(params=[parameters["blocks.0.bias"], parameters["post_norm.weight"]], weight_decay=0.0),
    ],
    lr=1e-2,
    betas=(0.9, 0.95),
    eps=1e-6,
)
steps = []
for step in range(10):
    grads = {name: torch.randn(shape) * (3.0 if step % 3 == 0 else 0.05) for name, shape in shapes.items()}
    for name, parameter in parameters.items():
        parameter.grad = grads[name].clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 / (1 + step)
    optimizer.step()
    steps.append(
        dict(
            gradients={name: grad.flatten().tolist() for name, grad in grads.items()},
            norm=norm.item(),
            parameters={name: p.detach().flatten().tolist() for name, p in parameters.items()},
        )
    )
state = {name: {key: optimizer.state[p][key].flatten().tolist() for key in ("exp_avg", "exp_avg_sq")} for name, p in parameters.items()}

rates = []
for name, make in (
    ("cosine", transformers.get_cosine_schedule_with_warmup),
    ("linear", transformers.get_linear_schedule_with_warmup),
    ("constant", lambda o, warmup, total: transformers.get_constant_schedule_with_warmup(o, warmup)),
):
    for total, warmup_ratio in ((20, 0.1), (31, 0.25), (7, 0.0)):
        dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        warmup = math.ceil(total * warmup_ratio)  # as TrainingArguments.get_warmup_steps
        schedule = make(dummy, warmup, total)
        factors = []
        for _ in range(total):
            factors.append(schedule.get_last_lr()[0])
            dummy.step()
            schedule.step()
        rates.append(dict(schedule=name, total_steps=total, warmup_ratio=warmup_ratio, factors=factors))

golden = dict(
    made_by=f"make_distill_optim.py, torch {torch.__version__}, transformers {transformers.__version__}, seed 11",
    shapes=shapes,
    start=start,
    steps=steps,
    state=state,
    rates=rates,
)
pathlib.Path(__file__).with_name("distill_optim.json").write_text(json.dumps(golden) + "\n")
