// Stages: products and attention of one token, one after the other, by one launch. Its blocks stay, one a
// multiprocessor; a block that waits for the others at a stage's end has the weights of its next stages on their way,
// so the memory is never idle, which between launches it is.
//
// Ops hand in what they would launch (waiting.cu, ops_attention.cu); whatever else is launched, and every flush, closes
// what has been gathered. Few stages, or stages that do not fit, are launched one by one as ever, and what turned out
// to be few is not begun again.
#pragma once
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "backends/cuda/context.h"
#include "tensor/ops.h"

namespace fathom::cuda {

struct Together;
struct AttentionView;
struct FreshRows;

class Stages {
 public:
  Stages();
  Stages(const Stages&) = delete;
  Stages& operator=(const Stages&) = delete;
  ~Stages();
  /// Device memory for tables of stages, zeroed.
  static constexpr Bytes kRoomBytes = kStagesBytes;
  void use(std::byte* room);

  /// Products of one token. False: not for these; nothing has been taken.
  bool add(Context& context, const Together& all);
  /// Attention of one token over a cache of one segment, whose new rows are made on the way; it follows the products
  /// that made them.
  bool add(Context& context, const tensor::AttentionArgs& args, const AttentionView& view, const FreshRows& fresh);
  bool empty() const;
  /// Whether the device can; and how many stages have been launched by launches of several.
  static bool possible(const Context& context);
  std::int64_t launched() const { return launched_; }
  /// Launches what has been gathered.
  void close(Context& context);
  /// After a recording and before its first launch: tables of recorded launches go to the device.
  void upload(Context& context);
  /// There is no room for the tables of another recorded launch: its stages would be launched one by one.
  bool full() const;
  /// Nothing recorded will be launched any more.
  void forget();

 private:
  struct Gathered;
  std::unique_ptr<Gathered> gathered_;
  struct Table {
    std::byte* to;
    std::vector<std::byte> bytes;
  };
  std::vector<Table> tables_;                           // that wait for upload()
  std::unordered_set<const std::byte*> short_;          // first weights of launches that had few stages
  std::unordered_map<const void*, unsigned> clusters_;  // of a kernel: how many blocks make x for each other
  std::byte* room_ = nullptr;
  Bytes used_ = 0;
  std::int64_t launched_ = 0;
};

}  // namespace fathom::cuda
