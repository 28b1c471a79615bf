#include "measure/trace_ops.h"

#include <cmath>
#include <initializer_list>

#include "backends/meta/meta_ops.h"
#include "tensor/forwarding_backend.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary
using meta::OpRecord;

/// Events of one rank, whose times are filled in when a pass is done.
class Recorder {
 public:
  Recorder(Tracer& tracer, Backend& inner, int rank, const model::WeightTable& weights)
      : tracer_(tracer), inner_(inner), rank_(rank) {
    layers_.assign(static_cast<std::size_t>(weights.parameters()), -1);
    for (const model::WeightEntry& entry : weights.entries())
      for (std::int64_t e = 0; e < entry.experts && entry.first_parameter >= 0; ++e)
        if (const auto at = static_cast<std::size_t>(entry.first_parameter + e); at < layers_.size())
          layers_[at] = entry.layer;
  }

  /// One op: `record` writes it down on meta, `call` does it.
  template <class Record, class Call>
  void op(const char* name, std::string shapes, std::int32_t parameter, const Batch* batch, const Record& record,
          const Call& call) {
    if (parameter >= 0 && static_cast<std::size_t>(parameter) < layers_.size())
      layer_ = layers_[static_cast<std::size_t>(parameter)];
    record(meta_);
    const meta::Trace trace = meta_.take();
    begin(name);
    call();
    finish({.name = name, .shapes = std::move(shapes), .rank = rank_, .layer = layer_}, trace, batch);
  }
  template <class Call>
  void collective(const char* name, const Tensor& x, const Call& call) {
    begin(name);
    call();
    TraceEvent event{.name = name, .shapes = describe(x), .rank = rank_, .layer = layer_};
    event.bytes = static_cast<double>(x.bytes());
    OpRecord op;
    op.kind = meta::OpKind::kAllReduce;
    op.comm_bytes.fixed = event.bytes;
    end(std::move(event), std::string_view(name) == "all_reduce" ? price({op}, nullptr) : -1);
  }

  void tokens(std::int64_t n) { tokens_ = n; }

  /// A pass: what it launches is called, never recorded.
  Result<bool> pass(const std::function<void()>& launches) {
    layer_ = -1, tokens_ = 0, priced_ = 0;
    unpriced_ = false;
    begin("pass");
    const std::size_t opened = marks_ - 1;
    FATHOM_TRY(const bool called, inner_.run_pass(0, launches));
    TraceEvent event{.name = tokens_ == 1 ? "pass, 1 token" : "pass, " + std::to_string(tokens_) + " tokens",
                     .shapes = {},
                     .rank = rank_,
                     .pass = true};
    event.tokens = tokens_;
    event.predicted = unpriced_ ? -1 : priced_;
    pending_.push_back({std::move(event), opened, marks_++});
    inner_.mark(nullptr);
    FATHOM_TRY_VOID(collect());
    return called;
  }

 private:
  struct Pending {
    TraceEvent event;
    std::size_t from = 0, to = 0;
  };

  void begin(const char* name) {
    inner_.mark(name);
    open_ = marks_++;
  }
  void end(TraceEvent event, double predicted) {
    inner_.mark(nullptr);
    event.predicted = predicted;
    if (predicted >= 0)
      priced_ += predicted;
    else
      unpriced_ = true;
    pending_.push_back({std::move(event), open_, marks_++});
  }

  void finish(TraceEvent event, const meta::Trace& trace, const Batch* batch) {
    for (const OpRecord& op : trace.ops) {
      event.flops += op.flops.fixed;
      event.bytes +=
          op.read_bytes.fixed + op.written_bytes.fixed + static_cast<double>(op.weight_bytes) * hit_share(op);
      if (batch != nullptr && (op.kind == meta::OpKind::kAttention || op.kind == meta::OpKind::kIndexSelect))
        add_visible(op, *batch, event);
    }
    const double predicted = price(trace.ops, batch);
    end(std::move(event), predicted);
  }

