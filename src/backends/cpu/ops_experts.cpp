// Family experts: mixtures of experts. Tokens are gathered by expert; then wave after wave (as many runs as the
// workspace holds) all gate and up products, and after them all down products, are cut into blocks for threads. A
// thread owns its columns of the output, and adds experts in ascending order, so nothing depends on who was faster.
#include "backends/cpu/cpu_ops.h"
#include "backends/cpu/rounded.h"
#include "backends/cpu/rows.h"
#include "base/math.h"

namespace fathom::cpu {
using namespace tensor;  // NOLINT: the vocabulary
namespace {

constexpr std::int64_t kRunRows = 256;      // tokens of one expert taken together
constexpr std::int64_t kMostColumns = 512;  // of a block when few tokens let it be large

/// (token, expert) pairs sorted by expert, tokens ascending.
struct Hits {
  std::int64_t* first = nullptr;  // [experts + 1]
  std::int32_t* token = nullptr;
  float* weight = nullptr;
};

Hits gather_hits(Scratch& shared, const ExpertsArgs& args) {
  const std::int64_t tokens = args.indices.dim(0), top_k = args.indices.dim(1),
                     here = static_cast<std::int64_t>(args.gate.size());
  Hits hits{shared.take<std::int64_t>(here + 1), shared.take<std::int32_t>(tokens * top_k),
            shared.take<float>(tokens * top_k)};
  std::int64_t* next = shared.take<std::int64_t>(here + 1);
  std::fill_n(hits.first, here + 1, 0);
  const auto expert_at = [&](std::int64_t t, std::int64_t j) {
    return args.indices.as<std::int32_t>()[t * args.indices.strides[0] + j] - args.first_expert;
  };
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t j = 0; j < top_k; ++j)
      if (const std::int64_t e = expert_at(t, j); e >= 0 && e < here) ++hits.first[e + 1];
  for (std::int64_t e = 0; e < here; ++e) hits.first[e + 1] += hits.first[e];
  std::copy_n(hits.first, here, next);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t j = 0; j < top_k; ++j)
      if (const std::int64_t e = expert_at(t, j); e >= 0 && e < here) {
        hits.token[next[e]] = static_cast<std::int32_t>(t);
        hits.weight[next[e]++] = args.weights.as<float>()[t * args.weights.strides[0] + j];
      }
  return hits;
}

/// Some tokens of one expert.
struct Run {
  std::int64_t first_hit = 0, count = 0;
  Product gate, up, down;
  float* hidden = nullptr;        // [count, I]
  float* rounded_x = nullptr;     // [count, h]: eight-bit activations
  std::byte* packed_x = nullptr;  // null: not packed
  std::byte* packed_hidden = nullptr;
};

class Waves {
 public:
  Waves(const Context& context, const ExpertsArgs& args, Scratch& shared, const Hits& hits)
      : context_(context),
        args_(args),
        shared_(shared),
        hits_(hits),
        h_(args.x.dim(1)),
        inner_(args.gate[0].rows),
        mark_(shared.used()),
        rounds_x_(rounds_activations(args.gate[0], args.x.dim(0))),
        rounds_hidden_(rounds_activations(args.down[0], args.x.dim(0))) {}

  void run() {
    const auto experts = static_cast<std::int64_t>(args_.gate.size());
    begin();
    for (std::int64_t e = 0; e < experts; ++e) {
      for (std::int64_t at = hits_.first[e]; at < hits_.first[e + 1];) {
        std::int64_t count = std::min(kRunRows, hits_.first[e + 1] - at);
        while (runs_count_ == 0 && count > 1 && cost(e, count) > shared_.left()) count = (count + 1) / 2;
        if (runs_count_ == kMostRuns || cost(e, count) > shared_.left()) {
          FATHOM_CHECK(runs_count_ > 0, "an expert is too large for the workspace");
          flush();
          continue;
        }
        add_run(e, at, count);
        at += count;
      }
    }
    flush();
  }

 private:
  static constexpr std::int64_t kMostRuns = 1024;

