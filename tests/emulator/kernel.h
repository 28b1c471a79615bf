// A kernel as the emulator runs it: its instructions with their operands as places in a warp's register file.
// decode.cpp makes it of PTX.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "emulator/gpu.h"

namespace fathom::emulator {

inline constexpr int kLanes = 32;
using Mask = std::uint32_t;  // a bit a lane
inline constexpr Mask kAll = 0xffffffffu;

class Warp;
struct Instruction;
/// What an instruction does for the lanes of `mask`.
using Execute = void (*)(Warp& warp, const Instruction& instruction, Mask mask);

/// A register of all lanes (`width` bytes each, one after the other), a predicate (width 1: a Mask), or none (width 0).
/// Immediates, special registers and addresses of variables are registers too, filled when a warp begins.
struct Operand {
  std::uint32_t at = 0;  // bytes into the register file
  std::uint8_t width = 0;
  bool negated = false;     // a predicate
  std::int64_t offset = 0;  // of an address
};

enum class Space : std::uint8_t { generic, global, shared, cluster, local, parameter };
enum class Flow : std::uint8_t {
  plain,     // goes on to the next
  branch,    // to `target`
  leave,     // ret, exit
  together,  // plain, once all lanes that take part have come: those of operand `members`, or all that live
  barrier,   // of the block: waits
  cluster_wait
};

struct Instruction {
  Execute execute = nullptr;
  const Operand* operands = nullptr;
  Flow flow = Flow::plain;
  Space space = Space::generic;
  std::uint8_t count = 0;    // of a vector's elements
  std::int8_t members = -1;  // the operand that says which lanes take part; -1: all
  std::int16_t guard = -1;   // the operand that is the predicate; -1: none
  bool unguarded = true, polls = false;
  bool aligned = false;      // a barrier: all lanes of the warp have to be at it
  std::uint8_t variant = 0;  // of the opcode, its executor's own
  std::uint16_t operand_count = 0;
  std::uint8_t writes = 0;             // operands, the first ones, that it writes and does not read
  std::uint32_t target = 0, line = 0;  // line: in the module's text
  std::uint32_t extra = 0;             // an executor's own
};

/// Values that registers have when a warp begins.
struct Filled {
  enum class What : std::uint8_t {
    constant,
    tid,
    ntid,
    ctaid,
    nctaid,
    lane,
    warp,
    cluster_rank,
    cluster_size,
    cluster_id,
    parameter,
    shared,
    dynamic_shared,
    local
  } what = What::constant;
  std::uint32_t at = 0;
  std::uint8_t width = 4, axis = 0;
  std::uint64_t value = 0;  // a constant; an offset from where parameters or shared variables begin
};

struct Kernel {
  std::string name;
  const std::string* text = nullptr;  // the module's
  std::vector<Instruction> code;
  std::vector<Operand> operands;
  std::vector<Filled> filled;
  std::uint32_t register_bytes = 0, filled_bytes = 0, local_bytes = 0;  // filled ones come first
  std::uint32_t dynamic_alignment = 16;
  KernelTraits traits;
};

/// Variables of a module in global memory.
using Globals = std::map<std::string, std::byte*, std::less<>>;
/// Reads the entry that begins at `at` in `text`. Throws Fault.
std::unique_ptr<Kernel> decode(const std::string& text, std::size_t at, const Globals& globals);
/// Gives registers that are never needed at the same time one place.
void share_registers(Kernel& kernel);
/// The line of PTX at which an instruction lies, without what is long.
std::string line_of(const Kernel& kernel, const Instruction& instruction);

/// An opcode's parts ("ld", "global", "v4", "f32") and what its operands are.
struct Opcode {
  std::vector<std::string_view> parts;
  bool has(std::string_view part) const {
    for (const std::string_view one : parts)
      if (one == part) return true;
    return false;
  }
  std::string_view type(std::size_t from_last = 0) const { return parts[parts.size() - 1 - from_last]; }
};
using Operands = std::vector<Operand>;
/// An instruction as it was written.
struct Written {
  Opcode opcode;
  std::vector<Operands> operands;        // between commas; vectors and addresses with their elements
  std::vector<std::int64_t> immediates;  // of each; 0 where it is none
};
/// Choose what an instruction does. False: not of this family, each of which has its own file, or not known.
bool decode_predicates(const Written& written, Instruction& out);
bool decode_arithmetic(const Written& written, Instruction& out);
bool decode_conversion(const Written& written, Instruction& out);
bool decode_memory(const Written& written, Instruction& out);
bool decode_matrix(const Written& written, Instruction& out);
bool decode_lanes(const Written& written, Instruction& out);
bool decode_waiting(const Written& written, Instruction& out);

}  // namespace fathom::emulator
