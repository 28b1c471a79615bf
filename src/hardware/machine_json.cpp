// Machine <-> JSON. Each struct lists its fields once, in fields(); a writer and a reader walk the same list.
#include <cmath>
#include <concepts>
#include <limits>
#include <type_traits>

#include "base/json.h"
#include "base/strings.h"
#include "hardware/machine.h"

namespace fathom::hardware {
namespace {

constexpr int kFormatVersion = 1;

template <class V>
void fields(V& v, CacheInfo& c) {
  v("level", c.level), v("kind", c.kind), v("bytes", c.bytes), v("instances", c.instances);
  v("threads_sharing", c.threads_sharing);
}
template <class V>
void fields(V& v, NumaNode& n) {
  v("id", n.id), v("memory_bytes", n.memory_bytes), v("cpus", n.cpus), v("distances", n.distances);
}
template <class V>
void fields(V& v, CpuInfo& c) {
  v("model", c.model), v("vendor", c.vendor), v("architecture", c.architecture), v("sockets", c.sockets);
  v("cores", c.cores), v("threads", c.threads), v("usable_cpus", c.usable_cpus), v("usable_cores", c.usable_cores);
  v("quota_cpus", c.quota_cpus), v("usable_threads", c.usable_threads), v("base_mhz", c.base_mhz);
  v("max_mhz", c.max_mhz), v("current_mhz", c.current_mhz), v("isa", c.isa), v("virtualized", c.virtualized);
  v("caches", c.caches), v("numa", c.numa);
}
template <class V>
void fields(V& v, HugePagePool& p) {
  v("page_bytes", p.page_bytes), v("total", p.total), v("free", p.free);
}
template <class V>
void fields(V& v, MemoryInfo& m) {
  v("total_bytes", m.total_bytes), v("available_bytes", m.available_bytes), v("swap_total_bytes", m.swap_total_bytes);
  v("limit_bytes", m.limit_bytes), v("limit_used_bytes", m.limit_used_bytes), v("cgroup_version", m.cgroup_version);
  v("usable_bytes", m.usable_bytes), v("transparent_huge_pages", m.transparent_huge_pages), v("pools", m.pools);
  v("modules", m.modules), v("channels", m.channels), v("speed_mts", m.speed_mts), v("kind", m.kind);
  v("modules_source", m.modules_source);
}
template <class V>
void fields(V& v, Note& n) {
  v("key", n.key), v("args", n.args);
}
template <class V>
void fields(V& v, DiskRead& r) {
  v("bytes_per_second", r.bytes_per_second), v("bytes", r.bytes), v("method", r.method), v("source", r.source);
}
template <class V>
void fields(V& v, DiskInfo& d) {
  v("uses", d.uses), v("path", d.path), v("mount", d.mount), v("filesystem", d.filesystem), v("device", d.device);
  v("model", d.model), v("kind", d.kind), v("writable", d.writable), v("total_bytes", d.total_bytes);
  v("free_bytes", d.free_bytes), v("read", d.read), v("note", d.note);
}
template <class V>
void fields(V& v, NvLinkPort& p) {
  v("index", p.index), v("active", p.active), v("version", p.version), v("remote_kind", p.remote_kind);
  v("remote_pci", p.remote_pci);
}
template <class V>
void fields(V& v, GpuInfo& g) {
  v("vendor", g.vendor), v("name", g.name), v("uuid", g.uuid), v("pci_address", g.pci_address), v("driver", g.driver);
  v("runtime", g.runtime), v("compute_capability", g.compute_capability), v("memory_total_bytes", g.memory_total_bytes);
  v("memory_free_bytes", g.memory_free_bytes), v("memory_used_bytes", g.memory_used_bytes);
  v("memory_is_estimate", g.memory_is_estimate), v("integrated", g.integrated), v("memory_bus_bits", g.memory_bus_bits);
  v("core_mhz", g.core_mhz), v("core_max_mhz", g.core_max_mhz), v("memory_mhz", g.memory_mhz);
  v("memory_max_mhz", g.memory_max_mhz), v("power_limit_watts", g.power_limit_watts);
  v("pcie_generation", g.pcie_generation), v("pcie_width", g.pcie_width),
      v("pcie_max_generation", g.pcie_max_generation);
  v("pcie_max_width", g.pcie_max_width), v("numa_node", g.numa_node), v("mig", g.mig), v("nvlinks", g.nvlinks);
  v("nvlink_bytes_per_second", g.nvlink_bytes_per_second), v("source", g.source);
}
template <class V>
void fields(V& v, GpuLink& l) {
  v("a", l.a), v("b", l.b), v("path", l.path), v("nvlinks", l.nvlinks), v("peer_to_peer", l.peer_to_peer);
}
template <class V>
void fields(V& v, BandwidthResult& b) {
  v("access", b.access), v("pages", b.pages), v("threads", b.threads);
  v("best_bytes_per_second", b.best_bytes_per_second), v("median_bytes_per_second", b.median_bytes_per_second);
  v("repetitions", b.repetitions), v("variant", b.variant);
}
template <class V>
void fields(V& v, ThreadPoint& p) {
  v("threads", p.threads), v("bytes_per_second", p.bytes_per_second);
}
template <class V>
void fields(V& v, CacheResult& c) {
  v("level", c.level), v("buffer_bytes", c.buffer_bytes), v("latency_seconds", c.latency_seconds);
  v("bytes_per_second", c.bytes_per_second);
}
template <class V>
void fields(V& v, PeakResult& p) {
  v("kernel", p.kernel), v("precision", p.precision), v("one_thread_flops", p.one_thread_flops),
      v("threads", p.threads);
  v("all_threads_flops", p.all_threads_flops);
}
template <class V>
void fields(V& v, Measured& m) {
  v("effort", m.effort), v("seconds", m.seconds), v("others_share", m.others_share), v("buffer_bytes", m.buffer_bytes);
  v("read_bandwidth_bytes_per_second", m.read_bandwidth_bytes_per_second), v("bandwidth", m.bandwidth);
  v("read_curve", m.read_curve), v("caches", m.caches), v("peaks", m.peaks);
}
template <class V>
void fields(V& v, Machine& m) {
  v("os", m.os), v("kernel", m.kernel), v("container", m.container), v("cpu", m.cpu), v("memory", m.memory);
  v("disks", m.disks), v("gpus", m.gpus), v("gpu_links", m.gpu_links), v("measured", m.measured), v("notes", m.notes);
}

// Enumerations by name.
template <class E>
struct EnumTable;
template <>
struct EnumTable<DiskKind> {
  static constexpr int count = 8;
  static std::string_view name(DiskKind k) { return disk_kind_name(k); }
};
template <>
struct EnumTable<GpuVendor> {
  static constexpr int count = 5;
  static std::string_view name(GpuVendor v) { return gpu_vendor_name(v); }
};
template <>
struct EnumTable<Access> {
  static constexpr int count = 3;
  static std::string_view name(Access a) { return access_name(a); }
};
template <>
struct EnumTable<Pages> {
  static constexpr int count = 3;
  static std::string_view name(Pages p) { return pages_name(p); }
};
template <>
struct EnumTable<Precision> {
  static constexpr int count = kPrecisionCount;
  static std::string_view name(Precision p) { return precision_name(p); }
};

template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};
template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};
using ArgList = std::vector<std::pair<std::string, std::string>>;