  /// Of a rank's experts, those that so many tokens hit when they choose independently.
  static double hit_share(const OpRecord& op) {
    if (op.kind != meta::OpKind::kExperts) return 1;
    return 1 - std::pow(1 - std::min(1.0, static_cast<double>(op.experts_per_token) / std::max(op.experts_total, 1)),
                        op.rows.fixed);
  }

  /// Score and value products over what each token sees, and the cache rows that each sequence reads.
  static void add_visible(const OpRecord& op, const Batch& batch, TraceEvent& event) {
    const bool fresh = op.segment == KvSegment::Kind::kFresh || op.segment == KvSegment::Kind::kFreshEntries;
    for (const Sequence& s : batch.sequences) {
      const double past = fresh ? 0 : s.past, keys = past + s.tokens;
      const auto seen = [&](double rows) {
        if (op.window > 0) rows = std::min(rows, static_cast<double>(op.window));
        rows /= static_cast<double>(std::max<std::int64_t>(op.ratio, 1));
        return op.top_k > 0 && op.kind == meta::OpKind::kAttention ? std::min(rows, static_cast<double>(op.top_k))
                                                                   : rows;
      };
      event.flops += 2.0 * op.heads * static_cast<double>(op.key_dim + op.shared_key_dim + op.value_dim) * s.tokens *
                     seen(past + 0.5 * (s.tokens + 1));
      if (!fresh)
        event.bytes +=
            2.0 * seen(keys) *
            (op.kv_heads * static_cast<double>(op.key_dim + (op.shares_value ? 0 : op.value_dim)) + op.shared_key_dim);
    }
  }

  double price(const std::vector<OpRecord>& ops, const Batch* batch) const {
    if (tracer_.pricer() == nullptr) return -1;
    plan::OpPass pass{.tokens = static_cast<double>(std::max<std::int64_t>(tokens_, 1))};
    pass.keys = pass.tokens;
    if (batch != nullptr) {
      pass.tokens = static_cast<double>(batch->tokens), pass.sequences = static_cast<double>(batch->sequences.size()),
      pass.keys = 0;
      for (const Sequence& s : batch->sequences) pass.keys += static_cast<double>(s.past + s.tokens) / pass.sequences;
      pass.decode = batch->tokens == static_cast<std::int64_t>(batch->sequences.size());
    }
    double seconds = 0;
    for (const OpRecord& op : ops) seconds += tracer_.pricer()->seconds(op, pass);
    return seconds;
  }

  Status collect() {
    FATHOM_TRY(const std::vector<double> times, inner_.take_marks());
    FATHOM_CHECK(times.size() == marks_, "marks were lost");
    std::vector<TraceEvent> events;
    for (Pending& p : pending_) {
      p.event.start = times[p.from], p.event.seconds = std::max(times[p.to] - times[p.from], 0.0);
      events.push_back(std::move(p.event));
    }
    tracer_.add(std::move(events));
    pending_.clear();
    marks_ = 0;
    return {};
  }

  Tracer& tracer_;
  Backend& inner_;
  int rank_;
  meta::MetaOps meta_{{.units = {}, .activations = DType::f32, .weight_classes = {}}};
  std::vector<int> layers_;
  std::vector<Pending> pending_;
  std::size_t marks_ = 0, open_ = 0;
  int layer_ = -1;
  std::int64_t tokens_ = 0;
  double priced_ = 0;
  bool unpriced_ = false;
};

std::string shape_of(const Weight& w) {
  return "[" + std::to_string(w.rows) + ", " + std::to_string(w.cols) + "] " +
         std::string(weight_format_name(w.format));
}
/// "[1, 4096] f32 × [11008, 4096] bf16 → [1, 11008] f32"
std::string shapes(std::initializer_list<const Tensor*> in, const Tensor& out, const Weight* weight = nullptr) {
  std::string text;
  for (const Tensor* x : in)
    if (x->defined()) text += (text.empty() ? "" : ", ") + describe(*x);
  if (weight != nullptr) text += " × " + shape_of(*weight);
  return text + " → " + describe(out);
}

class TracedOps final : public Ops {
 public:
  TracedOps(Ops& inner, Recorder& to) : inner_(inner), to_(to) {}

