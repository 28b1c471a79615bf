// The figures of profiles and curves by name, for the reader of data files and for the fit (bench/plan_fidelity).
// A visitor is called as visitor("lowering.graphs", value) for each field.
#pragma once
#include "plan/cost_curves.h"
#include "plan/engine_profile.h"

namespace fathom::plan {

template <class Visitor>
void visit_precisions(std::string_view prefix, std::array<double, hardware::kPrecisionCount>& values,
                      Visitor&& visitor) {
  for (int i = 0; i < hardware::kPrecisionCount; ++i)
    visitor(std::string(prefix) + "." + std::string(hardware::precision_name(static_cast<hardware::Precision>(i))),
            values[static_cast<std::size_t>(i)]);
}

template <class Visitor>
void visit_fields(DeviceCurves& c, Visitor&& v) {
  v("id", c.id), v("arch", c.arch), v("base", c.base), v("hbm", c.hbm), v("sources", c.sources),
      v("measured", c.measured);
  v("stream", c.stream), v("kernel_floor", c.kernel_floor), v("small_floor", c.small_floor), v("blend", c.blend);
  visit_precisions("gemm", c.gemm, v);
  v("attention", c.attention), v("attention_half", c.attention_half), v("attention_backward", c.attention_backward);
  v("cache_stream", c.cache_stream), v("elementwise", c.elementwise), v("expert_stream", c.expert_stream),
      v("expert_gemm", c.expert_gemm);
  v("host", c.host), v("pcie", c.pcie);
}

template <class Visitor>
void visit_fields(LinkCurves& c, Visitor&& v) {
  v("kind", c.kind), v("direct_seconds", c.direct_seconds), v("direct_rank_seconds", c.direct_rank_seconds),
      v("direct_share", c.direct_share);
  v("ring_seconds", c.ring_seconds), v("ring_rank_seconds", c.ring_rank_seconds), v("ring_share", c.ring_share);
  v("all_to_all_share", c.all_to_all_share), v("send_share", c.send_share);
}

template <class Visitor>
void visit_fields(EngineProfile& p, Visitor&& v) {
  v("name", p.name), v("aliases", p.aliases), v("base", p.base), v("default_for", p.default_for), v("serves", p.serves),
      v("trains", p.trains), v("chats", p.chats);
  v("measured", p.measured), v("own_kernels", p.own_kernels), v("sources", p.sources), v("scheduler", p.scheduler);
  v("max_batched_tokens", p.max_batched_tokens), v("prefill_chunk", p.prefill_chunk);
  Lowering& l = p.lowering;
  v("lowering.fuse_qkv", l.fuse_qkv), v("lowering.fuse_gate_up", l.fuse_gate_up),
      v("lowering.fuse_residual_norm", l.fuse_residual_norm);
  v("lowering.fuse_rope_cache", l.fuse_rope_cache), v("lowering.graphs", l.graphs),
      v("lowering.graph_batch", l.graph_batch);
  v("lowering.norm_kernels", l.norm_kernels), v("lowering.rope_kernels", l.rope_kernels),
      v("lowering.activation_kernels", l.activation_kernels);
  v("lowering.attention_kernels", l.attention_kernels), v("lowering.experts_kernels", l.experts_kernels),
      v("lowering.quantize_kernels", l.quantize_kernels);
  v("lowering.expert_launches", l.expert_launches), v("lowering.other_kernels", l.other_kernels),
      v("lowering.sampler_bytes", l.sampler_bytes);
  HostCosts& h = p.host;
  v("host.launch", h.launch), v("host.step", h.step), v("host.sequence", h.sequence),
      v("host.prompt_token", h.prompt_token);
  v("host.request", h.request), v("host.overlapped", h.overlapped);
  TrainingSchedule& t = p.training;
  v("training.gradient_overlap", t.gradient_overlap), v("training.gather_overlap", t.gather_overlap),
      v("training.tensor_overlap", t.tensor_overlap);
  v("training.expert_overlap", t.expert_overlap), v("training.pipeline_overlap", t.pipeline_overlap),
      v("training.step_host", t.step_host);
  v("training.layer_host", t.layer_host), v("training.sequence_parallel", t.sequence_parallel),
      v("training.partial_recompute", t.partial_recompute), v("training.optimizer_passes", t.optimizer_passes),
      v("training.gradient_product", t.gradient_product);
  v("training.elementwise_passes", t.elementwise_passes), v("training.adapter_passes", t.adapter_passes);
  visit_precisions("gemm", p.gemm, v);
  v("unpack_gemm", p.unpack_gemm), v("unpack_stream", p.unpack_stream), v("attention_prefill", p.attention_prefill);
  v("attention_decode", p.attention_decode), v("latent_decode", p.latent_decode), v("experts", p.experts),
      v("small_kernel", p.small_kernel);
  v("product_kernel", p.product_kernel), v("all_reduce", p.all_reduce), v("burst", p.burst), v("spread", p.spread);
  v("expert_independence", p.expert_independence), v("expert_spill", p.expert_spill),
      v("expert_imbalance", p.expert_imbalance);
  v("poll_steps", p.poll_steps), v("reserves_output", p.reserves_output), v("replica_stalls", p.replica_stalls),
      v("replica_wait_steps", p.replica_wait_steps);
  v("offline_step", p.offline_step), v("packed_launch", p.packed_launch);
}

}  // namespace fathom::plan
