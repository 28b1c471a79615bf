#include "plan/cost_units.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace fathom::plan {
namespace {

using meta::OpKind;
using meta::OpRecord;
using meta::Rate;

constexpr std::uint64_t kF32 = 4;

bool is_row_norm(const OpRecord& op) { return op.kind == OpKind::kRmsNorm && op.rows.per_token <= 1 && op.output != 0; }
bool reads(const OpRecord& op, std::uint32_t buffer) {
  return std::find(op.inputs.begin(), op.inputs.end(), buffer) != op.inputs.end();
}
Rate traffic(const OpRecord& op) {
  Rate bytes = op.read_bytes;
  bytes += op.written_bytes;
  return bytes;
}

/// Finds the sequences that tables are of, in the order of the calls.
class Grouper {
 public:
  Grouper(const meta::Trace& trace, double repeats, const LowerInputs& in, const Layout& layout,
          const Calibration& calibration, bool head, UnitProgram& program)
      : ops_(trace.ops),
        repeats_(static_cast<float>(repeats)),
        in_(in),
        layout_(layout),
        calibration_(calibration),
        head_(head),
        program_(program) {}

  void run() {
    for (std::size_t i = 0; i < ops_.size();) {
      const std::size_t next = group(i);
      i = next;
    }
    if (rest_.ops.empty()) return;
    const double before = program_.rest.launches;
    lower_trace(rest_, repeats_, in_, head_, program_.rest);
    program_.ops += program_.rest.launches - before;
  }

 private:
  std::size_t group(std::size_t i) {
    const OpRecord& op = ops_[i];
    switch (op.kind) {
      case OpKind::kRmsNorm:
        if (is_row_norm(op) && i + 1 < ops_.size() && ops_[i + 1].kind == OpKind::kLinear &&
            ops_[i + 1].inputs[0] == op.output)
          return products(i, i + 1);
        return rows(i);
      case OpKind::kLinear:
        return products(i, i);
      case OpKind::kGroupedLinear:
        return grouped(i);
      case OpKind::kAttention:
        return attention(i);
      case OpKind::kExperts:
        return experts(i);
      case OpKind::kRoute:
        return route(i);
      case OpKind::kRope:
      case OpKind::kCacheWrite:
      case OpKind::kCopy:
      case OpKind::kLayerNorm:
        return rows(i);
      case OpKind::kAllReduce:
        return all_reduce(i);
      case OpKind::kEmbed:
      case OpKind::kGatherRows:
      case OpKind::kAdd:
      case OpKind::kRotary:
      case OpKind::kExpandStreams:
      case OpKind::kSwiglu:
      case OpKind::kGelu:
        return elementwise(i);
      default:
        return leave(i);
    }
  }

  std::size_t leave(std::size_t i) {
    rest_.ops.push_back(ops_[i]);
    return i + 1;
  }

  Unit& add(Family family, const MeasuredTable* table, std::size_t ops) {
    Unit unit;
    unit.family = family;
    unit.table = table;
    unit.repeats = repeats_;
    unit.ops = static_cast<std::uint32_t>(ops);
    program_.ops += static_cast<double>(ops) * static_cast<double>(repeats_);
    program_.units.push_back(unit);
    return program_.units.back();
  }

  double element_bytes(const OpRecord& op) const {
    if (op.weight_elements == 0) return 2;
    if (in_.bytes != nullptr && op.weight_class >= 0 &&
        in_.bytes->per_element[static_cast<std::size_t>(op.weight_class)] > 0)
      return in_.bytes->per_element[static_cast<std::size_t>(op.weight_class)];
    return static_cast<double>(op.weight_bytes) / static_cast<double>(op.weight_elements);
  }
  const MeasuredTable* weights_table(Family family, const OpRecord& op) const {
    std::string_view name = in_.weights != nullptr ? std::string_view(in_.weights->name) : std::string_view();
    if (in_.weights == nullptr || in_.weights->native) name = tensor::weight_format_name(op.weight_format);
    return calibration_.find_like(family, element_bytes(op), name.substr(0, name.find('_')));
  }

