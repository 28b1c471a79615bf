// Products of small matrices: mma.sync of a warp, wgmma of four warps (each has 16 of the 64 rows), and ldmatrix. Sums
// are added up in f32, in the order of k.
#include <charconv>
#include <vector>

#include "emulator/lanes.h"

namespace fathom::emulator {
namespace {

// ---------------------------------------------------------------- ldmatrix

/// count: matrices of 8 × 8 elements of 16 bits; variant 1: transposed. Lane 8i + r has the address of row r of matrix
/// i.
void load_matrices(Warp& warp, const Instruction& in, Mask) {
  for (int i = 0; i < in.count; ++i) {
    std::uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      const int lane = 8 * i + row;
      const std::byte* const at =
          warp.reach(in, Space::shared, warp.address(in.operands[in.count], lane) & ~kSharedWindow, 16, lane);
      if (warp.races() != nullptr) warp.races()->touch(warp, in, at, 16, Access::read);
      std::memcpy(matrix[row], at, 16);
    }
    auto* const out = warp.lanes<std::uint32_t>(in.operands[i]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      const std::uint32_t low = in.variant != 0 ? matrix[column][row] : matrix[row][column],
                          high = in.variant != 0 ? matrix[column + 1][row] : matrix[row][column + 1];
      out[lane] = high << 16 | low;
    }
  }
}

// ---------------------------------------------------------------- mma.sync

enum class Kind : std::uint8_t { half, brain, e4m3 };
float widened(Kind kind, std::uint16_t bits) {
  return kind == Kind::half    ? half_to_float(bits)
         : kind == Kind::brain ? bfloat_to_float(bits)
                               : e4m3_to_float(static_cast<std::uint8_t>(bits));
}

/// 16 × 8 × 16, elements of 16 bits.
template <Kind K>
void multiply_16(Warp& warp, const Instruction& in, Mask) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4, pair = lane % 4 * 2;
    for (int r = 0; r < 4; ++r) {
      const std::uint32_t bits = warp.lanes<std::uint32_t>(in.operands[4 + r])[lane];
      for (int e = 0; e < 2; ++e)
        a[group + r % 2 * 8][pair + r / 2 * 8 + e] = widened(K, static_cast<std::uint16_t>(bits >> 16 * e));
    }
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t bits = warp.lanes<std::uint32_t>(in.operands[8 + r])[lane];
      for (int e = 0; e < 2; ++e) b[pair + r * 8 + e][group] = widened(K, static_cast<std::uint16_t>(bits >> 16 * e));
    }
  }
  float sums[16][8]{};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k)
      for (int column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
  for (int r = 0; r < 4; ++r) {
    const float* const c = warp.lanes<float>(in.operands[10 + r]);
    float out[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) out[lane] = c[lane] + sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
    store(warp, in.operands[r], out, kAll);
  }
}
/// 16 × 8 × 32, whole numbers of 8 bits; A with a sign or without.
template <bool ASigned, bool BSigned>
void multiply_whole(Warp& warp, const Instruction& in, Mask) {
  std::int32_t a[16][32], b[32][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4, four = lane % 4 * 4;
    for (int r = 0; r < 4; ++r) {
      const std::uint32_t bits = warp.lanes<std::uint32_t>(in.operands[4 + r])[lane];
      for (int e = 0; e < 4; ++e) {
        const auto byte = static_cast<std::uint8_t>(bits >> 8 * e);
        a[group + r % 2 * 8][four + r / 2 * 16 + e] = ASigned ? static_cast<std::int8_t>(byte) : byte;
      }
    }
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t bits = warp.lanes<std::uint32_t>(in.operands[8 + r])[lane];
      for (int e = 0; e < 4; ++e) {
        const auto byte = static_cast<std::uint8_t>(bits >> 8 * e);
        b[four + r * 16 + e][group] = BSigned ? static_cast<std::int8_t>(byte) : byte;
      }
    }
  }
  std::int32_t sums[16][8]{};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 32; ++k)
      for (int column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
  for (int r = 0; r < 4; ++r) {
    const auto* const c = warp.lanes<std::int32_t>(in.operands[10 + r]);
    std::int32_t out[kLanes];
    for (int lane = 0; lane < kLanes; ++lane)
      out[lane] =
          static_cast<std::int32_t>(static_cast<std::uint32_t>(c[lane]) +
                                    static_cast<std::uint32_t>(sums[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2]));
    store(warp, in.operands[r], out, kAll);
  }
}

// ---------------------------------------------------------------- wgmma