  Product product(const Weight& weight, const float* const* x, std::int64_t count) const {
    return {.weight = &weight, .first_row = 0, .rows = weight.rows, .x = x, .m_count = count};
  }
  bool packs(const Weight& weight, std::int64_t count) const {
    return wants_packing(context_.kernels, product(weight, nullptr, count));
  }
  std::size_t cost(std::int64_t e, std::int64_t count) const {
    std::size_t bytes = static_cast<std::size_t>(count * (inner_ * 4 + 16)) + 1024;
    if (rounds_x_) bytes += static_cast<std::size_t>(count * h_ * 4) + 64;
    if (packs(args_.gate[static_cast<std::size_t>(e)], count)) bytes += packed_bytes(context_.kernels, count, h_);
    if (packs(args_.down[static_cast<std::size_t>(e)], count)) bytes += packed_bytes(context_.kernels, count, inner_);
    return bytes;
  }
  void begin() {
    shared_.rewind(mark_);
    runs_ = shared_.take<Run>(kMostRuns);
    runs_count_ = 0;
    largest_ = 0;
  }

  void add_run(std::int64_t e, std::int64_t first_hit, std::int64_t count) {
    const Weight &gate = args_.gate[static_cast<std::size_t>(e)], &up = args_.up[static_cast<std::size_t>(e)],
                 &down = args_.down[static_cast<std::size_t>(e)];
    FATHOM_CHECK(gate.rows == inner_ && gate.cols == h_ && up.rows == inner_ && up.cols == h_ && down.rows == h_ &&
                 down.cols == inner_);
    FATHOM_CHECK(can_multiply(gate.format) && can_multiply(up.format) && can_multiply(down.format) &&
                 gate.format == up.format);
    Run& run = runs_[runs_count_++];
    run = Run{.first_hit = first_hit, .count = count};
    const float** x = shared_.take<const float*>(count);
    const float** hidden_rows = shared_.take<const float*>(count);
    run.hidden = shared_.take<float>(count * inner_);
    if (rounds_x_) run.rounded_x = shared_.take<float>(count * h_);
    for (std::int64_t i = 0; i < count; ++i) {
      x[i] = rounds_x_ ? run.rounded_x + i * h_ : token_of(first_hit + i);
      hidden_rows[i] = run.hidden + i * inner_;
    }
    run.gate = product(gate, x, count);
    run.up = product(up, x, count);
    run.down = product(down, hidden_rows, count);
    if (wants_packing(context_.kernels, run.gate))
      run.gate.packed = run.up.packed = run.packed_x = take_packed(count, h_);
    if (wants_packing(context_.kernels, run.down)) run.down.packed = run.packed_hidden = take_packed(count, inner_);
    largest_ = std::max(largest_, count);
  }
  const float* token_of(std::int64_t hit) const { return args_.x.as<float>() + hits_.token[hit] * args_.x.strides[0]; }

  /// Rows of x, or of what came out of the first products, to eight bits each.
  void round_x() {
    context_.pool.for_each(runs_count_, [&](std::int64_t r, int) {
      const Run& run = runs_[r];
      for (std::int64_t i = 0; i < run.count; ++i)
        round_activations(context_.kernels, *run.gate.weight, token_of(run.first_hit + i), h_, run.rounded_x + i * h_);
    });
  }
  void round_hidden() {
    context_.pool.for_each(runs_count_, [&](std::int64_t r, int) {
      const Run& run = runs_[r];
      for (std::int64_t i = 0; i < run.count; ++i)
        round_activations(context_.kernels, *run.down.weight, run.hidden + i * inner_, inner_, run.hidden + i * inner_);
    });
  }

  std::byte* take_packed(std::int64_t count, std::int64_t k) {
    return shared_.take<std::byte>(static_cast<std::int64_t>(packed_bytes(context_.kernels, count, k)));
  }

  void flush() {
    if (runs_count_ > 0) {
      if (rounds_x_) round_x();
      pack(&Run::packed_x, &Run::gate);
      multiply_in();
      if (rounds_hidden_) round_hidden();
      pack(&Run::packed_hidden, &Run::down);
      multiply_out();
    }
    begin();
  }

  void pack(std::byte* Run::*to, Product Run::*of) {
    const PackedKernels* packed = context_.kernels.packed;
    if (packed == nullptr) return;
    context_.pool.for_each(runs_count_, [&](std::int64_t i, int) {
      const Run& run = runs_[i];
      if (run.*to == nullptr) return;
      const Product& product = run.*of;
      for (std::int64_t m = 0; m < run.count; m += packed->token_tile)
        packed->pack({.x = product.x + m,
                      .m_count = std::min(packed->token_tile, run.count - m),
                      .k = product.weight->cols,
                      .out = run.*to + static_cast<std::size_t>(m / packed->token_tile) *
                                           packed->packed_bytes(product.weight->cols)});
    });
  }

