#include "backends/cpu/products.h"

#include <algorithm>

#include "base/math.h"

namespace fathom::cpu {
namespace {

constexpr std::int64_t kPanelDepth =
    256;  // elements along k of one panel: 64 KiB at 64 columns, in the second-level cache
constexpr std::int64_t kPanelTokens = 256;      // rows of x that one block's sums are kept for
constexpr std::int64_t kWidenedColumns = 4096;  // of a quantized row at a time
constexpr std::int64_t kRowRun = 16;            // rows of the weight handed to one kernel call
constexpr std::int64_t kBlockBytes = 1 << 20;   // of weight in one task when it is read straight through

void add_bias(const Kernels& kernels, const Product& product, const Block& block) {
  if (product.bias == nullptr) return;
  for (std::int64_t m = block.m0; m < block.m0 + block.mb; ++m) {
    float* out = product.out + m * product.out_stride + block.n0;
    kernels.add(out, product.bias + block.n0, out, block.nb);
  }
}

/// Few rows of x: each weight row is read once, straight through, and multiplied with all of them.
void direct_block(const Kernels& kernels, const Product& product, const Block& block, Scratch& scratch) {
  const tensor::Weight& weight = *product.weight;
  float* out = product.out + block.m0 * product.out_stride + block.n0;
  if (is_plain(weight.format)) {
    kernels.stream_rows({.element = element_of(tensor::weight_dtype(weight.format)),
                         .first = product.row_data(block.n0),
                         .row_count = block.nb,
                         .k = weight.cols,
                         .x = product.x + block.m0,
                         .m_count = block.mb,
                         .out = out,
                         .out_stride = product.out_stride,
                         .accumulate = product.accumulate});
    return;
  }
  const std::int64_t width = std::min(weight.cols, kWidenedColumns);
  float* widened = scratch.take<float>(kRowRun * width);
  Row rows[kRowRun];
  for (std::int64_t n = 0; n < block.nb; n += kRowRun) {
    const std::int64_t run = std::min(kRowRun, block.nb - n);
    for (std::int64_t column = 0; column < weight.cols; column += width) {
      const std::int64_t part = std::min(width, weight.cols - column);
      const Element element = weight_rows(weight, product.first_row + block.n0 + n, run, column, part, widened, rows);
      kernels.dot_rows({.element = element,
                        .rows = rows,
                        .row_count = run,
                        .k = part,
                        .x = product.x + block.m0,
                        .x_offset = column,
                        .m_count = block.mb,
                        .out = out + n,
                        .out_stride = product.out_stride,
                        .accumulate = product.accumulate || column > 0});
    }
  }
}

/// Many rows of x: the weight goes through f32 panels; sums are gathered in [mb, nb] beside them and written out at the
/// end.
void panel_block(const Kernels& kernels, const Product& product, const Block& block, Scratch& scratch) {
  const auto [n0, nb, m0, mb, ahead] = block;
  const std::int64_t k = product.weight->cols, depth = std::min(k, kPanelDepth);
  const std::int64_t columns = ceil_div(nb, kernels.panel_width) * kernels.panel_width;
  float* widened = is_plain(product.weight->format) ? nullptr : scratch.take<float>(nb * depth);
  float* panels = scratch.take<float>(columns * depth);
  float* sums = scratch.take<float>(mb * nb);
  Row* rows = scratch.take<Row>(nb);
  for (std::int64_t at = 0; at < k; at += depth) {
    const std::int64_t part = std::min(depth, k - at);
    const Element element = weight_rows(*product.weight, product.first_row + n0, nb, at, part, widened, rows);
    kernels.pack_transposed(
        {.element = element, .rows = rows, .row_count = nb, .count = part, .panels = panels, .panel_depth = part});
    kernels.panel_product({.a = product.x + m0,
                           .a_offset = at,
                           .m_count = mb,
                           .panels = panels,
                           .depth = part,
                           .columns = nb,
                           .c = sums,
                           .c_stride = nb,
                           .accumulate = at > 0});
  }
  for (std::int64_t m = 0; m < mb; ++m) {
    float* out = product.out + (m0 + m) * product.out_stride + n0;
    if (product.accumulate)
      kernels.add(out, sums + m * nb, out, nb);
    else
      std::copy_n(sums + m * nb, nb, out);
  }
}

void packed_block(const Kernels& kernels, const Product& product, const Block& block, Scratch& scratch) {
  const auto [n0, nb, m0, mb, ahead] = block;
  const PackedKernels& packed = *kernels.packed;
  FATHOM_CHECK(nb <= packed.row_block);
  auto* own = scratch.take<std::byte>(static_cast<std::int64_t>(packed.scratch_bytes));
  for (std::int64_t m = 0; m < mb; m += packed.max_tokens) {
    const std::int64_t count = std::min(packed.max_tokens, mb - m);
    const std::int64_t group = (m0 + m) / packed.token_tile;
    packed.multiply(
        {.weight = product.row_data(n0),
         .weight_stride = product.weight->cols * 2,
         .rows = nb,
         .k = product.weight->cols,
         .tokens = product.packed + static_cast<std::size_t>(group) * packed.packed_bytes(product.weight->cols),
         .m_count = count,
         .out = product.out + (m0 + m) * product.out_stride + n0,
         .out_stride = product.out_stride,
         .accumulate = product.accumulate,
         .ahead = m + count < mb ? product.row_data(n0) : ahead,
         .scratch = own});
  }
}

/// Packs the x of all products, group by group over all threads.
void pack(const Context& context, std::span<Product> products, std::byte* to) {
  const PackedKernels& packed = *context.kernels.packed;
  const std::int64_t k = products[0].weight->cols, groups = ceil_div(products[0].m_count, packed.token_tile);
  const std::size_t bytes = packed.packed_bytes(k);
  for (std::size_t i = 0; i < products.size(); ++i)
    products[i].packed = to + i * static_cast<std::size_t>(groups) * bytes;
  context.pool.for_each(static_cast<std::int64_t>(products.size()) * groups, [&](std::int64_t task, int) {
    const Product& product = products[static_cast<std::size_t>(task / groups)];
    const std::int64_t first = task % groups * packed.token_tile;
    packed.pack({.x = product.x + first,
                 .x_offset = 0,
                 .m_count = std::min(packed.token_tile, product.m_count - first),
                 .k = k,
                 .out = to + static_cast<std::size_t>(task) * bytes});
  });
}

/// All blocks of all products.
void run_blocks(const Context& context, std::span<const Product> products) {
  const Product& first = products[0];
  const int threads = context.pool.size();
  const auto count = static_cast<std::int64_t>(products.size());
  const std::int64_t nb = good_block(context.kernels, first, count * first.rows, threads),
                     n_blocks = ceil_div(first.rows, nb);
  std::int64_t mb = first.m_count;
  if (first.packed == nullptr && first.m_count > kDirectRows) {
    const std::int64_t wanted = ceil_div(2 * threads, n_blocks * count);  // so many blocks of x keep all threads busy
    mb = std::clamp<std::int64_t>(ceil_div(ceil_div(first.m_count, wanted), 6) * 6, 24, kPanelTokens);
  }
  const std::int64_t m_blocks = ceil_div(first.m_count, mb);
  const auto product_of = [&](std::int64_t task) -> const Product& {
    return products[static_cast<std::size_t>(task / (n_blocks * m_blocks))];
  };
  const auto row_of = [&](std::int64_t task) { return task / m_blocks % n_blocks * nb; };
  const auto work = [&](std::int64_t task, std::int64_t following, int thread) {
    const Product& product = product_of(task);
    const std::int64_t n0 = row_of(task), m0 = task % m_blocks * mb;
    Scratch& scratch = context.workspace.of(thread);
    scratch.reset();
    product_block(context.kernels, product,
                  {.n0 = n0,
                   .nb = std::min(nb, product.rows - n0),
                   .m0 = m0,
                   .mb = std::min(mb, product.m_count - m0),
                   .ahead = following >= 0 ? product_of(following).row_data(row_of(following)) : nullptr},
                  scratch);
  };
  if (first.packed != nullptr)
    context.pool.for_each_ahead(count * n_blocks * m_blocks, work);
  else
    context.pool.for_each(count * n_blocks * m_blocks, [&](std::int64_t task, int thread) { work(task, -1, thread); });
}

}  // namespace

bool wants_packing(const Kernels& kernels, const Product& product) {
  return kernels.packed != nullptr && product.weight->format == tensor::WeightFormat::bf16 &&
         product.m_count >= kernels.packed->least_tokens;
}

std::size_t packed_bytes(const Kernels& kernels, std::int64_t m_count, std::int64_t k) {
  return static_cast<std::size_t>(ceil_div(m_count, kernels.packed->token_tile)) * kernels.packed->packed_bytes(k);
}

std::int64_t good_block(const Kernels& kernels, const Product& product, std::int64_t total_rows, int threads) {
  const bool packed = wants_packing(kernels, product);
  if (product.m_count <= kDirectRows && !packed) {
    // Blocks of about kBlockBytes, as many for every thread, whole rows for every stream.
    const std::int64_t row_bytes =
        static_cast<std::int64_t>(tensor::weight_bytes(product.weight->format, 1, product.weight->cols)) + 1;
    const std::int64_t blocks =
        std::max<std::int64_t>(1, ceil_div(total_rows * row_bytes, threads * kBlockBytes)) * threads;
    return std::min(ceil_div(ceil_div(total_rows, blocks), 8) * 8, std::max<std::int64_t>(product.rows, 1));
  }
  std::int64_t block = packed ? kernels.packed->row_block : kMaxPanelWidth;
  const std::int64_t least = packed ? std::min<std::int64_t>(32, block) : kMaxPanelWidth;
  while (block > least && ceil_div(total_rows, block) < 4 * threads) block /= 2;
  return std::max(block, least);
}

void product_block(const Kernels& kernels, const Product& product, const Block& block, Scratch& scratch) {
  const std::size_t mark = scratch.used();
  if (product.packed != nullptr && wants_packing(kernels, product))
    packed_block(kernels, product, block, scratch);
  else if (product.m_count <= kDirectRows)
    direct_block(kernels, product, block, scratch);
  else
    panel_block(kernels, product, block, scratch);
  add_bias(kernels, product, block);
  scratch.rewind(mark);
}

void multiply(const Context& context, std::span<Product> products) {
  if (products.empty() || products[0].rows == 0 || products[0].m_count == 0) return;
  if (!wants_packing(context.kernels, products[0])) return run_blocks(context, products);
  // As many rows of x at a time as their packed form has room for.
  Scratch& shared = context.workspace.shared();
  const std::size_t mark = shared.used();
  const std::int64_t tile = context.kernels.packed->token_tile, k = products[0].weight->cols;
  const auto room =
      static_cast<std::int64_t>((shared.left() - 64) / (products.size() * context.kernels.packed->packed_bytes(k)));
  FATHOM_CHECK(room > 0, "a weight has too many columns for the workspace");
  for (std::int64_t m = 0, total = products[0].m_count; m < total; m += room * tile) {
    const std::int64_t count = std::min(room * tile, total - m);
    std::byte* to =
        shared.take<std::byte>(static_cast<std::int64_t>(packed_bytes(context.kernels, count, k) * products.size()));
    for (Product& product : products) product.m_count = count;
    pack(context, products, to);
    run_blocks(context, products);
    for (Product& product : products) product.x += count, product.out += count * product.out_stride;
    shared.rewind(mark);
  }
}

}  // namespace fathom::cpu