struct Writer {
  Json object = Json::object();

  template <class T>
  void operator()(const char* key, T& value) {
    if constexpr (IsOptional<T>::value) {
      if (value) object[key] = to_json(*value);
    } else {
      object[key] = to_json(value);
    }
  }

  template <class T>
  static Json to_json(T& value) {
    if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
      return value;
    } else if constexpr (std::is_enum_v<T>) {
      return std::string(EnumTable<T>::name(value));
    } else if constexpr (std::is_same_v<T, IsaSet>) {
      Json names = Json::array();
      for (int i = 0; i < kIsaCount; ++i)
        if (value.has(static_cast<Isa>(i))) names.push_back(std::string(isa_name(static_cast<Isa>(i))));
      return names;
    } else if constexpr (std::is_same_v<T, ArgList>) {
      Json pairs = Json::object();
      for (const auto& [name, text] : value) pairs[name] = text;
      return pairs;
    } else if constexpr (IsVector<T>::value) {
      Json list = Json::array();
      for (auto& item : value) list.push_back(to_json(item));
      return list;
    } else {
      Writer inner;
      fields(inner, value);
      if constexpr (std::is_same_v<T, Note>) inner.object["text"] = note_text(value);
      return std::move(inner.object);
    }
  }
};

struct Reader {
  const Json& object;
  const std::string& where;  // for messages: the file, then the path inside it
  std::optional<Error>& error;