  Tensor allocate(DType dtype, Shape shape) override { return inner_.allocate(dtype, shape); }
  void release(const Tensor& tensor) override { inner_.release(tensor); }
  DType activation_dtype() const override { return inner_.activation_dtype(); }
  Value block(const Tensor& input, const std::function<Value(const Tensor&)>& body) override {
    return inner_.block(input, body);
  }
  bool records() const override { return inner_.records(); }

  void embed(const EmbedArgs& a) override {
    to_.tokens(a.ids.dim(0));
    to_.op(
        "embed", shapes({&a.ids}, a.out, &a.table), a.table.parameter, nullptr, [&](auto& m) { m.embed(a); },
        [&] { inner_.embed(a); });
  }
  void gather_rows(const GatherRowsArgs& a) override {
    plain("gather_rows", shapes({&a.x}, a.out), -1, a, &Ops::gather_rows);
  }
  void copy(const CopyArgs& a) override { plain("copy", shapes({&a.x}, a.out), -1, a, &Ops::copy); }
  void add(const AddArgs& a) override { plain("add", shapes({&a.a, &a.b}, a.out), -1, a, &Ops::add); }
  void expand_streams(const ExpandStreamsArgs& a) override {
    plain("expand_streams", shapes({&a.x}, a.out), -1, a, &Ops::expand_streams);
  }
  void rms_norm(const RmsNormArgs& a) override {
    plain("rms_norm", shapes({&a.x}, a.out), a.parameter, a, &Ops::rms_norm);
  }
  void layer_norm(const LayerNormArgs& a) override {
    plain("layer_norm", shapes({&a.x}, a.out), a.weight_parameter, a, &Ops::layer_norm);
  }
  void linear(const LinearArgs& a) override {
    plain("linear", shapes({&a.x}, a.out, &a.weight), a.weight.parameter, a, &Ops::linear);
  }
  void grouped_linear(const GroupedLinearArgs& a) override {
    plain("grouped_linear", shapes({&a.x}, a.out, &a.weight), a.weight.parameter, a, &Ops::grouped_linear);
  }
  void rotary(const RotaryArgs& a) override { plain("rotary", shapes({&a.positions}, a.cos), -1, a, &Ops::rotary); }
  void rope(const RopeArgs& a) override { plain("rope", shapes({&a.x}, a.x), -1, a, &Ops::rope); }
  void cache_write(const CacheWriteArgs& a) override {
    plain("cache_write", shapes({&a.src}, a.cache), -1, a, &Ops::cache_write, a.batch);
  }
  void attention(const AttentionArgs& a) override {
    plain("attention", shapes({&a.q, &a.segments.front().k, &a.segments.front().v}, a.out), -1, a, &Ops::attention,
          a.batch);
  }
  void index_select(const IndexSelectArgs& a) override {
    plain("index_select", shapes({&a.q, &a.keys.k}, a.selected), -1, a, &Ops::index_select, a.batch);
  }
  void compress(const CompressArgs& a) override {
    plain("compress", shapes({&a.kv, &a.gate}, a.out), a.ape_parameter, a, &Ops::compress, a.batch);
  }
  void swiglu(const SwigluArgs& a) override { plain("swiglu", shapes({&a.gate, &a.up}, a.out), -1, a, &Ops::swiglu); }
  void gelu(const GeluArgs& a) override { plain("gelu", shapes({&a.x}, a.out), -1, a, &Ops::gelu); }
  void route(const RouteArgs& a) override { plain("route", shapes({&a.logits}, a.indices), -1, a, &Ops::route); }
  void experts(const ExpertsArgs& a) override {
    const Weight* one = a.gate.empty() ? nullptr : &a.gate.front();
    plain("experts", shapes({&a.x, &a.indices}, a.out, one), one != nullptr ? one->parameter : -1, a, &Ops::experts);
  }
  void hyper_mix(const HyperMixArgs& a) override {
    plain("hyper_mix", shapes({&a.streams}, a.collapsed, &a.fn), a.fn.parameter, a, &Ops::hyper_mix);
  }
  void hyper_merge(const HyperMergeArgs& a) override {
    plain("hyper_merge", shapes({&a.x, &a.streams}, a.out), -1, a, &Ops::hyper_merge);
  }
  void hyper_head(const HyperHeadArgs& a) override {
    plain("hyper_head", shapes({&a.streams}, a.out, &a.fn), a.fn.parameter, a, &Ops::hyper_head);
  }
  void cross_entropy(const CrossEntropyArgs& a) override {
    plain("cross_entropy", shapes({&a.logits}, a.losses), -1, a, &Ops::cross_entropy);
  }