  /// Products of one x from `first` on, with the norm before them (at `i` < first) and the gate or the sum that
  /// follows.
  std::size_t products(std::size_t i, std::size_t first) {
    std::size_t end = first + 1;
    const OpRecord& one = ops_[first];
    while (end < ops_.size() && ops_[end].kind == OpKind::kLinear && ops_[end].inputs[0] == one.inputs[0] &&
           one.inputs[0] != 0 && ops_[end].k == one.k && ops_[end].in_place == one.in_place &&
           std::abs(element_bytes(ops_[end]) - element_bytes(one)) < 1e-9)
      ++end;
    const bool normed = first > i;
    const bool gated = end - first >= 2 && end < ops_.size() && ops_[end].kind == OpKind::kSwiglu &&
                       ops_[end - 2].n == ops_[end - 1].n && reads(ops_[end], ops_[end - 2].output) &&
                       reads(ops_[end], ops_[end - 1].output);
    if (gated && end - first > 2) end -= 2;  // what shares the gate's x and is none of it comes first
    const bool gates = gated && end < ops_.size() && ops_[end].kind == OpKind::kSwiglu;
    const bool sum = !normed && !gates && end - first == 1 && !one.in_place && end < ops_.size() &&
                     ops_[end].kind == OpKind::kAdd && reads(ops_[end], one.output);
    const Family family = gates    ? (normed ? Family::kNormedGates : Family::kGates)
                          : normed ? Family::kNormed
                          : sum    ? Family::kSum
                                   : Family::kPlain;
    const MeasuredTable* table = weights_table(family, one);
    if (table == nullptr) {
      for (std::size_t k = i; k < end; ++k) leave(k);
      return end;
    }
    const std::size_t last = end + (gates || sum ? 1 : 0);
    Unit& unit = add(family, table, last - i);
    unit.rows = one.rows;
    unit.inputs = static_cast<double>(one.k);
    for (std::size_t k = first; k < end; ++k) {
      unit.outputs += static_cast<double>(ops_[k].n);
      unit.flops += ops_[k].flops;
      unit.weight_bytes += element_bytes(ops_[k]) * static_cast<double>(ops_[k].weight_elements);
    }
    unit.bytes = one.rows * (kF32 * (unit.inputs + unit.outputs));
    unit.bound = BoundBy::kWeights;
    return last;
  }

  std::size_t grouped(std::size_t i) {
    const OpRecord& op = ops_[i];
    const Family family = op.n > op.k ? Family::kGroupedIn : Family::kGroupedOut;
    const MeasuredTable* table = weights_table(family, op);
    if (table == nullptr) return leave(i);
    Unit& unit = add(family, table, 1);
    unit.phase_bound = true;
    unit.rows = op.rows;
    unit.flops = op.flops;
    unit.heads = static_cast<double>(op.groups);
    unit.weight_bytes = element_bytes(op) * static_cast<double>(op.weight_elements);
    unit.bytes = op.rows * (kF32 * unit.heads * static_cast<double>(op.n + op.k));
    unit.bound = BoundBy::kWeights;
    return i + 1;
  }

  /// Whether attention over several segments begins at `i`.
  bool has_segments(std::size_t i) const {
    return i + 1 < ops_.size() && ops_[i + 1].kind == OpKind::kAttention && ops_[i + 1].output == 0;
  }
  /// The table of the attention at `i`; null where there is none of such.
  const MeasuredTable* attention_table(std::size_t i) const {
    const OpRecord& op = ops_[i];
    const bool latent = op.shares_value && op.kv_heads == 1, fresh = op.segment == tensor::KvSegment::Kind::kFresh;
    if (has_segments(i) || op.top_k > 0 || op.window > 0 || op.ratio > 1) return nullptr;
    if (!fresh && op.segment != tensor::KvSegment::Kind::kCache) return nullptr;
    const bool decode = in_.phase == Phase::kDecode;
    return calibration_.find(latent   ? (decode ? Family::kLatentDecode : Family::kLatentChunk)
                             : fresh  ? Family::kExpanded
                             : decode ? Family::kDecode
                                      : Family::kChunk);
  }

