// Hopper's matrix products of warpgroups (wgmma), its barriers in shared memory and its registers: sm_90a alone. Operands lie in shared memory in
// tiles of rows of 128 bytes (64 elements), whose chunks of 16 bytes are swizzled by the row's number modulo 8; tiles start at multiples of
// 1024 bytes. Sums: thread t of the warpgroup has, for n = 0 …, d[4n], d[4n + 1]: row 16·(t/32) + t%32/4, columns 8n + 2·(t%4) + {0, 1}; d[4n + 2],
// d[4n + 3]: row + 8. Fragments of A in registers as those of mma.cuh, 16 rows a warp.
#pragma once
#include "backends/cuda/mma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FATHOM_WGMMA_HERE 1
#endif

namespace fathom::cuda {

inline constexpr int kGroupOfWarps = 128;  // threads

/// Byte offset of chunk `chunk` of row `row` in tiles of 64 columns that lie `tile_bytes` apart.
__device__ inline unsigned wide_swizzled(int row, int chunk, unsigned tile_bytes) {
  return static_cast<unsigned>(chunk / 8) * tile_bytes + static_cast<unsigned>(row * 128 + ((chunk % 8) ^ (row & 7)) * 16);
}

#if defined(FATHOM_WGMMA_HERE)

/// An operand whose rows are its outer dimension (columns are summed over): eight rows lie 1024 bytes from the next eight.
__device__ inline std::uint64_t by_rows(unsigned at) { return (at & 0x3ffffu) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62; }
/// An operand whose columns are its outer dimension (rows are summed over); 64 columns lie `tile_bytes` from the next 64.
__device__ inline std::uint64_t by_columns(unsigned at, unsigned tile_bytes) {
  return (at & 0x3ffffu) >> 4 | static_cast<std::uint64_t>(tile_bytes >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int kLeft>
__device__ inline void wait_products() { asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kLeft) : "memory"); }
/// What ordinary stores (and cp.async) wrote to shared memory becomes visible to products; before a barrier.
__device__ inline void publish_shared() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

template <int kRegisters>
__device__ inline void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters)); }
template <int kRegisters>
__device__ inline void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters)); }

/// Barriers by number, of `threads` threads that arrive or wait.
__device__ inline void wait_at(int barrier, int threads) { asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory"); }
__device__ inline void arrive_at(int barrier, int threads) { asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory"); }

/// Barriers in shared memory: a phase ends when `count` have arrived.
__device__ inline void init_barrier(unsigned at, unsigned count) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(at), "r"(count) : "memory"); }
__device__ inline void arrive(unsigned at) { asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}\n" ::"r"(at) : "memory"); }
/// Waits for the end of the phase whose number has this parity.
__device__ inline void wait_phase(unsigned at, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra over;\nbra again;\nover:\n}\n" ::"r"(at),
      "r"(parity)
      : "memory");
}

// Lists of registers, for the products below.
#define FATHOM_SUMS_64 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define FATHOM_SUMS_128 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define FATHOM_SUMS_256 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"
#define FATHOM_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define FATHOM_D32(i) FATHOM_D8(i), FATHOM_D8(i + 8), FATHOM_D8(i + 16), FATHOM_D8(i + 24)
#define FATHOM_D_64 FATHOM_D32(0)
#define FATHOM_D_128 FATHOM_D32(0), FATHOM_D32(32)
#define FATHOM_D_256 FATHOM_D32(0), FATHOM_D32(32), FATHOM_D32(64), FATHOM_D32(96)

/// d (+)= a · b, 64 × 64 × 16; a and b by_rows. Those that follow: as their names say, 64 × (the number) × 16.
template <class T>
__device__ inline void multiply_64_by_rows(float (&d)[32], std::uint64_t a, std::uint64_t b, bool add);
template <class T>
__device__ inline void multiply_128_by_rows(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add);
template <class T>
__device__ inline void multiply_256_by_rows(float (&d)[128], std::uint64_t a, std::uint64_t b, bool add);
/// With b by_columns; a in registers, or by_rows.
template <class T>
__device__ inline void multiply_128_by_columns(float (&d)[64], const unsigned (&a)[4], std::uint64_t b, bool add);
template <class T>
__device__ inline void multiply_256_by_columns(float (&d)[128], const unsigned (&a)[4], std::uint64_t b, bool add);
template <class T>
__device__ inline void multiply_256_by_columns(float (&d)[128], std::uint64_t a, std::uint64_t b, bool add);

#define FATHOM_PRODUCTS(T, KIND) \
  template <>                                                                                    \
  __device__ inline void multiply_64_by_rows<T>(float (&d)[32], std::uint64_t a, std::uint64_t b, bool add) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." KIND "." KIND " " FATHOM_SUMS_64 \
                 ", %32, %33, p, 1, 1, 0, 0;\n}\n"                                              \
                 : FATHOM_D_64                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                \
  } \
  template <>                                                                                    \
  __device__ inline void multiply_128_by_rows<T>(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." KIND "." KIND " " FATHOM_SUMS_128 \
                 ", %64, %65, p, 1, 1, 0, 0;\n}\n"                                              \
                 : FATHOM_D_128                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                \
  } \
  template <>                                                                                    \
  __device__ inline void multiply_256_by_rows<T>(float (&d)[128], std::uint64_t a, std::uint64_t b, bool add) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32." KIND "." KIND " " FATHOM_SUMS_256 \
                 ", %128, %129, p, 1, 1, 0, 0;\n}\n"                                              \
                 : FATHOM_D_256                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                \
  } \
  template <>                                                                                    \
  __device__ inline void multiply_128_by_columns<T>(float (&d)[64], const unsigned (&a)[4], std::uint64_t b, bool add) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." KIND "." KIND " " FATHOM_SUMS_128 \
                 ", {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}\n"                                              \
                 : FATHOM_D_128                                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));                                \
  } \
  template <>                                                                                    \
  __device__ inline void multiply_256_by_columns<T>(float (&d)[128], const unsigned (&a)[4], std::uint64_t b, bool add) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32." KIND "." KIND " " FATHOM_SUMS_256 \
                 ", {%128, %129, %130, %131}, %132, p, 1, 1, 1;\n}\n"                                              \
                 : FATHOM_D_256                                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)));                                \
  } \
  template <>                                                                                    \
  __device__ inline void multiply_256_by_columns<T>(float (&d)[128], std::uint64_t a, std::uint64_t b, bool add) { \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\nwgmma.mma_async.sync.aligned.m64n256k16.f32." KIND "." KIND " " FATHOM_SUMS_256 \
                 ", %128, %129, p, 1, 1, 0, 1;\n}\n"                                              \
                 : FATHOM_D_256                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                \
  }
FATHOM_PRODUCTS(__nv_bfloat16, "bf16")
FATHOM_PRODUCTS(__half, "f16")
#undef FATHOM_PRODUCTS

#endif  // FATHOM_WGMMA_HERE

}  // namespace fathom::cuda
