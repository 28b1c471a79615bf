// What the tape records of the family attention. Caches, the indexer and rotary angles are not differentiated.
#include <memory>

#include "train/tape.h"

namespace fathom::train {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

/// A batch with its own list of sequences; its tensors stay the caller's.
struct KeptBatch {
  explicit KeptBatch(const Batch& from) : sequences(from.sequences.begin(), from.sequences.end()), batch(from) {
    batch.sequences = sequences;
  }
  KeptBatch(const KeptBatch&) = delete;
  std::vector<Sequence> sequences;
  Batch batch;
};

struct KeptAttention {
  AttentionArgs args;
  std::vector<KvSegment> segments;
  KeptBatch batch;
  explicit KeptAttention(const AttentionArgs& from)
      : args(from), segments(from.segments.begin(), from.segments.end()), batch(*from.batch) {
    args.segments = segments;
    args.batch = &batch.batch;
  }
};

bool fresh(const KvSegment& segment) {
  return segment.kind == KvSegment::Kind::kFresh || segment.kind == KvSegment::Kind::kFreshEntries;
}

}  // namespace

void Tape::cache_write(const CacheWriteArgs& args) {
  check_unsaved(args.cache);
  inner_.cache_write(args);
}

void Tape::index_select(const IndexSelectArgs& args) {
  open({.reads = {}, .writes = {}, .writes_other = {args.selected}});
  inner_.index_select(args);
}

void Tape::attention(const AttentionArgs& args) {
  const auto part = [&](std::size_t i) { return i < args.segments.size() ? args.segments[i] : KvSegment{}; };
  const KvSegment a = part(0), b = part(1), c = part(2);
  FATHOM_CHECK(args.segments.size() <= 3);
  const Use use{.reads = {args.q, a.k, a.k_shared, a.v, b.k, b.k_shared, b.v, c.k, c.k_shared, c.v},
                .writes = {args.out},
                .writes_other = {args.lse},
                .trains = trainable(args.sink_parameter)};
  const bool records = open(use);
  if (records)
    for (const KvSegment& segment : args.segments)
      FATHOM_CHECK(fresh(segment), "training attends to the batch itself, not to caches");
  inner_.attention(args);
  if (!records) return;
  record(use,
         {args.q, a.k, a.k_shared, a.v, a.selected, b.k, b.k_shared, b.v, b.selected, c.k, c.k_shared, c.v, c.selected},
         {args.out, args.lse}, [kept = std::make_shared<const KeptAttention>(args)](Tape& tape) {
           const Tensor dout = tape.reached(kept->args.out);
           if (!dout.defined()) return;
           std::vector<KvSegmentGrad> segments;
           for (const KvSegment& segment : kept->segments) {
             KvSegmentGrad grad{.dk = tape.wanted(segment.k), .dk_shared = {}, .dv = tape.wanted(segment.v)};
             if (segment.k_shared.defined()) grad.dk_shared = tape.wanted(segment.k_shared);
             segments.push_back(grad);
           }
           tape.grad_.attention_backward({.f = kept->args,
                                          .dout = dout,
                                          .dq = tape.wanted(kept->args.q),
                                          .segments = segments,
                                          .dsink = tape.vector_gradient(kept->args.sink_parameter)});
         });
}

void Tape::compress(const CompressArgs& args) {
  const bool trains = trainable(args.ape_parameter);
  const Use use{
      .reads = {args.kv, args.gate}, .writes = {args.out}, .writes_other = {args.positions}, .trains = trains};
  const bool records = open(use);
  if (records)
    for (const Sequence& sequence : args.batch->sequences)
      FATHOM_CHECK(sequence.past == 0, "training starts every sequence at its beginning");
  inner_.compress(args);
  if (!records) return;
  struct Kept {
    CompressArgs args;
    KeptBatch batch;
    explicit Kept(const CompressArgs& from) : args(from), batch(*from.batch) { args.batch = &batch.batch; }
  };
  record(use, {args.kv, args.gate}, {}, [kept = std::make_shared<const Kept>(args)](Tape& tape) {
    const CompressArgs& f = kept->args;
    const Tensor dout = tape.reached(f.out);
    if (!dout.defined()) return;
    const Tensor dape =
        f.ape.defined() ? tape.parameter_gradient(f.ape_parameter, f.ape.dim(0), f.ape.dim(1)) : Tensor{};
    tape.grad_.compress_backward(
        {.f = f, .dout = dout, .dkv = tape.wanted(f.kv), .dgate = tape.wanted(f.gate), .dape = dape});
  });
}

}  // namespace fathom::train
