#include "weights/random.h"

#include <algorithm>

#include "weights/simd.h"

namespace fathom::weights {
namespace {

constexpr std::uint64_t kRun = 65536;              // elements under one key
constexpr float kFourUniforms = 1.0f / 37837.23f;  // 1 / deviation of the sum of four numbers even over 0 … 65535

// A bijection of 32 bits with the keys in its middle, so that runs with nearby keys share nothing.
FATHOM_KERNEL std::uint32_t scramble(std::uint32_t x, std::uint32_t key0, std::uint32_t key1) {
  x *= 0x9e3779b1u;
  x ^= x >> 15;
  x = (x + key0) * 0x85ebca77u;
  x ^= x >> 13;
  x = (x ^ key1) * 0xc2b2ae3du;
  return x ^ (x >> 16);
}

// A pair of draws wherever it lies.
using LoosePair [[gnu::aligned(1), gnu::may_alias]] = std::uint32_t;

struct RandomLoops {
  static FATHOM_KERNEL void normals(std::uint32_t first, std::uint32_t key0, std::uint32_t key1, float factor,
                                    float* out, std::uint32_t n) {
    for (std::uint32_t i = 0; i < n; ++i) {
      const std::uint32_t a = scramble(first + i, key0, key1);
      std::uint32_t b = (a ^ 0x5bf03635u) * 0x27d4eb2fu;
      b = (b ^ (b >> 15)) * 0x165667b1u;
      b ^= b >> 16;
      const std::uint32_t sum = (a & 0xffffu) + (a >> 16) + (b & 0xffffu) + (b >> 16);
      out[i] = static_cast<float>(static_cast<std::int32_t>(sum) - 131070) * factor;
    }
  }
  // Two draws a number: its low half belongs to the even element.
  static FATHOM_KERNEL void pairs(std::uint32_t first, std::uint32_t key0, std::uint32_t key1, LoosePair* out,
                                  std::size_t n) {
    for (std::size_t i = 0; i < n; ++i, ++first) out[i] = scramble(first, key0, key1);
  }
};

// Calls body(place in out, index in its run, key, count) for each run that [first, first + n) touches.
template <class Body>
void each_run(std::uint64_t key, std::uint64_t first, std::size_t n, Body&& body) {
  for (std::size_t done = 0; done < n;) {
    const std::uint64_t at = first + done, inside = at % kRun;
    const std::size_t count = std::min<std::size_t>(n - done, kRun - inside);
    body(done, static_cast<std::uint32_t>(inside), mix64(key + at / kRun), count);
    done += count;
  }
}

}  // namespace

std::uint64_t mix64(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

RandomStream::RandomStream(std::uint64_t seed, std::string_view name) : key_(mix64(seed)) {
  for (const char c : name) key_ = mix64(key_ ^ static_cast<unsigned char>(c));
}

float RandomStream::factor(float deviation) { return deviation * kFourUniforms; }

void RandomStream::normals(std::uint64_t first, float mean, float deviation, std::span<float> out) const {
  const float scale = factor(deviation);
  each_run(key_, first, out.size(), [&](std::size_t at, std::uint32_t inside, std::uint64_t key, std::size_t count) {
    dispatch<RandomLoops::normals>(inside, static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32),
                                   scale, out.data() + at, static_cast<std::uint32_t>(count));
  });
  if (mean != 0)
    for (float& x : out) x += mean;
}

void RandomStream::bits16(std::uint64_t first, std::span<std::uint16_t> out) const {
  each_run(key_, first, out.size(), [&](std::size_t at, std::uint32_t inside, std::uint64_t key, std::size_t count) {
    const auto key0 = static_cast<std::uint32_t>(key), key1 = static_cast<std::uint32_t>(key >> 32);
    std::uint16_t* to = out.data() + at;
    const auto single = [&](std::uint32_t element) {
      return static_cast<std::uint16_t>(scramble(element / 2, key0, key1) >> (element % 2 * 16));
    };
    if (inside % 2 == 1) {  // the second half of a pair
      *to++ = single(inside++);
      --count;
    }
    dispatch<RandomLoops::pairs>(inside / 2, key0, key1, reinterpret_cast<LoosePair*>(to), count / 2);
    if (count % 2 == 1) to[count - 1] = single(inside + static_cast<std::uint32_t>(count) - 1);
  });
}

}  // namespace fathom::weights
