// Every input that the fuzzer found worth keeping is replayed, so that ordinary tests hold what fuzzing has shown.
#include <gtest/gtest.h>

#include "fuzz_input.h"
#include "support/paths.h"

namespace fathom::weights {
namespace {

TEST(Corpus, SafetensorsInputsAreSurvived) {
  std::size_t replayed = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(fathom::test::fixtures() / ".." / "fuzz" / "corpus" / "safetensors")) {
    test::fuzz_one(test::slurp(entry.path()));
    ++replayed;
  }
  EXPECT_GE(replayed, 10u);
}

}  // namespace
}  // namespace fathom::weights
