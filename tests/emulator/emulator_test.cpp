// The emulated GPU by kernels in PTX: what it computes, and that it finds what a device would stop for or never say.
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "emulator/gpu.h"
#include "emulator/races.h"

namespace fathom::emulator {
namespace {

/// A kernel with one pointer for a parameter, in %rd1; %r1 is the thread, %rd2 the thread's own word.
std::string kernel_of(const std::string& declarations, const std::string& body) {
  return ".version 9.0\n.target sm_90a\n.address_size 64\n.entry kernel(\n.param .u64 kernel_param_0\n)\n{\n" +
         declarations +
         ".reg .pred %p<9>;\n.reg .b16 %rs<9>;\n.reg .b32 %r<40>;\n.reg .f32 %f<40>;\n.reg .b64 %rd<20>;\n"
         "ld.param.u64 %rd1, [kernel_param_0];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd2, %rd1, "
         "%rd2;\n" +
         body + "ret;\n}\n";
}

class EmulatedGpu : public testing::Test {
 protected:
  void SetUp() override {
    data_ = reinterpret_cast<std::uint32_t*>(allocate(kWords * 4, Place::device)), std::memset(data_, 0, kWords * 4);
  }
  void TearDown() override { release(reinterpret_cast<std::byte*>(data_)); }
  void run_kernel(const std::string& declarations, const std::string& body, unsigned threads = 64, unsigned blocks = 1,
                  unsigned cluster = 1) {
    Module module(kernel_of(declarations, body));
    Launch launch{.kernel = module.kernel("kernel"), .grid = {blocks}, .block = {threads}, .cluster = {cluster}};
    ASSERT_NE(launch.kernel, nullptr);
    launch.parameters.resize(8);
    std::memcpy(launch.parameters.data(), &data_, 8);
    run(launch);
  }
  /// What the device stopped with; "" if it did not.
  std::string fault_of(const std::string& declarations, const std::string& body, unsigned threads = 64) {
    try {
      run_kernel(declarations, body, threads);
    } catch (const Fault& fault) {
      return fault.what();
    }
    return "";
  }
  static constexpr std::uint64_t kWords = 1024;
  std::uint32_t* data_ = nullptr;
};
constexpr const char* kShared = ".shared .align 16 .b8 room[512];\n.shared .align 8 .b8 told[8];\n";
/// Writes the thread's number to room[4 · thread]; %r2 is that address, %r3 the address of the next thread but 32's
/// word.
const std::string kWrite =
    "mov.u32 %r2, room;\nshl.b32 %r3, %r1, 2;\nadd.s32 %r2, %r2, %r3;\nst.shared.u32 [%r2], %r1;\n";
const std::string kReadOther =
    "xor.b32 %r4, %r1, 32;\nshl.b32 %r4, %r4, 2;\nmov.u32 %r5, room;\nadd.s32 %r5, %r5, %r4;\nld.shared.u32 %r6, "
    "[%r5];\nst.global.u32 [%rd2], %r6;\n";

TEST_F(EmulatedGpu, LanesThatPartMeetAgain) {
  // Collatz steps of each thread's number, then a sum over the warp.
  run_kernel("",
             "add.s32 %r2, %r1, 1;\nmov.u32 %r3, 0;\n"
             "again:\nsetp.eq.s32 %p1, %r2, 1;\n@%p1 bra over;\nadd.s32 %r3, %r3, 1;\nand.b32 %r4, %r2, "
             "1;\nsetp.eq.s32 %p2, %r4, 0;\n@%p2 bra even;\n"
             "mad.lo.s32 %r2, %r2, 3, 1;\nbra again;\neven:\nshr.u32 %r2, %r2, 1;\nbra again;\nover:\n"
             "shfl.sync.idx.b32 %r5, %r3, 26, 31, -1;\nst.global.u32 [%rd2], %r3;\nst.global.u32 [%rd2+256], %r5;\n");
  EXPECT_EQ(data_[26], 111u);  // of 27
  EXPECT_EQ(data_[0], 0u);
  EXPECT_EQ(data_[64 + 3], 111u);
}
TEST_F(EmulatedGpu, RoundsAsTheDeviceDoes) {
  run_kernel("",
             "mov.f32 %f1, 0f3F800001;\nmov.f32 %f2, 0f3F7F8000;\ncvt.rn.bf16x2.f32 %r2, %f1, %f2;\nst.global.u32 "
             "[%rd1], %r2;\n"
             "mov.f32 %f3, 0f43FA0000;\nmov.f32 %f4, 0fBF8CCCCD;\ncvt.rn.satfinite.e4m3x2.f32 %rs1, %f3, "
             "%f4;\ncvt.u32.u16 %r3, %rs1;\nst.global.u32 [%rd1+4], %r3;\n"
             "mov.f32 %f5, 0fC0200000;\ncvt.rni.s32.f32 %r4, %f5;\nst.global.u32 [%rd1+8], %r4;\ncvt.rzi.u32.f32 %r5, "
             "%f5;\nst.global.u32 [%rd1+12], %r5;\n"
             "prmt.b32 %r6, 0x33221100, 0x77665544, 0x9765;\nst.global.u32 [%rd1+16], %r6;\n",
             1);
  EXPECT_EQ(data_[0], 0x3f803f80u);  // 0.998… is a tie and goes to the even one
  EXPECT_EQ(data_[1], 0x7eb9u);      // 500 is 448, −1.1 is −1.125
  EXPECT_EQ(static_cast<std::int32_t>(data_[2]), -2);
  EXPECT_EQ(data_[3], 0u);
  EXPECT_EQ(data_[4], 0x00776655u);  // the last byte: the sign of byte 1
}
TEST_F(EmulatedGpu, BarriersOrderWarps) {
  run_kernel(kShared, kWrite + "bar.sync 0;\n" + kReadOther);
  EXPECT_EQ(data_[5], 37u);
  EXPECT_EQ(data_[40], 8u);
}
TEST_F(EmulatedGpu, BulkCopiesTellTheirBarrier) {
  for (std::uint32_t i = 0; i < 128; ++i) data_[512 + i] = 7 * i;
  run_kernel(kShared,
             "setp.ne.u32 %p1, %r1, 0;\n@%p1 bra wait;\nmov.u32 %r7, told;\nmbarrier.init.shared::cta.b64 [%r7], 1;\n"
             "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r7], 512;\nmov.u32 %r8, room;\nadd.s64 %rd3, %rd1, 2048;\n"
             "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%rd3], 512, [%r7];\n"
             "wait:\nbar.sync 0;\nmov.u32 %r7, told;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r7], "
             "0;\n@%p2 bra over;\nbra again;\nover:\n" +
                 kReadOther);
  EXPECT_EQ(data_[5], 7u * 37);
}
TEST_F(EmulatedGpu, BlocksOfAClusterReachEachOther) {
  run_kernel(kShared,
             "mov.u32 %r10, %cluster_ctarank;\nmov.u32 %r2, room;\nadd.s32 %r11, %r10, 41;\nst.shared.u32 [%r2], "
             "%r11;\nbarrier.cluster.arrive.release.aligned;\n"
             "barrier.cluster.wait.acquire.aligned;\nxor.b32 %r12, %r10, 1;\nmapa.shared::cluster.u32 %r13, %r2, "
             "%r12;\nld.shared::cluster.u32 %r14, [%r13];\n"
             "mul.wide.u32 %rd4, %r10, 4;\nadd.s64 %rd4, %rd1, %rd4;\nst.global.u32 [%rd4], "
             "%r14;\nbarrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n",
             32, 2, 2);
  EXPECT_EQ(data_[0], 42u);
  EXPECT_EQ(data_[1], 41u);
}

TEST_F(EmulatedGpu, StopsForMemoryThatIsNobodys) {
  EXPECT_NE(fault_of("", "st.global.u32 [%rd2+4096], %r1;\n").find("global memory that is nobody's"),
            std::string::npos);
  EXPECT_NE(fault_of("", "st.global.v2.u32 [%rd1+4], {%r1, %r1};\n").find("not aligned"), std::string::npos);
  EXPECT_NE(fault_of(kShared, "mov.u32 %r2, room;\nst.shared.u32 [%r2+1024], %r1;\n").find("shared memory"),
            std::string::npos);
}
TEST_F(EmulatedGpu, StopsForWaitsThatNeverEnd) {
  EXPECT_NE(fault_of("", "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra over;\nbar.sync 1, 64;\nover:\n").find("barriers"),
            std::string::npos);
  EXPECT_NE(fault_of("", "again:\nld.volatile.global.u32 %r2, [%rd1];\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 bra again;\n", 32)
                .find("never ends"),
            std::string::npos);
}
TEST_F(EmulatedGpu, SaysWhatItDoesNotKnow) {
  EXPECT_NE(fault_of("", "tex.1d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [%rd1, {%r1}];\n").find("does not know"),
            std::string::npos);
  Module module(kernel_of("", ""));
  EXPECT_EQ(module.kernel("another"), nullptr);
}

/// Those find races: on for a test.
class EmulatedRaces : public EmulatedGpu {
 protected:
  void SetUp() override { EmulatedGpu::SetUp(), look_for_races(true); }
  void TearDown() override { look_for_races(false), EmulatedGpu::TearDown(); }
};
TEST_F(EmulatedRaces, AreFoundWhereNothingOrders) {
  EXPECT_NE(fault_of(kShared, kWrite + kReadOther).find("a race in shared memory"), std::string::npos);
  EXPECT_EQ(fault_of(kShared, kWrite + "bar.sync 0;\n" + kReadOther), "");
  // Read, then written by others without a barrier in between.
  EXPECT_NE(fault_of(kShared, kWrite + "bar.sync 0;\n" + kReadOther + "st.shared.u32 [%r2], %r6;\n")
                .find("a race in shared memory"),
            std::string::npos);
  EXPECT_EQ(fault_of(kShared, kWrite + "bar.sync 0;\n" + kReadOther + "bar.sync 0;\nst.shared.u32 [%r2], %r6;\n"), "");
}
TEST_F(EmulatedRaces, BytesOfOneWordAreApart) {
  const std::string bytes =
      "mov.u32 %r2, room;\nshr.u32 %r3, %r1, 5;\nadd.s32 %r2, %r2, %r3;\nand.b32 %r4, %r1, 31;\nsetp.ne.u32 %p1, %r4, "
      "0;\n@%p1 bra over;\nst.shared.u8 [%r2], %r1;\nover:\n";
  EXPECT_EQ(fault_of(kShared, bytes), "");
}
TEST_F(EmulatedRaces, CopiesAreOrderedByWhoWaits) {
  const std::string copy =
      "setp.ne.u32 %p1, %r1, 0;\n@%p1 bra wait;\nmov.u32 %r7, told;\nmbarrier.init.shared::cta.b64 [%r7], 1;\n"
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r7], 512;\nmov.u32 %r8, room;\nadd.s64 %rd3, %rd1, 2048;\n"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8], [%rd3], 512, [%r7];\nwait:\nbar.sync "
      "0;\n";
  const std::string wait =
      "mov.u32 %r7, told;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 %p2, [%r7], 0;\n@%p2 bra over;\nbra "
      "again;\nover:\n";
  EXPECT_EQ(fault_of(kShared, copy + wait + kReadOther), "");
  EXPECT_NE(fault_of(kShared, copy + kReadOther + wait).find("a race in shared memory"), std::string::npos);
  const std::string own =
      "mov.u32 %r2, room;\nshl.b32 %r3, %r1, 2;\nadd.s32 %r2, %r2, %r3;\ncp.async.ca.shared.global [%r2], [%rd2], "
      "4;\ncp.async.commit_group;\n";
  EXPECT_EQ(fault_of(kShared, own + "cp.async.wait_group 0;\nbar.sync 0;\n" + kReadOther), "");
  EXPECT_NE(fault_of(kShared, own + "bar.sync 0;\n" + kReadOther + "cp.async.wait_group 0;\n")
                .find("a race in shared memory"),
            std::string::npos);
}

}  // namespace
}  // namespace fathom::emulator
