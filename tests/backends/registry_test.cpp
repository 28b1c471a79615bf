// The registry itself: its names are unique, every op has cases, the reference passes its own, and each kind of mistake
// that an implementation can make is caught.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <set>

#include "backends/forwarding_ops.h"
#include "backends/op_cases.h"
#include "backends/reference/reference_backend.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary

std::unique_ptr<Backend> reference_backend(DType activation = DType::f32) {
  return std::move(*reference::make_reference_backend({.activation_dtype = activation}));
}

TEST(Registry, EveryOpHasCasesWithUniqueNames) {
  std::set<std::string> names;
  std::map<std::string, int> ops;
  for (const OpCase& op_case : op_cases()) {
    EXPECT_TRUE(names.insert(op_case.name).second) << op_case.name << " twice";
    ++ops[op_case.op];
  }
  for (const char* op : {"embed",      "gather_rows",  "copy",           "add",        "expand_streams", "rms_norm",
                         "layer_norm", "linear",       "grouped_linear", "rotary",     "rope",           "cache_write",
                         "attention",  "index_select", "compress",       "swiglu",     "gelu",           "route",
                         "experts",    "hyper_mix",    "hyper_merge",    "hyper_head", "cross_entropy"})
    EXPECT_GE(ops[op], 3) << op;
}

TEST(Registry, ReferencePassesInEveryActivationType) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    const auto backend = reference_backend(dtype);
    CheckOptions options;
    options.twice = dtype == DType::f32;
    EXPECT_GT(check_against_reference(*backend, options), 500);
  }
}

/// What is wanted holds NaN only where an input did: a case whose expectation is all NaN could not fail.
TEST(Registry, ExpectationsAreMostlyNumbers) {
  const auto backend = reference_backend();
  for (const OpCase& op_case : op_cases()) {
    if (op_case.format == WeightFormat::f64) continue;
    for (const CaseOutput& output : run_case(op_case, backend->ops()).outputs) {
      std::size_t nan = 0;
      for (const double value : output.values) nan += std::isnan(value) ? 1 : 0;
      const bool may =
          op_case.name.find("nan") != std::string::npos || op_case.name.find("infinity") != std::string::npos;
      EXPECT_LE(nan, output.values.size() / 2) << op_case.name << " " << output.name;
      EXPECT_TRUE(op_case.op != "attention" || may || nan == 0) << op_case.name;
      for (const double value : output.values)
        EXPECT_FALSE(output.integers && value == -123456.0) << op_case.name << " leaves integers unwritten";
    }
  }
}

/// An addition that goes wrong in a chosen way.
using Wrong = std::function<void(const AddArgs&)>;
std::string check_wrong_add(const Wrong& wrong) {
  const auto right = reference_backend();
  std::string first;
  for (const OpCase& op_case : op_cases()) {
    if (op_case.name != "add/apart/r3_w65/strided") continue;
    const CaseResult want = run_case(op_case, right->ops());
    struct Broken final : ForwardingOps {
      Broken(Ops& inner, const Wrong& wrong) : ForwardingOps(inner), wrong(wrong) {}
      void add(const AddArgs& args) override { inner_.add(args), wrong(args); }
      const Wrong& wrong;
    } broken(right->ops(), wrong);
    const CaseResult got = run_case(op_case, broken);
    if (!got.faults.empty()) return got.faults[0];
    return compare(got.outputs[0], want.outputs[0], kF32Tolerance, op_case.magnitude);
  }
  return "no such case";
}

TEST(Registry, CatchesEveryKindOfMistake) {
  EXPECT_EQ(check_wrong_add([](const AddArgs&) {}), "");
  const auto says = [](const Wrong& wrong, const std::string& part) {
    EXPECT_NE(check_wrong_add(wrong).find(part), std::string::npos) << check_wrong_add(wrong);
  };
  says([](const AddArgs& args) { args.out.rows(1, 1).as<float>()[40] += 1; }, "worst at [1, 40]");
  says([](const AddArgs& args) { args.out.as<float>()[2] = std::numeric_limits<float>::quiet_NaN(); },
       "worst at [0, 2]");
  says([](const AddArgs& args) { args.out.rows(1, 1).as<float>()[1] = 0; },
       "worst at [1, 1]");  // a number where NaN is wanted
  says([](const AddArgs& args) { args.out.as<float>()[0] = 3e38f; },
       "worst at [0, 0]");  // large where infinity is wanted
  says([](const AddArgs& args) { args.out.as<float>()[65] = 0; }, "a stray write 260 bytes");   // into the gap of a row
  says([](const AddArgs& args) { args.out.as<float>()[-1] = 0; }, "a stray write -4 bytes");    // before the first
  says([](const AddArgs& args) { args.out.rows(2, 1).as<float>()[65] = 0; }, "a stray write");  // after the last
  says([](const AddArgs& args) { args.a.as<float>()[5] = 0; }, "an input");
}

TEST(Registry, RowsAreGatedApartFromElements) {
  CaseOutput want{.name = "x", .shape = {1, 100}, .values = std::vector<double>(100, 1.0)}, got = want;
  for (double& value : got.values) value += 0.9e-5;
  EXPECT_EQ(compare(got, want, {.abs = 0, .rel = 1e-5, .row = 1e-5}, 1), "");
  EXPECT_NE(compare(got, want, {.abs = 0, .rel = 1e-5, .row = 5e-6}, 1).find("row 0"), std::string::npos);
}

}  // namespace
}  // namespace fathom::test