  /// Rows of the weights in one task, `rows` being what each run has and `shares` how many runs there are to share.
  std::int64_t block_of(const Product& product, std::int64_t rows, std::int64_t shares) const {
    Product widest = product;
    widest.m_count = largest_;
    return std::min(good_block(context_.kernels, widest, rows * shares, context_.pool.size()), kMostColumns);
  }

  /// hidden = swiglu(gate x, up x) of all runs.
  void multiply_in() {
    const std::int64_t nb = block_of(runs_[0].gate, inner_, runs_count_), blocks = ceil_div(inner_, nb);
    context_.pool.for_each_ahead(runs_count_ * blocks, [&](std::int64_t task, std::int64_t following, int thread) {
      const Run& run = runs_[task / blocks];
      const std::byte* ahead =
          following < 0 ? nullptr : first_read(runs_[following / blocks].gate, following % blocks * nb);
      const std::int64_t n0 = task % blocks * nb, width = std::min(nb, inner_ - n0);
      Scratch& scratch = context_.workspace.of(thread);
      scratch.reset();
      float *gate = scratch.take<float>(run.count * width), *up = scratch.take<float>(run.count * width);
      multiply_block(run.gate, n0, width, gate, first_read(run.up, n0), scratch);
      multiply_block(run.up, n0, width, up, ahead, scratch);
      for (std::int64_t m = 0; m < run.count; ++m)
        context_.kernels.swiglu(gate + m * width, up + m * width, static_cast<float>(args_.limit),
                                run.hidden + m * inner_ + n0, width);
    });
  }

  /// out[token] += weight · down hidden, all runs one after the other for each block of columns.
  void multiply_out() {
    const std::int64_t nb = block_of(runs_[0].down, h_, 1), blocks = ceil_div(h_, nb);
    context_.pool.for_each(blocks, [&](std::int64_t block, int thread) {
      const std::int64_t n0 = block * nb, width = std::min(nb, h_ - n0);
      for (std::int64_t i = 0; i < runs_count_; ++i) {
        const Run& run = runs_[i];
        Scratch& scratch = context_.workspace.of(thread);
        scratch.reset();
        float* sums = scratch.take<float>(run.count * width);
        multiply_block(run.down, n0, width, sums, i + 1 < runs_count_ ? first_read(runs_[i + 1].down, n0) : nullptr,
                       scratch);
        for (std::int64_t m = 0; m < run.count; ++m)
          context_.kernels.add_scaled(
              hits_.weight[run.first_hit + m], sums + m * width,
              args_.out.as<float>() + hits_.token[run.first_hit + m] * args_.out.strides[0] + n0, width);
      }
    });
  }

  static const std::byte* first_read(const Product& product, std::int64_t n0) {
    return is_plain(product.weight->format) ? product.row_data(n0) : nullptr;
  }
  /// Block [n0, n0 + width) of a product into a dense [m_count, width]. `ahead`: as in Block.
  void multiply_block(Product product, std::int64_t n0, std::int64_t width, float* out, const std::byte* ahead,
                      Scratch& scratch) const {
    product.first_row += n0;
    product.rows = width;
    product.out = out;
    product.out_stride = width;
    product_block(context_.kernels, product, {.n0 = 0, .nb = width, .m0 = 0, .mb = product.m_count, .ahead = ahead},
                  scratch);
  }

  const Context& context_;
  const ExpertsArgs& args_;
  Scratch& shared_;
  const Hits& hits_;
  const std::int64_t h_, inner_;
  const std::size_t mark_;
  const bool rounds_x_, rounds_hidden_;
  Run* runs_ = nullptr;
  std::int64_t runs_count_ = 0, largest_ = 0;
};

}  // namespace

void CpuOps::experts(const ExpertsArgs& args) {
  const std::int64_t tokens = args.x.dim(0), h = args.x.dim(1);
  FATHOM_CHECK(args.out.shape == args.x.shape && args.weights.shape == args.indices.shape &&
               args.indices.dim(0) == tokens);
  FATHOM_CHECK(args.gate.size() == args.up.size() && args.gate.size() == args.down.size());
  FATHOM_CHECK(is_f32(args.x) && is_f32(args.weights) && is_f32(args.out) && args.indices.dtype == DType::i32);
  if (!args.accumulate)
    for_ranges(context_.pool, tokens, h, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t t = first; t < last; ++t) std::fill_n(args.out.as<float>() + t * args.out.strides[0], h, 0.0f);
    });
  if (tokens == 0 || args.gate.empty()) return;
  Scratch& shared = fresh_shared();
  const Hits hits = gather_hits(shared, args);
  Waves(context_, args, shared, hits).run();
}

}  // namespace fathom::cpu
