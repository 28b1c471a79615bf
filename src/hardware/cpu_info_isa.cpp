// What this process can execute, asked of the chip; and hwloc, which reads caches from the chip where sysfs is closed.
#include <hwloc.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <map>

#include "hardware/cpu_info.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace fathom::hardware {
namespace {

#if defined(__x86_64__)

std::uint64_t enabled_state() {
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return std::uint64_t{high} << 32 | low;
}

// Linux hands out the AMX tile state on request, once a process and for all its threads.
bool request_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

IsaSet ask_chip() {
  IsaSet set;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return set;
  const auto bit = [](unsigned word, int n) { return (word >> n & 1u) != 0; };
  if (bit(c, 20)) set.add(Isa::sse4);
  if (!bit(c, 27)) return set;  // no OSXSAVE: no wider registers
  const std::uint64_t state = enabled_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
  if (ymm && bit(c, 28)) set.add(Isa::avx);
  if (ymm && bit(c, 12)) set.add(Isa::fma);
  if (ymm && bit(c, 29)) set.add(Isa::f16c);
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return set;
  const unsigned subleaves = a;
  if (ymm && bit(b, 5)) set.add(Isa::avx2);
  if (zmm && bit(b, 16)) set.add(Isa::avx512f);
  if (zmm && bit(b, 17)) set.add(Isa::avx512dq);
  if (zmm && bit(b, 30)) set.add(Isa::avx512bw);
  if (zmm && bit(b, 31)) set.add(Isa::avx512vl);
  if (zmm && bit(c, 11)) set.add(Isa::avx512_vnni);
  if (zmm && bit(d, 23)) set.add(Isa::avx512_fp16);
  const bool amx = tiles && bit(d, 24) && request_amx();
  if (amx) set.add(Isa::amx_tile);
  if (amx && bit(d, 22)) set.add(Isa::amx_bf16);
  if (amx && bit(d, 25)) set.add(Isa::amx_int8);
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) {
    if (ymm && bit(a, 4)) set.add(Isa::avx_vnni);
    if (zmm && bit(a, 5)) set.add(Isa::avx512_bf16);
    if (amx && bit(a, 21)) set.add(Isa::amx_fp16);
  }
  return set;
}

#elif defined(__aarch64__)

IsaSet ask_chip() {
  IsaSet set;
  const unsigned long first = ::getauxval(AT_HWCAP), second = ::getauxval(AT_HWCAP2);
  if (first & HWCAP_ASIMD) set.add(Isa::neon);
  if (first & HWCAP_ASIMDHP) set.add(Isa::neon_fp16);
  if (first & HWCAP_ASIMDDP) set.add(Isa::neon_dotprod);
  if (first & HWCAP_SVE) set.add(Isa::sve);
  if (second & HWCAP2_SVE2) set.add(Isa::sve2);
  if (second & HWCAP2_I8MM) set.add(Isa::neon_i8mm);
  if (second & HWCAP2_BF16) set.add(Isa::neon_bf16);
  return set;
}

#else

IsaSet ask_chip() { return {}; }

#endif

struct Topology {
  hwloc_topology_t handle = nullptr;
  bool loaded = false;
  Topology() {
    if (hwloc_topology_init(&handle) != 0) {
      handle = nullptr;
      return;
    }
    hwloc_topology_set_io_types_filter(handle, HWLOC_TYPE_FILTER_KEEP_NONE);
    loaded = hwloc_topology_load(handle) == 0;
  }
  ~Topology() {
    if (handle != nullptr) hwloc_topology_destroy(handle);
  }
  Topology(const Topology&) = delete;
  Topology& operator=(const Topology&) = delete;
};

void caches_from(hwloc_topology_t topology, CpuInfo& cpu) {
  constexpr hwloc_obj_type_t types[] = {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L1ICACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L3CACHE};
  for (const hwloc_obj_type_t type : types) {
    const int count = hwloc_get_nbobjs_by_type(topology, type);
    if (count <= 0) continue;
    const hwloc_obj_t first = hwloc_get_obj_by_type(topology, type, 0);
    if (first == nullptr || first->attr == nullptr || first->attr->cache.size == 0) continue;
    const auto cache_type = first->attr->cache.type;
    const char* kind = cache_type == HWLOC_OBJ_CACHE_INSTRUCTION ? "instruction"
                       : cache_type == HWLOC_OBJ_CACHE_DATA      ? "data"
                                                                 : "unified";
    cpu.caches.push_back({static_cast<int>(first->attr->cache.depth), kind, first->attr->cache.size, count,
                          hwloc_bitmap_weight(first->cpuset)});
  }
}

void nodes_from(hwloc_topology_t topology, CpuInfo& cpu) {
  const int count = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_NUMANODE);
  for (int i = 0; i < count; ++i) {
    const hwloc_obj_t object = hwloc_get_obj_by_type(topology, HWLOC_OBJ_NUMANODE, static_cast<unsigned>(i));
    if (object == nullptr) continue;
    NumaNode node;
    node.id = static_cast<int>(object->os_index);
    if (object->attr != nullptr) node.memory_bytes = object->attr->numanode.local_memory;
    for (int number = hwloc_bitmap_first(object->cpuset); number >= 0;
         number = hwloc_bitmap_next(object->cpuset, number))
      node.cpus.push_back(number);
    cpu.numa.push_back(std::move(node));
  }
}

}  // namespace

IsaSet executable_isa() {
  static const IsaSet set = ask_chip();
  return set;
}

void complete_with_hwloc(CpuInfo& cpu) {
  if (!cpu.caches.empty() && !cpu.numa.empty()) return;
  const Topology topology;
  if (!topology.loaded) return;
  if (cpu.caches.empty()) caches_from(topology.handle, cpu);
  if (cpu.numa.empty()) nodes_from(topology.handle, cpu);
}

}  // namespace fathom::hardware
