// Family compress: gated pooling of tokens into entries (DeepSeek-V4 §2.3).
#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/reference/elements.h"
#include "backends/reference/reference_ops.h"
#include "backends/reference/visible.h"

namespace fathom::reference {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

/// One token that goes into an entry: its rows, its place in its window, and the first of the d columns that count.
struct Part {
  Array kv, gate;
  std::int64_t position = 0, place = 0, first_column = 0;
};

Part part_of(const CompressArgs& args, const Sequence& sequence, std::int64_t position, std::int64_t first_column) {
  Part part{.kv = {}, .gate = {}, .position = position, .place = position % args.ratio, .first_column = first_column};
  if (position >= sequence.past) {
    const std::int64_t token = sequence.first_token + position - sequence.past;
    part.kv = load_row(args.kv, token), part.gate = load_row(args.gate, token);
  } else {
    const std::int64_t row = sequence.slot * args.state_rows + position % args.state_rows;
    part.kv = load_row(args.state_kv, row), part.gate = load_row(args.state_gate, row);
  }
  return part;
}

std::vector<Part> parts_of(const CompressArgs& args, const Sequence& sequence, std::int64_t entry) {
  const std::int64_t d = args.out.dim(1);
  std::vector<Part> parts;
  if (args.overlap && entry > 0)
    for (std::int64_t i = 0; i < args.ratio; ++i)
      parts.push_back(part_of(args, sequence, (entry - 1) * args.ratio + i, 0));
  for (std::int64_t i = 0; i < args.ratio; ++i)
    parts.push_back(part_of(args, sequence, entry * args.ratio + i, args.overlap ? d : 0));
  return parts;
}

/// Softmax over the parts for one column.
std::vector<double> shares_of(const std::vector<Part>& parts, const Array& ape, std::int64_t column) {
  std::vector<double> share;
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const Part& part : parts) {
    share.push_back(part.gate.at(0)[part.first_column + column] + ape.at(part.place)[part.first_column + column]);
    largest = std::max(largest, share.back());
  }
  for (double& s : share) sum += s = std::exp(s - largest);
  for (double& s : share) s /= sum;
  return share;
}

/// What is added to the gates, by place in the window: [ratio, width].
Array ape_of(const CompressArgs& args, std::int64_t width) {
  if (!args.ape.defined()) return Array(Shape{args.ratio, width});
  FATHOM_CHECK(args.ape.dim(0) == args.ratio && args.ape.dim(1) == width);
  return load(args.ape);
}

}  // namespace

void ReferenceOps::compress(const CompressArgs& args) {
  const std::int64_t d = args.out.dim(1), width = args.overlap ? 2 * d : d;
  FATHOM_CHECK(args.kv.dim(1) == width && args.gate.dim(1) == width);
  FATHOM_CHECK(args.out.dim(0) == max_entries(*args.batch, args.ratio) && args.positions.dim(0) == args.out.dim(0));
  const Array ape = ape_of(args, width);
  Array out(args.out.shape);
  std::vector<std::int64_t> positions(static_cast<std::size_t>(args.positions.dim(0)), -1);
  for (std::size_t s = 0; s < args.batch->sequences.size(); ++s) {
    const Sequence& sequence = args.batch->sequences[s];
    const std::int64_t first = sequence.past / args.ratio, end = (sequence.past + sequence.tokens) / args.ratio;
    for (std::int64_t entry = first; entry < end; ++entry) {
      const std::int64_t row = first_entry_row(*args.batch, s, args.ratio) + entry - first;
      const std::vector<Part> parts = parts_of(args, sequence, entry);
      positions[static_cast<std::size_t>(row)] = entry * args.ratio;
      for (std::int64_t c = 0; c < d; ++c) {
        const std::vector<double> share = shares_of(parts, ape, c);
        for (std::size_t i = 0; i < parts.size(); ++i)
          out.at(row)[c] += share[i] * parts[i].kv.at(0)[parts[i].first_column + c];
      }
    }
  }
  store(args.out, out);
  store_ints(args.positions, positions);
}

// With s the softmax of the gates of a column: dkv_i = s_i · dout, dgate_i = s_i · (kv_i - out) · dout, dape the same
// at its place.
void ReferenceGradOps::compress_backward(const CompressGrad& args) {
  const CompressArgs& f = args.f;
  const std::int64_t d = f.out.dim(1);
  const Array ape = ape_of(f, f.kv.dim(1)), dout = load(args.dout);
  Array dkv(f.kv.shape), dgate(f.kv.shape), dape(ape.shape);
  for (std::size_t s = 0; s < f.batch->sequences.size(); ++s) {
    const Sequence& sequence = f.batch->sequences[s];
    FATHOM_CHECK(sequence.past == 0, "a state is not differentiated");
    for (std::int64_t entry = 0; entry < sequence.tokens / f.ratio; ++entry) {
      const std::int64_t row = first_entry_row(*f.batch, s, f.ratio) + entry;
      const std::vector<Part> parts = parts_of(f, sequence, entry);
      for (std::int64_t c = 0; c < d; ++c) {
        const std::vector<double> share = shares_of(parts, ape, c);
        double out = 0;
        for (std::size_t i = 0; i < parts.size(); ++i) out += share[i] * parts[i].kv.at(0)[parts[i].first_column + c];
        for (std::size_t i = 0; i < parts.size(); ++i) {
          const Part& part = parts[i];
          const std::int64_t column = part.first_column + c, token = sequence.first_token + part.position;
          const double change = share[i] * (part.kv.at(0)[column] - out) * dout.at(row)[c];
          dkv.at(token)[column] += share[i] * dout.at(row)[c];
          dgate.at(token)[column] += change;
          dape.at(part.place)[column] += change;
        }
      }
    }
  }
  add_to(args.dkv, dkv);
  add_to(args.dgate, dgate);
  add_to(args.dape, dape);
}

}  // namespace fathom::reference
