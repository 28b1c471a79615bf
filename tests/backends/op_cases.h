// The registry of op cases: one list of calls that drives every implementation of Ops.
//
// How to hold a backend against the reference, in a test of its own:
//
//     TEST(CpuBackend, AgreesWithReference) {
//       auto backend = make_cpu_backend({.isa = "avx2"});
//       CheckOptions options;
//       options.wanted = [](const OpCase& c) { return c.format != WeightFormat::mxfp4; };              // what it can
//       do options.tolerance = [](const OpCase& c) { return c.exact ? Tolerance{0, 0, 0} : kF32Tolerance; };  // how
//       well check_against_reference(**backend, options);
//     }
//
// Every case makes its data from a seed that failures print; FATHOM_TEST_SEED=<number> replays it,
// FATHOM_TEST_CASE=<part of a name> runs a few. Around every tensor lie guard bands: a stray write, a write into the
// gaps of a strided output, or a write to an input is a failure. Outputs start as NaN, so that what is not written
// shows; gaps and invisible cache rows hold NaN, so that reading them shows.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tensor/backend.h"
#include "tensor/ops.h"

namespace fathom::test {

class CaseRun;  // op_case_run.h: what a case makes its tensors with

/// One call of one op.
struct OpCase {
  std::string op;                                           // "linear": the name of the member of Ops
  std::string name;                                         // "linear/bf16/t3_n33_k65/strided": unique
  tensor::WeightFormat format = tensor::WeightFormat::f32;  // of its weights, or of its cache
  bool exact = false;    // small integers, copies or choices: every correct implementation gives the same values,
                         // whatever its order of sums
  double magnitude = 1;  // the natural size of the outputs: multiplies Tolerance::abs
  double codes = 0;  // added to Tolerance::abs and row: what is rounded to eight bits in between may, by the last bit
                     // of a sum in f32, become the next code
  std::function<void(CaseRun&)> body;
};

/// All cases, in a fixed order. Names are unique.
std::vector<OpCase> op_cases();
/// Cases of GradOps ("linear_backward", …): every gradient output holds something before, and must have the gradient
/// added.
std::vector<OpCase> grad_cases();

struct CaseOutput {
  std::string name;
  tensor::Shape shape;
  std::vector<double> values;
  bool integers = false;  // compared exactly
};
struct CaseResult {
  std::vector<CaseOutput> outputs;
  std::vector<std::string> faults;  // stray writes, in words
};
/// Memory that cases make their tensors in when a backend cannot reach the heap; and the end of what was launched.
class CaseMemory {
 public:
  virtual ~CaseMemory() = default;
  /// Aligned to 64 bytes; host and backend both read and write it. Good until the next case begins.
  virtual std::byte* take(std::size_t bytes) = 0;
  /// A case begins: what was taken before may be given out again.
  virtual void reset() = 0;
  /// Waits until what was launched is done.
  virtual Status settle() = 0;
};
/// Shared memory of `backend` (Placement::kShared), `bytes` of it: more than any case needs.
Result<std::unique_ptr<CaseMemory>> make_case_memory(tensor::Backend& backend, Bytes bytes = 64 * kMiB);

/// The seed of this process: FATHOM_TEST_SEED, or a fixed one.
std::uint64_t test_seed();
/// Makes the case's data (the same for every implementation of one activation type), calls the op, checks the guard
/// bands.
CaseResult run_case(const OpCase& op_case, tensor::Ops& ops, tensor::GradOps* grad = nullptr,
                    std::uint64_t seed = test_seed(), CaseMemory* memory = nullptr);

/// An element passes when abs(got - want) <= abs · magnitude + rel · abs(want) + element, or when both are NaN, or the
/// same infinity; a row (innermost dimension) passes when the root mean square of its errors is at most abs · magnitude
/// + row · that of what is wanted.
struct Tolerance {
  double abs = 0, rel = 0, row = 0, element = 0;
};
inline constexpr Tolerance kF32Tolerance{2e-5, 2e-5, 5e-6};  // sums in f32 in any order, exponentials to a few ulp

/// "" when `got` passes; else the worst coordinate, the worst row and how many failed.
std::string compare(const CaseOutput& got, const CaseOutput& want, const Tolerance& tolerance, double magnitude);

struct CheckOptions {
  std::function<bool(const OpCase&)> wanted;  // default: all but f64 formats, those too when activations are f64
  std::function<Tolerance(const OpCase&)> tolerance;  // default: 0 where the case is exact, else kF32Tolerance
  bool twice = true;                                  // each case runs twice and must give the same bits
  CaseMemory* memory = nullptr;                       // of the candidate; null: the heap
};
/// Runs every wanted case on the candidate and on a reference backend of the same activation type; failures are gtest
/// failures. Returns how many cases ran.
int check_against_reference(tensor::Backend& candidate, const CheckOptions& options = {});
/// The same for its grad_ops().
int check_gradients_against_reference(tensor::Backend& candidate, const CheckOptions& options = {});

}  // namespace fathom::test