  /// Whether the layer is products and attention, as the one that kOneSequence is timed in.
  bool is_of_products() const {
    return std::none_of(ops_.begin(), ops_.end(), [](const OpRecord& op) {
      return op.kind == OpKind::kExperts || op.kind == OpKind::kAllReduce;
    });
  }

  std::size_t attention(std::size_t i) {
    const OpRecord& op = ops_[i];
    const MeasuredTable* table = attention_table(i);
    if (table == nullptr) {
      const bool several = has_segments(i);
      std::size_t end = i;
      do leave(end++);
      while (several && end < ops_.size() && ops_[end].kind == OpKind::kAttention && ops_[end].output == 0);
      return end;
    }
    const bool decode = in_.phase == Phase::kDecode, fresh = op.segment == tensor::KvSegment::Kind::kFresh;
    Unit& unit = add(table->family, table, 1 + std::exchange(rows_before_, 0));
    if (table->family == Family::kDecode && is_of_products())
      unit.of_one = calibration_.find(Family::kDecode, kOneSequence);
    unit.phase_bound = true;
    unit.rows = op.rows;
    unit.heads = static_cast<double>(op.heads);
    unit.kv_heads = static_cast<double>(std::max(op.kv_heads, 1));
    unit.row_bytes = fresh ? 0 : cache_row_bytes(op, in_.kv);
    unit.row_flops = 2.0 * op.heads * static_cast<double>(op.key_dim + op.shared_key_dim + op.value_dim);
    unit.bytes = traffic(op);
    unit.bound = decode ? BoundBy::kKv : BoundBy::kCompute;
    return i + 1;
  }

  /// Rotations, caches written, copies and norms of heads, one after the other.
  std::size_t rows(std::size_t i) {
    std::size_t end = i;
    double queries = 0, keys = 0, heads = 0;
    bool copies = false, norms = false, writes = false;
    Rate bytes;
    for (; end < ops_.size(); ++end) {
      const OpRecord& op = ops_[end];
      if (op.kind == OpKind::kRope)
        queries = std::max(queries, op.rows.per_token * static_cast<double>(op.n)),
        heads = std::max(heads, op.rows.per_token);
      else if (op.kind == OpKind::kCacheWrite)
        keys = std::max(keys, static_cast<double>(op.n)), writes = true;
      else if (op.kind == OpKind::kCopy)
        copies = true;
      else if (op.kind == OpKind::kRmsNorm || op.kind == OpKind::kLayerNorm) {
        if (end > i && is_row_norm(op) && end + 1 < ops_.size() && ops_[end + 1].kind == OpKind::kLinear &&
            ops_[end + 1].inputs[0] == op.output)
          break;
        norms = norms || is_row_norm(op);
      } else
        break;
      bytes += traffic(op);
    }
    if (!writes || heads <= 0) {  // each by itself
      for (std::size_t k = i; k < end; ++k) elementwise(k);
      return end;
    }
    if (in_.phase == Phase::kDecode && goes_with_attention(end)) {
      rows_before_ += end - i;
      return end;
    }
    const Family family = !norms ? Family::kRows : copies ? Family::kLatentRows : Family::kLatentFresh;
    const MeasuredTable* table = calibration_.find(family);
    if (table == nullptr) {
      for (std::size_t k = i; k < end; ++k) leave(k);
      return end;
    }
    Unit& unit = add(family, table, end - i);
    unit.phase_bound = true;
    unit.rows = {.per_token = 1};
    unit.bytes = bytes;
    unit.outputs = queries, unit.inputs = keys, unit.heads = heads;
    unit.bound = BoundBy::kCompute;
    return end;
  }

  /// Whether rows that end at `i` are those of an attention of single tokens whose table has them.
  bool goes_with_attention(std::size_t i) const {
    while (i < ops_.size() && ops_[i].kind == OpKind::kGroupedLinear) ++i;
    return i < ops_.size() && ops_[i].kind == OpKind::kAttention && attention_table(i) != nullptr;
  }

