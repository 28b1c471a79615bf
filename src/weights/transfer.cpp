#include "weights/transfer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

#include "base/math.h"
#include "base/strings.h"
#include "weights/conversion.h"

namespace fathom::weights {
using model::WeightEntry;
using tensor::WeightFormat;

namespace {

// Large enough that disks and io_uring run at full speed, small enough that what was read is still in the cache when it
// is converted.
constexpr std::int64_t kPackedBytes = std::int64_t{2} << 20;

// `bytes`, copied to aligned memory when the file put them at a place that is odd for elements of `element` bytes.
std::span<const std::byte> aligned(std::span<const std::byte> bytes, int element, std::vector<std::uint64_t>& spare) {
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % static_cast<std::uintptr_t>(element) == 0) return bytes;
  spare.resize(bytes.size() / sizeof(std::uint64_t) + 1);
  std::memcpy(spare.data(), bytes.data(), bytes.size());
  return {reinterpret_cast<const std::byte*>(spare.data()), bytes.size()};
}

void convert_any(DType from, std::span<const std::byte> in, DType to, std::span<std::byte> out) {
  if (from == DType::e8m0 && to == DType::f32) {
    decode_e8m0({reinterpret_cast<const std::uint8_t*>(in.data()), in.size()},
                {reinterpret_cast<float*>(out.data()), in.size()});
  } else {
    convert(from, in, to, out);
  }
}

Status check(const TransferJob& job, std::int64_t first_element, std::span<const std::byte> values) {
  const auto bad = first_not_finite(job.to, values);
  if (!bad) return {};
  return fail("weights.not_finite", {{"name", printable(job.data.tensor->name)},
                                     {"file", job.data.file->path().string()},
                                     {"element", std::to_string(first_element + static_cast<std::int64_t>(*bad))}});
}

// Scales of the rows of a piece, as floats: [rows of blocks, blocks a row].
std::vector<float> scale_values(const TransferJob& job, std::span<const std::byte> bytes) {
  const DType type = *job.scales.tensor->dtype == DType::u8 ? DType::e8m0 : *job.scales.tensor->dtype;
  std::vector<float> values(bytes.size() / static_cast<std::size_t>(dtype_bytes(type)));
  std::vector<std::uint64_t> spare;
  if (type == DType::e8m0)
    decode_e8m0({reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()}, values);
  else
    convert(type, aligned(bytes, dtype_bytes(type), spare), DType::f32,
            {reinterpret_cast<std::byte*>(values.data()), values.size() * sizeof(float)});
  return values;
}

Status read_range(const Path& path, Bytes offset, std::span<std::byte> out) {
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_environment("base.cannot_read", {{"path", path.string()}, {"reason", errno_text(errno)}});
  for (std::size_t done = 0; done < out.size();) {
    const ssize_t n = ::pread(fd.get(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_environment("base.cannot_read", {{"path", path.string()}, {"reason", errno_text(errno)}});
    if (n == 0)
      return fail("weights.truncated", {{"file", path.string()},
                                        {"bytes", std::to_string(offset + done)},
                                        {"expected", std::to_string(offset + out.size())}});
    done += static_cast<std::size_t>(n);
  }
  return {};
}

// Zero points of rows [first, first + count) of the file's matrix: [count, groups]; 8 where there are none.
Result<std::vector<std::uint8_t>> zero_values(const TransferJob& job, std::int64_t first, std::int64_t count) {
  const std::int64_t groups = ceil_div(job.full_cols, job.block.cols);
  std::vector<std::uint8_t> zeros(static_cast<std::size_t>(count * groups), 8);
  if (!job.zeros) return zeros;
  const std::int64_t first_word = first / 8, words = (first + count - 1) / 8 - first_word + 1;
  std::vector<std::uint32_t> packed(static_cast<std::size_t>(words * groups));
  FATHOM_TRY_VOID(read_range(job.zeros.file->path(),
                             job.zeros.tensor->begin + static_cast<Bytes>(first_word * groups * 4),
                             std::as_writable_bytes(std::span(packed))));
  for (std::int64_t r = 0; r < count; ++r)
    for (std::int64_t g = 0; g < groups; ++g)
      zeros[static_cast<std::size_t>(r * groups + g)] = static_cast<std::uint8_t>(
          packed[static_cast<std::size_t>(((first + r) / 8 - first_word) * groups + g)] >> ((first + r) % 8 * 4) & 15u);
  return zeros;
}

// One row of codes of any encoding; `zeros` of int4 alone.
void dequantize_row(const TransferJob& job, std::span<const std::uint8_t> codes, std::span<const float> scales,
                    const std::uint8_t* zeros, std::span<float> row) {
  const auto block = static_cast<std::size_t>(job.block.cols);
  switch (job.encoding) {
    case Encoding::kFp8:
      return dequantize_fp8(codes, scales, block, row);
    case Encoding::kFp4:
      return dequantize_fp4(codes, scales, row);
    case Encoding::kInt8:
      for (std::size_t i = 0; i < row.size(); ++i)
        row[i] = static_cast<float>(static_cast<std::int8_t>(codes[i])) * scales[i / block];
      return;
    case Encoding::kInt4:
      for (std::size_t i = 0; i < row.size(); ++i) {
        const std::size_t group = i / block;
        const int code = static_cast<int>(codes[i / 2] >> (i % 2 * 4) & 15u) - zeros[group];
        row[i] = static_cast<float>(code) * scales[group];
      }
      return;
    case Encoding::kPlain:
      break;
  }
  FATHOM_CHECK(false, "not an encoding to be dequantized");
}

Status finish_dequantized(const TransferJob& job, const TransferPiece& piece, std::span<const std::byte> data,
                          std::span<const std::byte> scale_bytes, bool check_finite) {
  const std::vector<float> scales = scale_values(job, scale_bytes);
  const auto width = static_cast<std::size_t>(job.full_cols), row_bytes = static_cast<std::size_t>(job.row_bytes());
  const auto blocks = static_cast<std::size_t>(ceil_div(job.full_cols, job.block.cols));
  const std::int64_t first_block_row = (job.first_row + piece.first) / job.block.rows;
  const auto out_row = static_cast<std::size_t>(job.cols * dtype_bytes(job.to));
  std::vector<float> row(width);
  std::vector<std::uint8_t> zeros;
  if (job.encoding == Encoding::kInt4) {
    FATHOM_TRY(zeros, zero_values(job, job.first_row + piece.first, piece.count));
  }
  const std::span<const std::byte> window(reinterpret_cast<const std::byte*>(row.data() + job.first_col),
                                          static_cast<std::size_t>(job.cols) * sizeof(float));
  for (std::int64_t r = 0; r < piece.count; ++r) {
    const std::int64_t block_row = (job.first_row + piece.first + r) / job.block.rows - first_block_row;
    const std::span<const float> row_scales(scales.data() + static_cast<std::size_t>(block_row) * blocks, blocks);
    const std::span<const std::uint8_t> codes(
        reinterpret_cast<const std::uint8_t*>(data.data()) + static_cast<std::size_t>(r) * row_bytes, row_bytes);
    dequantize_row(job, codes, row_scales,
                   zeros.empty() ? nullptr : zeros.data() + static_cast<std::size_t>(r) * blocks, row);
    const std::span<std::byte> out(job.out + static_cast<std::size_t>(piece.first + r) * out_row, out_row);
    convert(DType::f32, window, job.to, out);
    if (check_finite) FATHOM_TRY_VOID(check(job, (piece.first + r) * job.cols, out));
  }
  return {};
}

// Rows of a plain matrix of which some columns are wanted.
Status finish_columns(const TransferJob& job, const TransferPiece& piece, std::span<const std::byte> data,
                      bool check_finite) {
  const auto in_bytes = static_cast<std::size_t>(dtype_bytes(job.from)),
             out_row = static_cast<std::size_t>(job.cols * dtype_bytes(job.to));
  const auto row_bytes = static_cast<std::size_t>(job.row_bytes());
  for (std::int64_t r = 0; r < piece.count; ++r) {
    const auto window =
        data.subspan(static_cast<std::size_t>(r) * row_bytes + static_cast<std::size_t>(job.first_col) * in_bytes,
                     static_cast<std::size_t>(job.cols) * in_bytes);
    const std::span<std::byte> out(job.out + static_cast<std::size_t>(piece.first + r) * out_row, out_row);
    convert_any(job.from, window, job.to, out);
    if (check_finite) FATHOM_TRY_VOID(check(job, (piece.first + r) * job.cols, out));
  }
  return {};
}

// Jobs of one weight: the data, and the scales and zero points when they are kept.
void add_jobs(std::vector<TransferJob>& jobs, const WeightEntry& entry, WeightFormat format, const TensorSource& source,
              const TensorOffsets& offsets, std::byte* arena) {
  TransferJob job{.data = source.data,
                  .scales = source.scales,
                  .zeros = source.zeros,
                  .encoding = source.encoding,
                  .block = source.block,
                  .full_cols = entry.full_cols,
                  .first_row = entry.first_row,
                  .first_col = entry.first_col,
                  .rows = entry.rows,
                  .cols = entry.cols,
                  .out = arena + offsets.data};
  const tensor::WeightLayout layout = tensor::weight_layout(format);
  if (layout.code == tensor::WeightCode::kPlain) {
    job.from = source.encoding == Encoding::kPlain ? *source.data.tensor->dtype : DType::u8;
    job.to = tensor::weight_dtype(format);
    if (source.one_scale) job.block = {tensor::kWholeRow, tensor::kWholeRow};
    jobs.push_back(job);
    return;
  }
  // Codes as bytes: a window begins and ends between them (resolve_tensors sees to it).
  const auto bytes_of = [&](std::int64_t cols) {
    return static_cast<std::int64_t>(tensor::weight_row_bytes(format, cols));
  };
  job.encoding = Encoding::kPlain;
  job.scales = job.zeros = {};
  job.from = job.to = layout.code == tensor::WeightCode::kE4m3 ? DType::f8e4m3 : DType::u8;
  job.full_cols = bytes_of(entry.full_cols);
  job.first_col = bytes_of(entry.first_col);
  job.cols = bytes_of(entry.cols);
  jobs.push_back(job);
  const DType stored = *source.scales.tensor->dtype;
  TransferJob scales{.data = source.scales,
                     .repeats = source.one_scale,
                     .from = stored == DType::u8 ? DType::e8m0 : stored,
                     .to = layout.scale,
                     .full_cols = ceil_div(entry.full_cols, layout.cols),
                     .first_row = entry.first_row / layout.rows,
                     .first_col = entry.first_col / layout.cols,
                     .rows = ceil_div(entry.rows, layout.rows),
                     .cols = ceil_div(entry.cols, layout.cols),
                     .out = arena + offsets.scales};
  jobs.push_back(scales);
  if (!layout.zeros) return;
  jobs.push_back({.data = source.zeros,
                  .from = DType::i32,
                  .to = DType::i32,
                  .full_cols = scales.full_cols,
                  .first_row = entry.first_row / 8,
                  .first_col = scales.first_col,
                  .rows = ceil_div(entry.rows, 8),
                  .cols = scales.cols,
                  .out = scales.out + tensor::zeros_offset(format, entry.rows, entry.cols)});
}

}  // namespace

Bytes TransferJob::row_bytes() const {
  if (encoding == Encoding::kFp4) return static_cast<Bytes>(full_cols) / 2;
  if (encoding == Encoding::kInt4) return static_cast<Bytes>(ceil_div(full_cols, 8)) * 4;
  return static_cast<Bytes>(full_cols) * static_cast<Bytes>(dtype_bytes(from));
}

std::vector<TransferJob> make_jobs(const model::WeightTable& table, const StoragePolicy& policy, const WeightPlan& plan,
                                   std::span<const TensorSource> sources, const WeightBlocks& blocks) {
  std::vector<TransferJob> jobs;
  for (std::size_t i = 0; i < table.entries().size(); ++i) {
    const WeightEntry& entry = table.entries()[i];
    if (entry.tied_to >= 0 || !policy.wants(entry)) continue;
    for (std::int64_t e = 0; e < entry.experts; ++e) {
      const auto parameter = static_cast<std::size_t>(entry.first_parameter + e);
      add_jobs(jobs, entry, plan.formats[i], sources[parameter], plan.tensors[parameter], plan.home(blocks, parameter));
    }
  }
  std::sort(jobs.begin(), jobs.end(), [](const TransferJob& a, const TransferJob& b) {
    return std::pair(a.data.file, a.data.tensor->begin) < std::pair(b.data.file, b.data.tensor->begin);
  });
  return jobs;
}

TransferPlan plan_transfer(std::vector<TransferJob> jobs) {
  TransferPlan plan{.jobs = std::move(jobs)};
  std::map<const SafetensorsFile*, std::uint32_t> numbers;
  const auto number_of = [&](const SafetensorsFile* file) {
    const auto [it, added] = numbers.emplace(file, static_cast<std::uint32_t>(plan.files.size()));
    if (added) plan.files.push_back(file->path());
    return it->second;
  };
  for (std::size_t j = 0; j < plan.jobs.size(); ++j) {
    const TransferJob& job = plan.jobs[j];
    if (job.repeats) {
      plan.pieces.push_back({static_cast<std::uint32_t>(j), 0, 1});
      plan.tasks.push_back({.file = number_of(job.data.file),
                            .data = {job.data.tensor->begin, static_cast<Bytes>(dtype_bytes(job.from))}});
      continue;
    }
    const bool flat = job.contiguous() && !job.dequantizes();
    const auto unit = static_cast<std::int64_t>(flat ? static_cast<Bytes>(dtype_bytes(job.from)) : job.row_bytes());
    const std::int64_t total = flat ? job.rows * job.cols : job.rows;
    const std::int64_t step = std::max<std::int64_t>(kPackedBytes / unit, 1);
    for (std::int64_t first = 0, count = 0; first < total; first += count) {
      count = std::min(step, total - first);
      const Bytes lead = flat ? static_cast<Bytes>(job.first_row * job.full_cols + job.first_col + first)
                              : static_cast<Bytes>(job.first_row + first);
      ReadTask task{
          .file = number_of(job.data.file),
          .data = {job.data.tensor->begin + lead * static_cast<Bytes>(unit), static_cast<Bytes>(count * unit)}};
      if (flat && job.copies()) task.into = job.out + first * unit;
      if (job.dequantizes()) {
        const std::int64_t scale_row = ceil_div(job.full_cols, job.block.cols) * dtype_bytes(*job.scales.tensor->dtype);
        const std::int64_t first_row = (job.first_row + first) / job.block.rows,
                           last_row = (job.first_row + first + count - 1) / job.block.rows;
        task.scales_file = number_of(job.scales.file);
        task.scales = {job.scales.tensor->begin + static_cast<Bytes>(first_row * scale_row),
                       static_cast<Bytes>((last_row - first_row + 1) * scale_row)};
      }
      plan.pieces.push_back({static_cast<std::uint32_t>(j), first, count});
      plan.tasks.push_back(task);
    }
  }
  return plan;
}

Status finish_piece(const TransferJob& job, const TransferPiece& piece, std::span<const std::byte> data,
                    std::span<const std::byte> scales, bool check_finite) {
  std::vector<std::uint64_t> spare;
  data = aligned(data, dtype_bytes(job.from), spare);
  if (job.repeats) {
    const auto size = static_cast<std::size_t>(dtype_bytes(job.to));
    convert_any(job.from, data, job.to, {job.out, size});
    for (std::int64_t i = 1; i < job.rows * job.cols; ++i)
      std::memcpy(job.out + static_cast<std::size_t>(i) * size, job.out, size);
    return check_finite ? check(job, 0, {job.out, size}) : Status{};
  }
  if (job.dequantizes()) return finish_dequantized(job, piece, data, scales, check_finite);
  if (!job.contiguous()) return finish_columns(job, piece, data, check_finite);
  const auto out_bytes = static_cast<std::size_t>(dtype_bytes(job.to));
  const std::span<std::byte> out(job.out + static_cast<std::size_t>(piece.first) * out_bytes,
                                 static_cast<std::size_t>(piece.count) * out_bytes);
  if (data.data() != out.data()) convert_any(job.from, data, job.to, out);
  return check_finite ? check(job, piece.first, out) : Status{};
}

}  // namespace fathom::weights