/// A matrix in shared memory as its descriptor says: chunks of 16 bytes, swizzled by their address.
struct Matrix {
  std::uint32_t begin, leading, stride, swizzle;
  explicit Matrix(std::uint64_t bits)
      : begin(static_cast<std::uint32_t>(bits & 0x3fffu) << 4),
        leading(static_cast<std::uint32_t>(bits >> 16 & 0x3fffu) << 4),
        stride(static_cast<std::uint32_t>(bits >> 32 & 0x3fffu) << 4),
        swizzle(static_cast<std::uint32_t>(bits >> 62)) {}
  /// Bytes of a row of the pattern: 1 is 128, 2 is 64, 3 is 32; 0: chunks of eight rows lie together.
  std::uint32_t span() const { return swizzle == 0 ? 16 : 256u >> swizzle; }
  std::uint32_t swizzled(std::uint32_t at) const {
    switch (swizzle) {
      case 1:
        return at ^ (at >> 7 & 7u) << 4;
      case 2:
        return at ^ (at >> 7 & 3u) << 4;
      case 3:
        return at ^ (at >> 7 & 1u) << 4;
      default:
        return at;
    }
  }
  /// Chunk `chunk` of row `row`, where rows are the outer dimension.
  std::uint32_t by_rows(std::uint32_t row, std::uint32_t chunk) const {
    if (swizzle == 0) return begin + row / 8 * stride + chunk * leading + row % 8 * 16;
    return swizzled(begin + row / 8 * stride + row % 8 * span() + chunk * 16);
  }
  /// The chunk of row `k` in which outer index 8·`chunk` lies, where rows are summed over.
  std::uint32_t by_columns(std::uint32_t k, std::uint32_t chunk) const {
    const std::uint32_t chunks = span() / 16;
    return swizzled(begin + chunk / chunks * leading + k / 8 * stride + k % 8 * span() + chunk % chunks * 16);
  }
};

void read_chunk(Warp& warp, const Instruction& in, std::uint32_t at, Kind kind, float* out, std::ptrdiff_t step) {
  const std::byte* const from = shared_memory(*warp.block, at, 16);
  if (from == nullptr)
    warp.fault(in, "a descriptor of shared memory that the block does not have: " + std::to_string(at));
  if (warp.races() != nullptr)
    warp.races()->touch(warp, in, from, 16, Access::read), warp.products.back().push_back(from);
  for (int i = 0; i < (kind == Kind::e4m3 ? 16 : 8); ++i) {
    std::uint16_t bits = 0;
    if (kind == Kind::e4m3)
      bits = std::to_integer<std::uint16_t>(from[i]);
    else
      std::memcpy(&bits, from + 2 * i, 2);
    out[i * step] = widened(kind, bits);
  }
}

