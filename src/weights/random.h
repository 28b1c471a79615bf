// Random numbers by position: element i of stream (seed, name) is the same whoever computes it, in whatever order or
// number of threads, on whatever processor.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>

namespace fathom::weights {

class RandomStream {
 public:
  RandomStream(std::uint64_t seed, std::string_view name);

  /// out[i] = mean + deviation · z of element first + i, where z has mean 0, deviation 1 and the bell of four uniform
  /// numbers added up: never beyond 3.47.
  void normals(std::uint64_t first, float mean, float deviation, std::span<float> out) const;
  /// Sixteen even bits an element.
  void bits16(std::uint64_t first, std::span<std::uint16_t> out) const;

  // What a device needs to draw the same: elements lie in runs, run r of which has the key mix64(key() + r).
  std::uint64_t key() const { return key_; }
  static float factor(float deviation);

 private:
  std::uint64_t key_;
};

/// A good 64-bit mix, for single numbers.
std::uint64_t mix64(std::uint64_t x);

}  // namespace fathom::weights
