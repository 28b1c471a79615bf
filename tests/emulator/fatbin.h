// What nvcc puts into an object for the device: a fat binary, of which the emulator wants the PTX.
#pragma once
#include <string>

namespace fathom::emulator {

/// The PTX of the fat binary that `wrapper` (what __cudaRegisterFatBinary is given) points to: that of the newest
/// architecture up to 9.0. As it lies, or compressed by LZ4 or Zstandard (libzstd.so.1, found at run time). Throws
/// Fault where there is none or where it cannot be read.
std::string ptx_of(const void* wrapper);

}  // namespace fathom::emulator