  template <class T>
  void operator()(const char* key, T& value) {
    if (error) return;
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) return;
    const std::string here = where + "." + key;
    if constexpr (IsOptional<T>::value) {
      value.emplace();
      from_json(*found, *value, here, error);
    } else {
      from_json(*found, value, here, error);
    }
  }

  static void refuse(const Json& value, const std::string& where, const char* expected, std::optional<Error>& error) {
    if (error) return;
    error = Error{ErrorKind::kInput,
                  "hardware_probe.profile_wrong_type",
                  {{"where", where}, {"expected", expected}, {"value", printable(dump_json(value), 40)}}};
  }

  template <class T>
  static void from_json(const Json& json, T& value, const std::string& where, std::optional<Error>& error) {
    if constexpr (std::is_same_v<T, bool>) {
      if (!json.is_boolean()) return refuse(json, where, "true/false", error);
      value = json.get<bool>();
    } else if constexpr (std::is_floating_point_v<T>) {
      if (!json.is_number() || !std::isfinite(json.get<double>())) return refuse(json, where, "number", error);
      value = json.get<double>();
    } else if constexpr (std::is_unsigned_v<T>) {
      if (!json.is_number_unsigned()) return refuse(json, where, "integer >= 0", error);
      value = json.get<T>();
    } else if constexpr (std::is_integral_v<T>) {
      if (!json.is_number_integer()) return refuse(json, where, "integer", error);
      const bool too_large = json.is_number_unsigned() && json.get<std::uint64_t>() > std::uint64_t(INT64_MAX);
      const std::int64_t wide = too_large ? 0 : json.get<std::int64_t>();
      if (too_large || wide < std::numeric_limits<T>::min() || wide > std::numeric_limits<T>::max())
        return refuse(json, where, "integer", error);
      value = static_cast<T>(wide);
    } else if constexpr (std::is_same_v<T, std::string>) {
      if (!json.is_string()) return refuse(json, where, "string", error);
      value = json.get<std::string>();
    } else {
      compound(json, value, where, error);
    }
  }

  template <class T>
  static void compound(const Json& json, T& value, const std::string& where, std::optional<Error>& error) {
    if constexpr (std::is_enum_v<T>) {
      if (!json.is_string()) return refuse(json, where, "string", error);
      for (int i = 0; i < EnumTable<T>::count; ++i)
        if (EnumTable<T>::name(static_cast<T>(i)) == json.get<std::string>()) {
          value = static_cast<T>(i);
          return;
        }
      refuse(json, where, "a known name", error);
    } else if constexpr (std::is_same_v<T, IsaSet>) {
      if (!json.is_array()) return refuse(json, where, "list", error);
      for (const Json& name : json)  // names that a newer version wrote are passed over
        if (name.is_string())
          if (const auto isa = parse_isa(name.get<std::string>())) value.add(*isa);
    } else if constexpr (std::is_same_v<T, ArgList>) {
      if (!json.is_object()) return refuse(json, where, "object", error);
      for (const auto& [name, text] : json.items()) {
        if (!text.is_string()) return refuse(text, where, "string", error);
        value.emplace_back(name, text.template get<std::string>());
      }
    } else if constexpr (IsVector<T>::value) {
      if (!json.is_array()) return refuse(json, where, "list", error);
      value.clear();
      for (const Json& item : json) {
        value.emplace_back();
        from_json(item, value.back(), where, error);
      }
    } else {
      if (!json.is_object()) return refuse(json, where, "object", error);
      Reader inner{json, where, error};
      fields(inner, value);
    }
  }
};

}  // namespace

std::string machine_to_json(const Machine& machine, int indent) {
  Writer writer;
  Machine copy = machine;  // fields() is written for both directions and takes a mutable reference
  writer.object["version"] = kFormatVersion;
  writer.object["fingerprint"] = fingerprint(machine);
  fields(writer, copy);
  return dump_json(writer.object, indent);
}

Result<Machine> machine_from_json(std::string_view text, std::string_view what) {
  FATHOM_TRY(const Json json, parse_json(text, what));
  const std::string where(what);
  if (!json.is_object())
    return fail("hardware_probe.profile_wrong_type",
                {{"where", where}, {"expected", "object"}, {"value", printable(dump_json(json), 40)}});
  FATHOM_TRY(const auto version, json_integer(json, "version", what));
  if (!version || *version != kFormatVersion)
    return fail("hardware_probe.profile_version", {{"where", where},
                                                   {"version", version ? std::to_string(*version) : "?"},
                                                   {"expected", std::to_string(kFormatVersion)}});
  Machine machine;
  std::optional<Error> error;
  Reader reader{json, where, error};
  fields(reader, machine);
  if (error) return tl::unexpected<Error>(std::move(*error));
  return machine;
}

}  // namespace fathom::hardware
