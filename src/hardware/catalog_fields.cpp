#include "hardware/catalog_fields.h"

namespace fathom::hardware {
namespace {

struct UnitFacts {
  double scale, limit;
  std::string_view name;
};

const UnitFacts& facts(Unit unit) {
  static constexpr UnitFacts table[] = {
      {1, 1e9, ""},           // kNone
      {1e9, 1e6, "GB"},       // kGB
      {0x1p20, 1e9, "MiB"},   // kMiB
      {0x1p30, 1e6, "GiB"},   // kGiB
      {1e9, 1e6, "GB/s"},     // kGBPerSecond
      {1e12, 1e7, "TFLOPS"},  // kTflops
      {1e6, 1e5, "MHz"},      // kMHz
      {1, 1e6, "W"},          // kWatt
      {1, 1e9, "USD"},        // kUsd
      {1e-6, 1e7, "µs"},      // kMicroseconds
  };
  return table[static_cast<int>(unit)];
}

void visit_provenance(Provenance& from, FieldVisitor& v) {
  v.texts("provenance.sources", from.sources);
  v.text("provenance.as_of", from.as_of);
  v.text("provenance.confidence", from.confidence);
  v.texts("provenance.unverified", from.unverified);
  v.text("provenance.unverified_note", from.unverified_note);
  v.texts("provenance.link_lost", from.link_lost);
  v.text("provenance.cross_check", from.cross_check);
  v.text("provenance.cross_check_fields", from.cross_check_fields);
}

void visit_node(Node& node, FieldVisitor& v) {
  v.count("node.devices", node.devices, 1);
  v.count("node.host_slots", node.host_slots, 1);
  v.count("node.domain", node.domain, 1);
  v.text("node.intra_kind", node.intra_kind);
  v.text("node.intra_link", node.intra_link);
  v.number("node.intra_gb_s", Unit::kGBPerSecond, node.intra_bytes_per_second);
  v.text("node.inter_link", node.inter_link);
  v.integer("node.inter_ports", node.inter_ports);
  v.count("node.bridge_cards", node.bridge_cards, 0);
  v.number("node.bridge_gb_s", Unit::kGBPerSecond, node.bridge_bytes_per_second);
}

void visit_memory(Memory& memory, FieldVisitor& v) {
  v.text("memory.kind", memory.kind);
  v.bytes("memory.marketed_gb", Unit::kGB, memory.marketed_bytes);
  v.bytes("memory.reported_mib", Unit::kMiB, memory.reported_bytes);
  v.bytes("memory.cuda_visible_mib", Unit::kMiB, memory.cuda_visible_bytes);
  v.bytes("memory.usable_gib", Unit::kGiB, memory.usable_bytes);
  v.number("memory.bandwidth_gb_s", Unit::kGBPerSecond, memory.bandwidth_bytes_per_second);
  v.flag("memory.configurable", memory.configurable);
  v.count("memory.appears_as", memory.appears_as, 1);
  v.text("memory.note", memory.note);
}

}  // namespace

double unit_scale(Unit unit) { return facts(unit).scale; }
double unit_limit(Unit unit) { return facts(unit).limit; }
std::string_view unit_name(Unit unit) { return facts(unit).name; }

void visit(Accelerator& a, FieldVisitor& v) {
  v.text("id", a.id);
  v.text("vendor", a.vendor);
  v.text("name", a.name);
  v.text("arch", a.arch);
  v.text("form", a.form);
  v.text("compute_capability", a.compute_capability);
  v.text("gfx", a.gfx);
  v.texts("driver_names", a.driver_names);
  v.texts("shared_names", a.shared_names);
  v.texts("short_names", a.short_names);
  visit_memory(a.memory, v);
  for (int i = 0; i < kPrecisionCount; ++i) {
    const std::string name(precision_name(static_cast<Precision>(i)));
    v.number("peak_dense_tflops." + name, Unit::kTflops, a.peak_flops[static_cast<std::size_t>(i)]);
  }
  v.text("peak_note", a.peak_note);
  for (int i = 0; i < kPrecisionCount; ++i) {
    const std::string name(precision_name(static_cast<Precision>(i)));
    v.number("measured_dense_tflops." + name, Unit::kTflops, a.measured_flops[static_cast<std::size_t>(i)]);
  }
  v.texts("measured_sources", a.measured_sources);
  v.numbers("other_peak_tflops", Unit::kTflops, a.other_peak);
  v.bytes("l2_mib", Unit::kMiB, a.l2_bytes);
  v.integer("sm_count", a.sm_count);
  v.number("boost_mhz", Unit::kMHz, a.boost_hz);
  v.number("tdp_w", Unit::kWatt, a.tdp_watts);
  v.integer("connection.nvlink_gen", a.connection.nvlink_generation);
  v.number("connection.nvlink_gb_s_both", Unit::kGBPerSecond, a.connection.nvlink_bytes_per_second);
  v.integer("connection.pcie_gen", a.connection.pcie_generation);
  v.integer("connection.pcie_lanes", a.connection.pcie_lanes);
  v.text("connection.note", a.connection.note);
  visit_node(a.node, v);
  v.text("launched", a.launched);
  v.number("price.msrp_usd", Unit::kUsd, a.msrp_usd);
  v.text("price.msrp_source", a.msrp_source);
  v.text("price.msrp_note", a.msrp_note);
  v.street("price.street", a.street);
  v.cloud("cloud_prices", a.cloud);
  v.text("note", a.note);
  v.flag("advise", a.advise);
  visit_provenance(a.provenance, v);
}

void visit(Cpu& c, FieldVisitor& v) {
  v.text("id", c.id);
  v.text("name", c.name);
  v.text("isa", c.isa);
  v.texts("driver_names", c.driver_names);
  v.texts("short_names", c.short_names);
  v.integer("cores", c.cores);
  v.integer("threads", c.threads);
  v.integer("memory_channels", c.memory_channels);
  v.integer("max_mts", c.max_mts);
  v.text("ddr", c.ddr);
  v.number("peak_gb_s", Unit::kGBPerSecond, c.peak_bytes_per_second);
  v.number("sustained_gb_s", Unit::kGBPerSecond, c.sustained_bytes_per_second);
  v.numbers("other_gb_s", Unit::kGBPerSecond, c.other_bytes_per_second);
  v.flag("avx2", c.avx2);
  v.flag("avx512", c.avx512);
  v.flag("amx", c.amx);
  v.text("launched", c.launched);
  v.number("tdp_w", Unit::kWatt, c.tdp_watts);
  v.text("note", c.note);
  visit_provenance(c.provenance, v);
}

void visit(Link& l, FieldVisitor& v) {
  v.text("id", l.id);
  v.text("name", l.name);
  v.text("kind", l.kind);
  v.number("gb_s", Unit::kGBPerSecond, l.bytes_per_second);
  v.range("latency_us", Unit::kMicroseconds, l.latency_low_seconds, l.latency_high_seconds);
  v.text("latency_note", l.latency_note);
  v.numbers("measured_gb_s", Unit::kGBPerSecond, l.measured);
  v.texts("measured_sources", l.measured_sources);
  v.text("note", l.note);
  visit_provenance(l.provenance, v);
}

void visit(Storage& s, FieldVisitor& v) {
  v.text("id", s.id);
  v.text("name", s.name);
  v.number("read_gb_s", Unit::kGBPerSecond, s.read_bytes_per_second);
  v.range("read_range_gb_s", Unit::kGBPerSecond, s.read_low_bytes_per_second, s.read_high_bytes_per_second);
  v.number("factor_per_drive", Unit::kNone, s.factor_per_drive);
  v.text("note", s.note);
  visit_provenance(s.provenance, v);
}

void visit(CloudOffer& o, FieldVisitor& v) {
  v.text("id", o.id);
  v.text("provider", o.provider);
  v.text("instance", o.instance);
  v.count("devices", o.devices, 1);
  v.text("accelerator", o.accelerator);
  v.number("on_demand_usd_per_hour", Unit::kUsd, o.on_demand_usd_per_hour);
  v.number("spot_usd_per_hour", Unit::kUsd, o.spot_usd_per_hour);
  v.text("spot_source", o.spot_source);
  v.text("spot_date", o.spot_date);
  v.text("region", o.region);
  v.text("date", o.date);
  v.text("note", o.note);
  visit_provenance(o.provenance, v);
}

void visit(Source& s, FieldVisitor& v) {
  v.text("id", s.id);
  v.text("url", s.url);
  v.text("what", s.what);
  v.text("date", s.date);
  v.text("tier", s.tier);
}

}  // namespace fathom::hardware
