#include "backends/op_cases.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>

#include "backends/op_case_run.h"
#include "backends/reference/reference_backend.h"

namespace fathom::test {
namespace {

std::uint64_t hash(const std::string& name, std::uint64_t seed) {
  std::uint64_t h = 0xcbf29ce484222325u ^ seed;
  for (const char c : name) h = (h ^ static_cast<std::uint8_t>(c)) * 0x100000001b3u;
  return h;
}

std::string coordinate(const tensor::Shape& shape, std::int64_t i) {
  std::string out;
  for (int d = shape.rank - 1; d >= 0; --d) {
    out = std::to_string(i % shape[d]) + (out.empty() ? "" : ", " + out);
    i /= shape[d];
  }
  return "[" + out + "]";
}

bool same(double got, double want) { return got == want || (std::isnan(got) && std::isnan(want)); }

bool same_bits(const CaseResult& a, const CaseResult& b) {
  if (a.outputs.size() != b.outputs.size()) return false;
  for (std::size_t i = 0; i < a.outputs.size(); ++i) {
    const auto &x = a.outputs[i].values, &y = b.outputs[i].values;
    if (x.size() != y.size() || (!x.empty() && std::memcmp(x.data(), y.data(), x.size() * sizeof(double)) != 0))
      return false;
  }
  return true;
}

void report(const OpCase& op_case, const std::string& what) {
  ADD_FAILURE() << op_case.name << ": " << what << "\n  replay with FATHOM_TEST_SEED=" << test_seed()
                << " FATHOM_TEST_CASE=" << op_case.name;
}

}  // namespace

std::vector<OpCase> op_cases() {
  std::vector<OpCase> all;
  for (const auto& family :
       {rows_cases(), norm_cases(), linear_cases(), rope_cases(), cache_cases(), attention_cases(), index_cases(),
        compress_cases(), expert_cases(), route_cases(), hyper_cases(), loss_cases()})
    all.insert(all.end(), family.begin(), family.end());
  return all;
}

std::uint64_t test_seed() {
  const char* text = std::getenv("FATHOM_TEST_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 20260131u;
}

namespace {
class SharedMemory final : public CaseMemory {
 public:
  SharedMemory(tensor::Backend& backend, std::unique_ptr<tensor::Buffer> buffer)
      : backend_(backend), buffer_(std::move(buffer)) {}
  std::byte* take(std::size_t bytes) override {
    const std::size_t first = used_;
    used_ += (bytes + 63) / 64 * 64;
    FATHOM_CHECK(used_ <= buffer_->bytes(), "a case needs more memory than it was given");
    return buffer_->data() + first;
  }
  void reset() override { used_ = 0; }
  Status settle() override { return backend_.synchronize(); }

 private:
  tensor::Backend& backend_;
  std::unique_ptr<tensor::Buffer> buffer_;
  std::size_t used_ = 0;
};
}  // namespace

Result<std::unique_ptr<CaseMemory>> make_case_memory(tensor::Backend& backend, Bytes bytes) {
  FATHOM_TRY(auto buffer, backend.allocate_buffer(bytes, tensor::Placement::kShared));
  return std::make_unique<SharedMemory>(backend, std::move(buffer));
}

CaseResult run_case(const OpCase& op_case, tensor::Ops& ops, tensor::GradOps* grad, std::uint64_t seed,
                    CaseMemory* memory) {
  if (memory != nullptr) memory->reset();
  CaseRun run(ops, grad, hash(op_case.name, seed), memory);
  op_case.body(run);
  return run.finish();
}

std::string compare(const CaseOutput& got, const CaseOutput& want, const Tolerance& tolerance, double magnitude) {
  if (!(got.shape == want.shape)) return fmt::format("'{}' has another shape", want.name);
  const Tolerance t = want.integers ? Tolerance{} : tolerance;
  const std::int64_t count = want.shape.elements(), width = want.shape.rank > 0 ? want.shape[want.shape.rank - 1] : 0;
  std::int64_t failed = 0, worst = -1, bad_row = -1;
  double worst_excess = -1, row_error = 0, row_limit = 0, sum_error = 0, sum_want = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const double g = got.values[static_cast<std::size_t>(i)], w = want.values[static_cast<std::size_t>(i)];
    const double error = same(g, w) ? 0.0 : std::fabs(g - w);
    const double limit = std::isfinite(w) ? t.abs * magnitude + t.rel * std::fabs(w) + t.element : 0.0;
    if (!(error <= limit)) {
      ++failed;
      const double excess = std::isfinite(error) ? error - limit : std::numeric_limits<double>::infinity();
      if (excess > worst_excess) worst_excess = excess, worst = i;
    }
    if (std::isfinite(error) && std::isfinite(w)) sum_error += error * error, sum_want += w * w;
    if ((i + 1) % width != 0) continue;
    const double rms_error = std::sqrt(sum_error / static_cast<double>(width)),
                 rms_limit = t.abs * magnitude + t.row * std::sqrt(sum_want / static_cast<double>(width));
    if (!(rms_error <= rms_limit) && bad_row < 0) bad_row = i / width, row_error = rms_error, row_limit = rms_limit;
    sum_error = sum_want = 0;
  }
  if (failed == 0 && bad_row < 0) return "";
  std::string text = fmt::format("'{}': {} of {} elements fail", want.name, failed, count);
  if (worst >= 0)
    text += fmt::format("; worst at {}: got {:.9g}, want {:.9g}", coordinate(want.shape, worst),
                        got.values[static_cast<std::size_t>(worst)], want.values[static_cast<std::size_t>(worst)]);
  if (bad_row >= 0)
    text += fmt::format("; row {} has an rms error of {:.3g}, allowed {:.3g}", bad_row, row_error, row_limit);
  return text;
}

namespace {
int check_cases(const std::vector<OpCase>& cases, tensor::Backend& candidate, const CheckOptions& options) {
  const DType activation = candidate.ops().activation_dtype();
  auto reference = reference::make_reference_backend({.activation_dtype = activation});
  if (!reference) {
    ADD_FAILURE() << error_text(reference.error());
    return 0;
  }
  const char* only = std::getenv("FATHOM_TEST_CASE");
  int ran = 0;
  for (const OpCase& op_case : cases) {
    if (only != nullptr && op_case.name.find(only) == std::string::npos) continue;
    if (options.wanted ? !options.wanted(op_case)
                       : op_case.format == tensor::WeightFormat::f64 && activation != DType::f64)
      continue;
    ++ran;
    const CaseResult want = run_case(op_case, (*reference)->ops(), (*reference)->grad_ops()),
                     got = run_case(op_case, candidate.ops(), candidate.grad_ops(), test_seed(), options.memory);
    for (const std::string& fault : got.faults) report(op_case, fault);
    for (const std::string& fault : want.faults) report(op_case, "in the reference: " + fault);
    Tolerance tolerance = options.tolerance ? options.tolerance(op_case) : op_case.exact ? Tolerance{} : kF32Tolerance;
    tolerance.abs += op_case.codes, tolerance.row += op_case.codes;
    if (got.outputs.size() != want.outputs.size()) return ran;  // a device that failed: nothing after it can run
    for (std::size_t i = 0; i < want.outputs.size(); ++i)
      if (const std::string text = compare(got.outputs[i], want.outputs[i], tolerance, op_case.magnitude);
          !text.empty())
        report(op_case, text);
    if (options.twice &&
        !same_bits(got, run_case(op_case, candidate.ops(), candidate.grad_ops(), test_seed(), options.memory)))
      report(op_case, "the same call gave other bits the second time");
  }
  return ran;
}
}  // namespace

int check_against_reference(tensor::Backend& candidate, const CheckOptions& options) {
  return check_cases(op_cases(), candidate, options);
}

int check_gradients_against_reference(tensor::Backend& candidate, const CheckOptions& options) {
  if (candidate.grad_ops() != nullptr) return check_cases(grad_cases(), candidate, options);
  ADD_FAILURE() << candidate.name() << " does not differentiate";
  return 0;
}

}  // namespace fathom::test
