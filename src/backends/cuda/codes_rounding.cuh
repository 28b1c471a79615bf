// x becomes codes of eight bits for a product: by itself, or as it is made.
#pragma once
#include "backends/cuda/context.h"
#include "tensor/ops.h"

namespace fathom::cuda {

inline constexpr std::int64_t kTokensOfBlocks = 4;  // scales of stretches go to cuBLASLt in multiples of so many tokens

struct RoundCodes {
  const float* x = nullptr;
  std::int64_t x_stride = 0, tokens = 0;
  int cols = 0, width = 0;  // width: bytes of a row of codes, a multiple of 16; those behind `cols` are zero
  DType type = DType::f8e4m3;
  CodesKind kind;
  std::uint8_t* codes = nullptr;  // [tokens, width]
  float* scales = nullptr;        // token t's (and its stretch d's) at t · token_step + d · stretch_step
  std::int64_t token_step = 1, stretch_step = 0;
  bool beside = false;            // of stretches: the launch before lets this one run beside it (launch.cuh), and neither reads what the other writes
};

void round_codes(Context& context, const RoundCodes& args);
/// Dense codes at context.rounded_data and their scales behind them: [tokens], or [stretches, tokens].
RoundCodes codes_at_rounded_data(const Context& context, const float* x, std::int64_t x_stride, std::int64_t tokens, std::int64_t cols, DType type, const CodesKind& kind);
/// How many tokens' codes and scales fit there, beside a few tokens of f32.
std::int64_t codes_that_fit(std::int64_t cols);
/// What context.rounded says of them.
RoundedActivations codes_of(const RoundCodes& codes);

/// Ops that also make codes for the product that comes next, when the last one wanted them. False: not for these;
/// nothing was launched.
bool norm_and_code(Context& context, const tensor::RmsNormArgs& args);
bool gate_and_code(Context& context, const tensor::SwigluArgs& args);

}  // namespace fathom::cuda
