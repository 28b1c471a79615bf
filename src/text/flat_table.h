// The two hash tables of a vocabulary: strings to numbers, pairs of numbers to numbers. Open addressing, insert and
// find only.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace fathom::text {

/// Distinct strings, numbered from 0 in the order of their arrival. At most 2^32 - 2 of them, 4 GiB of text.
class StringTable {
 public:
  static constexpr std::uint32_t kNone = 0xffffffffu;

  void reserve(std::size_t strings, std::size_t bytes) {
    bytes_.reserve(bytes);
    ends_.reserve(strings);
    if (strings * 2 > slots_.size()) rehash(strings * 2);
  }
  std::uint32_t size() const { return static_cast<std::uint32_t>(ends_.size()); }
  std::string_view at(std::uint32_t index) const {
    const std::size_t begin = index == 0 ? 0 : ends_[index - 1];
    return {bytes_.data() + begin, ends_[index] - begin};
  }
  std::uint32_t find(std::string_view text) const {
    if (slots_.empty()) return kNone;
    const std::uint64_t hash = hash_of(text);
    for (std::size_t i = hash >> shift_;; i = (i + 1) & (slots_.size() - 1)) {
      const std::uint64_t slot = slots_[i];
      if (slot == 0) return kNone;
      const auto index = static_cast<std::uint32_t>(slot) - 1;
      if (slot >> 32 == (hash & 0xffffffffu) && at(index) == text) return index;
    }
  }
  /// The number of `text`, new or old; `fresh` says which.
  std::uint32_t insert(std::string_view text, bool& fresh) {
    const std::uint32_t known = find(text);
    fresh = known == kNone;
    if (!fresh) return known;
    if ((ends_.size() + 1) * 3 > slots_.size() * 2) rehash(slots_.size() * 2);
    bytes_ += text;
    ends_.push_back(static_cast<std::uint32_t>(bytes_.size()));
    place(size() - 1);
    return size() - 1;
  }

 private:
  static std::uint64_t hash_of(std::string_view text) {
    constexpr std::uint64_t factor = 0x9e3779b97f4a7c15u;
    std::uint64_t hash = text.size() * factor;
    const char* p = text.data();
    std::size_t left = text.size();
    for (; left >= 8; p += 8, left -= 8) {
      std::uint64_t word;
      std::memcpy(&word, p, 8);
      hash = (hash ^ word) * factor;
      hash ^= hash >> 29;
    }
    std::uint64_t word = 0;
    if (left > 0) std::memcpy(&word, p, left);
    hash = (hash ^ word) * factor;
    hash ^= hash >> 32;
    return hash * factor;
  }
  void place(std::uint32_t index) {
    const std::uint64_t hash = hash_of(at(index));
    std::size_t i = hash >> shift_;
    while (slots_[i] != 0) i = (i + 1) & (slots_.size() - 1);
    slots_[i] = hash << 32 | (index + 1);
  }
  void rehash(std::size_t wanted) {
    std::size_t size = 16;
    shift_ = 60;
    while (size < wanted) size *= 2, --shift_;
    slots_.assign(size, 0);
    for (std::uint32_t i = 0; i < this->size(); ++i) place(i);
  }

  std::string bytes_;
  std::vector<std::uint32_t> ends_;
  std::vector<std::uint64_t> slots_;  // low half of the hash above the number + 1; 0 is free
  int shift_ = 60;
};

/// 64-bit keys (any but ~0) to 64-bit values.
class NumberTable {
 public:
  static constexpr std::uint64_t kFree = ~std::uint64_t{0};

  void reserve(std::size_t entries) {
    if (entries * 2 > slots_.size()) rehash(entries * 2);
  }
  std::size_t size() const { return size_; }
  /// The value of `key`, or nullptr.
  const std::uint64_t* find(std::uint64_t key) const {
    if (slots_.empty()) return nullptr;
    for (std::size_t i = start(key);; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].key == key) return &slots_[i].value;
      if (slots_[i].key == kFree) return nullptr;
    }
  }
  /// Sets or replaces.
  void set(std::uint64_t key, std::uint64_t value) {
    if ((size_ + 1) * 3 > slots_.size() * 2) rehash(slots_.size() * 2);
    Slot& slot = slot_of(key);
    size_ += slot.key == kFree;
    slot = {key, value};
  }

 private:
  struct Slot {
    std::uint64_t key = kFree, value = 0;
  };
  std::size_t start(std::uint64_t key) const {
    key ^= key >> 31;
    return (key * 0x9e3779b97f4a7c15u) >> shift_;
  }
  Slot& slot_of(std::uint64_t key) {
    std::size_t i = start(key);
    while (slots_[i].key != kFree && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
    return slots_[i];
  }
  void rehash(std::size_t wanted) {
    std::size_t size = 16;
    shift_ = 60;
    while (size < wanted) size *= 2, --shift_;
    std::vector<Slot> old(size);
    old.swap(slots_);
    for (const Slot& slot : old)
      if (slot.key != kFree) slot_of(slot.key) = slot;
  }

  std::vector<Slot> slots_;
  std::size_t size_ = 0;
  int shift_ = 60;
};

}  // namespace fathom::text
