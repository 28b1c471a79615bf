#include "backends/meta/trace.h"

#include <algorithm>

namespace fathom::meta {

const char* op_name(OpKind kind) {
  static constexpr const char* names[kOpKindCount] = {
      "embed",      "gather_rows",    "copy",       "add",        "expand_streams", "rms_norm",   "layer_norm",
      "linear",     "grouped_linear", "rotary",     "rope",       "cache_write",    "attention",  "index_select",
      "compress",   "swiglu",         "gelu",       "route",      "experts",        "hyper_mix",  "hyper_merge",
      "hyper_head", "cross_entropy",  "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "zero"};
  return names[static_cast<int>(kind)];
}

Rate& Rate::operator+=(const Rate& other) {
  per_token += other.per_token;
  per_output += other.per_output;
  fixed += other.fixed;
  return *this;
}

Rate operator*(const Rate& rate, double factor) {
  return {rate.per_token * factor, rate.per_output * factor, rate.fixed * factor};
}

double Peak::at(double tokens, double outputs) const {
  double best = 0;
  for (const Rate& rate : candidates) best = std::max(best, rate.at(tokens, outputs));
  return best;
}

namespace {
bool dominates(const Rate& a, const Rate& b) {
  return a.per_token >= b.per_token && a.per_output >= b.per_output && a.fixed >= b.fixed;
}
}  // namespace

Peak live_peak(const Trace& trace, Rate* held) {
  Peak peak;
  Rate live;
  std::vector<char> mine(trace.buffers.size(), 0);
  for (const MemoryEvent& event : trace.events) {
    if (event.allocate) mine[event.buffer] = 1;
    if (!mine[event.buffer]) continue;
    live += trace.buffers[event.buffer].bytes * (event.allocate ? 1.0 : -1.0);
    if (!event.allocate) continue;
    if (std::any_of(peak.candidates.begin(), peak.candidates.end(), [&](const Rate& r) { return dominates(r, live); }))
      continue;
    std::erase_if(peak.candidates, [&](const Rate& r) { return dominates(live, r); });
    peak.candidates.push_back(live);
  }
  if (held != nullptr) *held = live;
  return peak;
}

}  // namespace fathom::meta