  std::size_t experts(std::size_t i) {
    const OpRecord& op = ops_[i];
    const MeasuredTable* table = weights_table(Family::kExperts, op);
    if (table == nullptr) return leave(i);
    const bool sum = i + 1 < ops_.size() && ops_[i + 1].kind == OpKind::kAdd && reads(ops_[i + 1], op.output);
    Unit& unit = add(Family::kExperts, table, sum ? 2 : 1);
    unit.rows = op.rows;
    unit.outputs = static_cast<double>(op.n), unit.inputs = static_cast<double>(op.expert_intermediate);
    unit.choices = op.experts_per_token;
    unit.experts_here = op.experts_here, unit.experts_total = std::max(op.experts_total, 1);
    unit.expert_flops = 6.0 * unit.outputs * unit.inputs;
    unit.weight_bytes = element_bytes(op) * static_cast<double>(op.weight_elements);
    unit.bytes = op.rows * (2 * kF32 * unit.outputs);
    unit.bound = BoundBy::kWeights;
    return sum ? i + 2 : i + 1;
  }

  std::size_t route(std::size_t i) {
    const MeasuredTable* table = calibration_.find(Family::kRoute);
    if (table == nullptr) return leave(i);
    Unit& unit = add(Family::kRoute, table, 1);
    unit.rows = {.per_token = 1};
    unit.outputs = std::max(ops_[i].experts_total, 1);
    unit.bytes = {.per_token = kF32 * unit.outputs};
    unit.bound = BoundBy::kLaunch;
    return i + 1;
  }

  std::size_t elementwise(std::size_t i) {
    const MeasuredTable* table = calibration_.find(Family::kElementwise);
    if (table == nullptr) return leave(i);
    Unit& unit = add(Family::kElementwise, table, 1);
    unit.bytes = traffic(ops_[i]);
    unit.bytes.fixed += static_cast<double>(ops_[i].weight_bytes);
    return i + 1;
  }

  /// The table of as many ranks; else the nearest, by the formula's ratio.
  std::size_t all_reduce(std::size_t i) {
    const OpRecord& op = ops_[i];
    const int ranks = op.group == tensor::Group::kExpert ? layout_.tp * layout_.dp_attention : layout_.tp;
    const MeasuredTable* table = calibration_.find(Family::kAllReduce, std::to_string(ranks));
    int there = ranks;
    for (int n = 2; table == nullptr && n <= 16; ++n)
      table = calibration_.find(Family::kAllReduce, std::to_string(there = n));
    if (table == nullptr || ranks <= 1 || (op.group == tensor::Group::kExpert && layout_.dp_attention > 1))
      return leave(i);
    Unit& unit = add(Family::kAllReduce, table, 1);
    unit.bytes = op.comm_bytes;
    unit.group = op.group;
    unit.ranks = there;
    unit.bound = BoundBy::kCommunication;
    return i + 1;
  }

