// Verify: our logits and greedy continuations against a reference of the same checkpoint (reference.safetensors beside
// it, as transformers gave it: input_ids.i, logits.i, greedy.i).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/files.h"
#include "measure/offload.h"
#include "measure/ranks.h"

namespace fathom::measure {

struct VerifyOptions {
  std::string device = "cpu";
  std::string weights = "native";   // precision of weights in memory: native, f32, bf16, f16
  std::string activations = "f32";  // reference also takes f64
  std::string kv = "f32";           // cache: f32, f16, bf16, fp8, int8; auto: f32
  std::optional<double> atol;       // largest logit difference that passes; nothing: 1e-3, or any with a cache
                                    // narrower than f32, with which greedy answers may differ too
  std::int64_t chunk = 16;          // tokens a pass when prompts are computed in chunks
  std::string isa;                  // cpu only
  int threads = 0;
  RankWishes ranks;
  OffloadWishes offload;
  Path trace;  // "": none
};

/// One prompt computed in one way.
struct VerifyCase {
  std::int64_t prompt = 0;  // i of input_ids.i
  std::string way;          // "whole", "chunks", "tokens"
  std::int64_t tokens = 0;
  double worst = 0;  // largest |ours - reference|; NaN when either is
  std::int64_t worst_token = 0, worst_id = 0;
  std::int64_t greedy_tokens = 0;       // compared
  std::int64_t greedy_differs_at = -1;  // first place of difference; -1: equal
  bool passed = false;
};

struct VerifyReport {
  std::string device;  // description of the backend
  engine::Spread spread;
  bool followed = false;  // this process followed another's rank 0, which has the report
  std::optional<OffloadReport> offload;
  Bytes fetched_bytes = 0;      // that were streamed to the device
  std::int64_t host_calls = 0;  // experts' ops that the host computed
  std::vector<VerifyCase> cases;
  double worst = 0;      // over all; NaN counts as the worst
  double tolerance = 0;  // infinity: the difference is told, and only one that is no number fails
  std::string kv;        // the cache's type
  bool passed = false;
};

/// `folder` holds config.json, the weights and reference.safetensors. Errors: what cannot be read; reference tensors
/// that are missing, misshapen, or of another type (input_ids, greedy i32 or i64 [n]; logits f32 [n, vocabulary]).
Result<VerifyReport> verify(const Path& folder, const VerifyOptions& options);

}  // namespace fathom::measure