/// extra: columns N; variant: bits 0, 1: Kind; 2: A lies in registers; 3, 4: A, B summed over rows.
void multiply_wide(Warp& warp, const Instruction& in, Mask) {
  const auto kind = static_cast<Kind>(in.variant & 3u);
  const bool in_registers = (in.variant & 4u) != 0, a_transposed = (in.variant & 8u) != 0,
             b_transposed = (in.variant & 16u) != 0;
  const std::uint32_t columns = in.extra, depth = kind == Kind::e4m3 ? 32 : 16, chunk = kind == Kind::e4m3 ? 16 : 8;
  const std::uint32_t sums = columns / 2, first_row = static_cast<std::uint32_t>(warp.index % 4) * 16;
  float a[32][16];                                                  // [k, row]
  std::vector<float> b(static_cast<std::size_t>(columns) * depth);  // [column, k]
  const Operand* const operands = in.operands + sums;
  if (in_registers) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int r = 0; r < 4; ++r) {
        const std::uint32_t bits = warp.lanes<std::uint32_t>(operands[r])[lane];
        const int row = lane / 4 + r % 2 * 8;
        if (kind == Kind::e4m3)
          for (int e = 0; e < 4; ++e)
            a[lane % 4 * 4 + r / 2 * 16 + e][row] = e4m3_to_float(static_cast<std::uint8_t>(bits >> 8 * e));
        else
          for (int e = 0; e < 2; ++e)
            a[lane % 4 * 2 + r / 2 * 8 + e][row] = widened(kind, static_cast<std::uint16_t>(bits >> 16 * e));
      }
  } else {
    const Matrix matrix(warp.get(operands[0], 0));
    float chunk_of[16];
    if (a_transposed) {
      for (std::uint32_t k = 0; k < depth; ++k)
        for (std::uint32_t c = 0; c < 2; ++c)
          read_chunk(warp, in, matrix.by_columns(k, first_row / 8 + c), kind, &a[k][c * 8], 1);
    } else {
      for (std::uint32_t row = 0; row < 16; ++row)
        for (std::uint32_t c = 0; c < depth / chunk; ++c) {
          read_chunk(warp, in, matrix.by_rows(first_row + row, c), kind, chunk_of, 1);
          for (std::uint32_t i = 0; i < chunk; ++i) a[c * chunk + i][row] = chunk_of[i];
        }
    }
  }
  const Operand* const rest = operands + (in_registers ? 4 : 1);
  const Matrix matrix(warp.get(rest[0], 0));
  if (b_transposed) {
    for (std::uint32_t k = 0; k < depth; ++k)
      for (std::uint32_t c = 0; c < columns / 8; ++c)
        read_chunk(warp, in, matrix.by_columns(k, c), kind, &b[static_cast<std::size_t>(c) * 8 * depth + k], depth);
  } else {
    for (std::uint32_t column = 0; column < columns; ++column)
      for (std::uint32_t c = 0; c < depth / chunk; ++c)
        read_chunk(warp, in, matrix.by_rows(column, c), kind, &b[static_cast<std::size_t>(column) * depth + c * chunk],
                   1);
  }
  const bool adds = (warp.value(rest[1]) & 1u) != 0;
  for (std::uint32_t column = 0; column < columns; ++column) {
    float out[16]{};
    for (std::uint32_t k = 0; k < depth; ++k)
      for (int row = 0; row < 16; ++row) out[row] += a[k][row] * b[static_cast<std::size_t>(column) * depth + k];
    // Lane 4·(row % 8) + column % 8 / 2 has it, as d[column / 8 · 4 + row / 8 · 2 + column % 2].
    for (std::uint32_t row = 0; row < 16; ++row) {
      float& d =
          warp.lanes<float>(in.operands[column / 8 * 4 + row / 8 * 2 + column % 2])[row % 8 * 4 + column % 8 / 2];
      d = (adds ? d : 0.0f) + out[row];
    }
  }
}
bool decode_wide(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;  // wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16
  const std::string_view shape = op.parts[4], type = op.type();
  if (!shape.starts_with("m64n") || op.type(2) != "f32" || type != op.type(1)) return false;
  if (type != "bf16" && type != "f16" && type != "e4m3") return false;
  std::uint32_t columns = 0;
  std::from_chars(shape.data() + 4, shape.data() + shape.size(), columns);
  const bool in_registers = written.operands[1].size() == 4;
  if (written.operands[0].size() != columns / 2 || written.immediates[4] != 1 || written.immediates[5] != 1)
    return false;
  // Flags of transposition: B's alone where A lies in registers.
  const std::vector<std::int64_t>& flags = written.immediates;
  const bool a_transposed = !in_registers && flags.size() > 7 && flags[6] != 0,
             b_transposed = in_registers ? flags.size() > 6 && flags[6] != 0 : flags.size() > 7 && flags[7] != 0;
  const Kind kind = type == "f16" ? Kind::half : type == "bf16" ? Kind::brain : Kind::e4m3;
  out.variant = static_cast<std::uint8_t>(static_cast<unsigned>(kind) | (in_registers ? 4u : 0) |
                                          (a_transposed ? 8u : 0) | (b_transposed ? 16u : 0));
  out.extra = columns, out.execute = &multiply_wide;
  return true;
}
void commit_products(Warp& warp, const Instruction&, Mask) {
  if (warp.races() != nullptr) warp.products.emplace_back();
}
/// Products are done when they are asked for, and may read until they are waited for. extra: groups that may be left.
void wait_for_products(Warp& warp, const Instruction& in, Mask) {
  if (warp.races() == nullptr) return;
  while (warp.products.size() > in.extra + 1u) {
    for (const std::byte* const at : warp.products.front()) warp.races()->touch(warp, in, at, 16, Access::read);
    warp.products.erase(warp.products.begin());
  }
}

}  // namespace

bool decode_matrix(const Written& written, Instruction& out) {
  const Opcode& op = written.opcode;
  const std::string_view base = op.parts[0];
  if (base != "ldmatrix" && base != "mma" && base != "wgmma") return false;
  out.flow = Flow::together;
  if (base == "ldmatrix") {
    if (!op.has("m8n8") || op.type() != "b16") return false;
    out.count = op.has("x4")   ? 4
                : op.has("x2") ? 2
                               : 1,
    out.variant = op.has("trans") ? 1 : 0, out.execute = &load_matrices;
    return true;
  }
  if (base == "wgmma") {
    if (op.parts[1] == "mma_async") return decode_wide(written, out);
    if (op.parts[1] == "wait_group")
      return out.extra = static_cast<std::uint32_t>(written.immediates[0]), out.execute = &wait_for_products, true;
    return out.execute = op.parts[1] == "commit_group" ? &commit_products : &nothing, true;
  }
  if (op.has("m16n8k16") && op.type() == "f32") {
    if (op.type(1) == "bf16") return out.execute = &multiply_16<Kind::brain>, true;
    if (op.type(1) == "f16") return out.execute = &multiply_16<Kind::half>, true;
  }
  if (op.has("m16n8k32") && op.type() == "s32") {
    const bool a = op.type(2) == "s8", b = op.type(1) == "s8";
    out.execute = a ? (b ? &multiply_whole<true, true> : &multiply_whole<true, false>)
                    : (b ? &multiply_whole<false, true> : &multiply_whole<false, false>);
    return op.type(2).ends_with("8") && op.type(1).ends_with("8");
  }
  return false;
}

}  // namespace fathom::emulator