  const std::vector<OpRecord>& ops_;
  float repeats_;
  const LowerInputs& in_;
  const Layout& layout_;
  const Calibration& calibration_;
  bool head_;
  UnitProgram& program_;
  meta::Trace rest_;
  std::size_t rows_before_ = 0;  // ops that the next attention's table has
};

/// Of what a rank's experts are hit by, and how much they do.
struct Hits {
  double weight_bytes = 0, flops = 0;
};
Hits hits_of(const Unit& u, double tokens, const Rates& r, const Layout& layout) {
  const double chance = std::min(u.choices / u.experts_total, 0.999999);
  const double hit =
      std::max(1 - std::exp(tokens * r.expert_independence * std::log1p(-chance)), std::min(1.0, chance));
  const double spill =
      layout.ep > 1 ? 1 + r.expert_spill * std::sqrt(std::max(0.0, 1 - hit) / std::max(u.experts_here * hit, 0.05)) : 1;
  const double imbalance = layout.ep > 1 ? 1 + r.expert_imbalance * std::min(1.0, tokens / 512) : 1;
  return {u.weight_bytes * std::min(1.0, hit * std::min(spill, 3.0)),
          tokens * u.choices * u.experts_here / u.experts_total * imbalance * u.expert_flops};
}

double attention_seconds(const Unit& u, const Load& load) {
  const double tokens = load.tokens, sequences = std::max(load.sequences, 1e-9), keys = std::max(load.keys, 1.0);
  if (u.family == Family::kDecode || u.family == Family::kLatentDecode) {
    const double bytes = sequences * keys * u.row_bytes + u.bytes.at(tokens, load.outputs),
                 flops = sequences * keys * u.row_flops;
    if (u.family == Family::kDecode) {
      const MeasuredTable& table = u.of_one != nullptr && sequences <= 1 ? *u.of_one : *u.table;
      return table.at(std::array{sequences * u.kv_heads, keys, u.heads / u.kv_heads}, bytes, flops);
    }
    return u.table->at(std::array{sequences, keys, u.heads}, bytes, flops);
  }
  // Prompts one after the other: each is a call's worth of keys.
  const double own = tokens / sequences, bytes = keys * u.row_bytes + u.bytes.at(own, 1),
               flops = own * load.visible * u.row_flops;
  if (u.family == Family::kExpanded) return sequences * u.table->at(std::array{own, u.heads}, bytes, flops);
  const double reach = std::max(keys / std::max(own, 1.0), 1.0);
  if (u.family == Family::kLatentChunk) return sequences * u.table->at(std::array{own, reach, u.heads}, bytes, flops);
  return sequences * u.table->at(std::array{own, reach, u.heads, u.heads / u.kv_heads}, bytes, flops);
}

double seconds_of(const Unit& u, const Load& load, const Rates& rates, const Layout& layout) {
  const double rows = std::max(u.rows.at(load.tokens, load.outputs), 0.0),
               bytes = u.bytes.at(load.tokens, load.outputs), flops = u.flops.at(load.tokens, load.outputs);
  switch (u.family) {
    case Family::kPlain:
    case Family::kSum:
    case Family::kGates:
    case Family::kNormed:
    case Family::kNormedGates:
      return rows <= 0 ? 0 : u.table->at(std::array{rows, u.outputs, u.inputs}, u.weight_bytes + bytes, flops);
    case Family::kGroupedIn:
    case Family::kGroupedOut:
      return u.table->at(std::array{rows, u.heads}, u.weight_bytes + bytes, flops);
    case Family::kRows:
      return u.table->at(std::array{rows, u.outputs, u.inputs}, bytes, 0);
    case Family::kLatentRows:
    case Family::kLatentFresh:
      return u.table->at(std::array{rows, u.heads}, bytes, 0);
    case Family::kRoute:
      return u.table->at(std::array{rows * load.replicas, u.outputs}, bytes * load.replicas, 0);
    case Family::kExperts: {
      const double tokens = load.tokens * load.replicas;
      const Hits hits = hits_of(u, tokens, rates, layout);
      return u.table->at(std::array{tokens, u.outputs, u.inputs, u.choices * u.experts_here / u.experts_total},
                         hits.weight_bytes + bytes * load.replicas, hits.flops);
    }
    case Family::kAllReduce: {
      const double seconds = u.table->at(std::array{bytes}, bytes, 0);
      const int ranks = u.group == tensor::Group::kExpert ? layout.tp * layout.dp_attention : layout.tp;
      return ranks == u.ranks ? seconds
                              : seconds * all_reduce_seconds(rates.intra, ranks, bytes) /
                                    all_reduce_seconds(rates.intra, u.ranks, bytes);
    }
    case Family::kElementwise:
      return u.table->at(std::array{std::max(bytes, 1.0)}, bytes, 0);
    default:
      return attention_seconds(u, load);
  }
}

}  // namespace

void add_units(const meta::Trace& trace, double repeats, const LowerInputs& inputs, const Layout& layout,
               const Calibration& calibration, bool head, UnitProgram& program) {
  if (repeats > 0) Grouper(trace, repeats, inputs, layout, calibration, head, program).run();
}

double unit_seconds(const Unit& u, const Load& load, const Rates& rates, const Layout& layout, Parts* parts) {
  if (load.tokens <= 0) return 0;
  const double seconds = seconds_of(u, load, rates, layout);
  if (parts != nullptr)
    part(*parts, u.bound == BoundBy::kWeights && load.tokens > 512 ? BoundBy::kCompute : u.bound) +=
        seconds * static_cast<double>(u.repeats);
  return seconds;
}

}  // namespace fathom::plan
