#!/usr/bin/env python3
"""Golden fixture of DeepSeek-MoE-16B's architecture (model_type "deepseek"), which transformers does not ship.

usage: make_golden_moe.py OUTDIR [SEED]

Attention, norms and rotary embedding are transformers' Llama; the mixture of experts follows the published
modeling_deepseek.py of deepseek-ai/deepseek-moe-16b-base: softmax over all routed experts, the top k kept (renormalised only
with norm_topk_prob), shared experts of n_shared_experts times the width beside them, dense layers before
first_k_dense_replace. Needs torch, transformers and safetensors.
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM


class Ffn(torch.nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.gate_proj = torch.nn.Linear(hidden, inner, bias=False)
        self.up_proj = torch.nn.Linear(hidden, inner, bias=False)
        self.down_proj = torch.nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Mixture(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.top_k, self.normalize = c["num_experts_per_tok"], c["norm_topk_prob"]
        self.gate = torch.nn.Linear(c["hidden_size"], c["n_routed_experts"], bias=False)
        self.experts = torch.nn.ModuleList(Ffn(c["hidden_size"], c["moe_intermediate_size"]) for _ in range(c["n_routed_experts"]))
        self.shared_experts = Ffn(c["hidden_size"], c["moe_intermediate_size"] * c["n_shared_experts"])

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(flat).softmax(-1).topk(self.top_k, dim=-1)
        if self.top_k > 1 and self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        out = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            token, place = (chosen == e).nonzero(as_tuple=True)
            if token.numel():
                out.index_add_(0, token, expert(flat[token]) * weights[token, place, None])
        return (out + self.shared_experts(flat)).view_as(x)


def main():
    out, seed = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 7
    g = torch.Generator().manual_seed(seed)
    config = dict(model_type="deepseek", architectures=["DeepseekForCausalLM"], vocab_size=512, hidden_size=64, intermediate_size=192, moe_intermediate_size=48, num_hidden_layers=3,
                  num_attention_heads=4, num_key_value_heads=4, n_shared_experts=2, n_routed_experts=8, num_experts_per_tok=3, first_k_dense_replace=1, moe_layer_freq=1,
                  norm_topk_prob=seed % 2 == 0, scoring_func="softmax", aux_loss_alpha=0.001, seq_aux=True, hidden_act="silu", max_position_embeddings=256, rms_norm_eps=1e-6, rope_theta=10000.0,
                  rope_scaling=None, attention_bias=False, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, torch_dtype="float32")
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta")
    llama = LlamaConfig(**{k: config[k] for k in keys})
    llama._attn_implementation = "eager"
    model = LlamaForCausalLM(llama).float().eval()
    for index, layer in enumerate(model.model.layers):
        if index >= config["first_k_dense_replace"] and index % config["moe_layer_freq"] == 0:
            layer.mlp = Mixture(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=g)
            if p.dim() == 1:
                p.copy_(1 + 0.1 * r)
            else:
                p.copy_(r if "embed_tokens" in name else r * (2.0 if "lm_head" in name else 1.2) / p.shape[-1] ** 0.5)
        reference = {}
        for i, length in enumerate((7, 45, 150)):
            ids = torch.randint(2, config["vocab_size"], (1, length), generator=g)
            reference[f"logits.{i}"] = model(ids, use_cache=False).logits[0].float().contiguous()
            text = ids
            for _ in range(16):
                text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], 1)
            reference[f"input_ids.{i}"] = ids[0].to(torch.int32)
            reference[f"greedy.{i}"] = text[0, length:].to(torch.int32).contiguous()
    os.makedirs(out, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, f"{out}/model.safetensors", metadata={"format": "pt"})
    save_file(reference, f"{out}/reference.safetensors")
    with open(f"{out}/config.json", "w") as f:
        json.dump(config, f, indent=2)


if __name__ == "__main__":
    main()
