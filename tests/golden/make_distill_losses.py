"""Writes distill_losses.json: losses and gradients of full logits by PyTorch, float64. Seed 7; torch 2.11.0.

usage: python make_distill_losses.py
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F

torch.manual_seed(7)
torch.set_default_dtype(torch.float64)
B, S, D_S, D_T, V = 2, 4, 5, 3, 11

student_hidden = torch.randn(B, S, D_S)
student_head = torch.randn(V, D_S) * 1.5
teacher_hidden = torch.randn(B, S, D_T)
teacher_head = torch.randn(V, D_T) * 2
targets = torch.randint(0, V, (B, S))
mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1]])

CASES = [
    dict(ce_weight=0.3, kd_weight=0.7, temperature=2.0),
    dict(kd_weight=1.0, temperature=1.0),
    dict(kd_weight=1.0, temperature=0.5, divergence="reverse_kl"),
    dict(ce_weight=0.2, kd_weight=0.8, temperature=3.0, divergence="jsd", jsd_beta=0.3),
    dict(mse_weight=1.0, mse_scale=0.4),
    dict(mse_weight=1.0, mse_scale=0.4, mse_centered=True),
    dict(label_weight=1.0, label_mix=0.25, temperature=2.0),
    dict(ce_weight=0.1, kd_weight=0.2, mse_weight=0.3, label_weight=0.4, label_mix=0.6, temperature=1.7, mse_scale=0.9),
]


def kl(log_p, log_q):
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def losses(case):
    hidden = student_hidden.clone().requires_grad_()
    s, t = hidden @ student_head.T, teacher_hidden @ teacher_head.T
    T, b = case.get("temperature", 1.0), case.get("jsd_beta", 0.5)
    log_q, log_p = F.log_softmax(s / T, -1), F.log_softmax(t / T, -1)
    kind = case.get("divergence", "forward_kl")
    if kind == "forward_kl":
        divergence = kl(log_p, log_q)
    elif kind == "reverse_kl":
        divergence = kl(log_q, log_p)
    else:
        log_m = torch.logsumexp(torch.stack([log_p + math.log(b), log_q + math.log(1 - b)]), 0)
        divergence = b * kl(log_p, log_m) + (1 - b) * kl(log_q, log_m)
    ce = F.cross_entropy(s.flatten(0, 1), targets.flatten(), reduction="none").view(B, S)
    r_s, r_t = s, t
    if case.get("mse_centered"):
        r_s, r_t = s - s.mean(-1, keepdim=True), t - t.mean(-1, keepdim=True)
    mix = case.get("label_mix", 0.0)
    soft = mix * F.one_hot(targets, V) + (1 - mix) * F.softmax(t, -1)
    parts = [
        ce,
        T * T * divergence,
        kl(F.log_softmax(t, -1), F.log_softmax(s, -1)),
        F.cross_entropy(t.flatten(0, 1), targets.flatten(), reduction="none").view(B, S),
        (s.argmax(-1) == t.argmax(-1)).double(),
        (r_s - case.get("mse_scale", 1.0) * r_t).square().mean(-1),
        F.cross_entropy(s.flatten(0, 1), soft.flatten(0, 1), reduction="none").view(B, S),
    ]
    sums = [(part * mask).sum() for part in parts]
    weights = [case.get(key, 0.0) for key in ("ce_weight", "kd_weight")] + [0, 0, 0] + [case.get(key, 0.0) for key in ("mse_weight", "label_weight")]
    sum(w * x for w, x in zip(weights, sums)).backward()
    return dict(options=case, sums=[x.item() for x in sums], gradient=hidden.grad.flatten().tolist())


golden = dict(
    made_by=f"make_distill_losses.py, torch {torch.__version__}, seed 7",
    sizes=dict(B=B, S=S, D_S=D_S, D_T=D_T, V=V),
    student_hidden=student_hidden.flatten().tolist(),
    student_head=student_head.flatten().tolist(),
    teacher_hidden=teacher_hidden.flatten().tolist(),
    teacher_head=teacher_head.flatten().tolist(),
    targets=targets.flatten().tolist(),
    mask=mask.flatten().tolist(),
    cases=[losses(case) for case in CASES],
)
pathlib.Path(__file__).with_name("distill_losses.json").write_text(json.dumps(golden) + "\n")