 private:
  template <class Args>
  void plain(const char* name, std::string text, std::int32_t parameter, const Args& args,
             void (Ops::*call)(const Args&), const Batch* batch = nullptr) {
    to_.op(
        name, std::move(text), parameter, batch, [&](Ops& meta) { (meta.*call)(args); }, [&] { (inner_.*call)(args); });
  }
  Ops& inner_;
  Recorder& to_;
};

class TracedCollectives final : public Collectives {
 public:
  TracedCollectives(std::unique_ptr<Collectives> inner, Recorder& to) : inner_(std::move(inner)), to_(to) {}
  int size(Group group) const override { return inner_->size(group); }
  int rank(Group group) const override { return inner_->rank(group); }
  void all_reduce(Group group, const Tensor& x) override {
    around("all_reduce", group, x, [&] { inner_->all_reduce(group, x); });
  }
  void all_gather(Group group, const Tensor& x, const Tensor& out) override {
    around("all_gather", group, out, [&] { inner_->all_gather(group, x, out); });
  }
  void all_gather_rows(Group group, const Tensor& x, std::span<const std::int64_t> rows, const Tensor& out) override {
    around("all_gather_rows", group, out, [&] { inner_->all_gather_rows(group, x, rows, out); });
  }
  void reduce_scatter(Group group, const Tensor& x, const Tensor& out) override {
    around("reduce_scatter", group, x, [&] { inner_->reduce_scatter(group, x, out); });
  }
  void all_to_all(Group group, const Tensor& x, const Tensor& out) override {
    around("all_to_all", group, x, [&] { inner_->all_to_all(group, x, out); });
  }
  void send(Group group, int to, const Tensor& x) override {
    around("send", group, x, [&] { inner_->send(group, to, x); });
  }
  void receive(Group group, int from, const Tensor& out) override {
    around("receive", group, out, [&] { inner_->receive(group, from, out); });
  }
  void beat() override { inner_->beat(); }
  Status status() override { return inner_->status(); }

 private:
  template <class Call>
  void around(const char* name, Group group, const Tensor& x, const Call& call) {
    if (inner_->size(group) > 1)
      to_.collective(name, x, call);
    else
      call();
  }
  std::unique_ptr<Collectives> inner_;
  Recorder& to_;
};

class TracedBackend final : public ForwardingBackend {
 public:
  TracedBackend(Tracer& tracer, std::unique_ptr<Backend> backend, int rank, const model::WeightTable& weights)
      : ForwardingBackend(std::move(backend)),
        recorder_(tracer, inner(), rank, weights),
        ops_(inner().ops(), recorder_) {}
  Ops& ops() override { return ops_; }
  Result<bool> run_pass(std::uint64_t, const std::function<void()>& pass) override { return recorder_.pass(pass); }
  bool runs_ahead() const override { return false; }  // each pass is waited for, to read its times
  Result<std::unique_ptr<Collectives>> make_collectives(std::shared_ptr<Transport> transport,
                                                        const GroupMembers& members) override {
    FATHOM_TRY(auto made, inner().make_collectives(std::move(transport), members));
    return std::unique_ptr<Collectives>(std::make_unique<TracedCollectives>(std::move(made), recorder_));
  }

 private:
  Recorder recorder_;
  TracedOps ops_;
};

}  // namespace

std::unique_ptr<Backend> make_traced_backend(Tracer& tracer, std::unique_ptr<Backend> inner, int rank,
                                             const model::WeightTable& weights) {
  return std::make_unique<TracedBackend>(tracer, std::move(inner), rank, weights);
}

}  // namespace fathom::measure
