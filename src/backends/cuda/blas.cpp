#include "backends/cuda/blas.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <array>
#include <map>
#include <string>

namespace fathom::cuda {
namespace {

/// The functions we use, typed by the header that we compile with.
struct Api {
  decltype(&::cublasLtCreate) create = nullptr;
  decltype(&::cublasLtDestroy) destroy = nullptr;
  decltype(&::cublasLtMatmul) matmul = nullptr;
  decltype(&::cublasLtMatmulDescCreate) description_create = nullptr;
  decltype(&::cublasLtMatmulDescDestroy) description_destroy = nullptr;
  decltype(&::cublasLtMatmulDescSetAttribute) description_set = nullptr;
  decltype(&::cublasLtMatrixLayoutCreate) layout_create = nullptr;
  decltype(&::cublasLtMatrixLayoutDestroy) layout_destroy = nullptr;
  decltype(&::cublasLtMatrixLayoutSetAttribute) layout_set = nullptr;
  decltype(&::cublasLtMatmulPreferenceCreate) preference_create = nullptr;
  decltype(&::cublasLtMatmulPreferenceDestroy) preference_destroy = nullptr;
  decltype(&::cublasLtMatmulPreferenceSetAttribute) preference_set = nullptr;
  decltype(&::cublasLtMatmulAlgoGetHeuristic) heuristic = nullptr;
};

template <class Function>
bool look_up(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}
bool look_up_all(void* library, Api& api) {
  return look_up(library, "cublasLtCreate", api.create) && look_up(library, "cublasLtDestroy", api.destroy) &&
         look_up(library, "cublasLtMatmul", api.matmul) &&
         look_up(library, "cublasLtMatmulDescCreate", api.description_create) &&
         look_up(library, "cublasLtMatmulDescDestroy", api.description_destroy) &&
         look_up(library, "cublasLtMatmulDescSetAttribute", api.description_set) &&
         look_up(library, "cublasLtMatrixLayoutCreate", api.layout_create) &&
         look_up(library, "cublasLtMatrixLayoutDestroy", api.layout_destroy) &&
         look_up(library, "cublasLtMatrixLayoutSetAttribute", api.layout_set) &&
         look_up(library, "cublasLtMatmulPreferenceCreate", api.preference_create) &&
         look_up(library, "cublasLtMatmulPreferenceDestroy", api.preference_destroy) &&
         look_up(library, "cublasLtMatmulPreferenceSetAttribute", api.preference_set) &&
         look_up(library, "cublasLtMatmulAlgoGetHeuristic", api.heuristic);
}

/// One shape's product as cuBLASLt wants it, with the algorithm chosen for it.
struct Prepared {
  cublasLtMatmulDesc_t description = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, out = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool possible = false;
};

/// What decides the algorithm.
using Key = std::array<std::int64_t, 14>;
Key key_of(const BlasProduct& p) {
  return {p.tokens,
          p.n,
          p.k,
          p.batch,
          static_cast<std::int64_t>(p.type),
          static_cast<std::int64_t>(p.scales),
          (p.transposed ? 1 : 0) + (p.x_transposed ? 2 : 0),
          p.x_stride,
          p.w_stride,
          p.out_stride,
          p.x_step,
          p.w_step,
          p.out_step,
          p.rounded ? 1 : 0};
}

class LtBlas final : public Blas {
 public:
  LtBlas(const Api& api, cublasLtHandle_t handle) : api_(api), handle_(handle) {}
  LtBlas(const LtBlas&) = delete;
  LtBlas& operator=(const LtBlas&) = delete;
  ~LtBlas() override {
    for (auto& [key, prepared] : prepared_) destroy(prepared);
    api_.destroy(handle_);  // the library stays loaded: it keeps threads and state of its own
  }

  bool multiply(Context& context, const BlasProduct& product, std::byte* workspace) override {
    const Prepared& p = prepared(product);
    if (!p.possible || !point_to_scales(p.description, product)) return false;
    const bool adds = product.accumulate || product.added != nullptr, whole = product.type == BlasType::i8;
    const float one = 1.0f, beta = adds ? 1.0f : 0.0f;
    const std::int32_t whole_one = 1, whole_beta = adds ? 1 : 0;
    const void *alpha_at = whole ? static_cast<const void*>(&whole_one) : &one,
               *beta_at = whole ? static_cast<const void*>(&whole_beta) : &beta;
    const auto* added = product.added != nullptr ? product.added : product.out;
    const cublasStatus_t status =
        api_.matmul(handle_, p.description, alpha_at, product.w, p.w, product.x, p.x, beta_at, added, p.out,
                    product.out, p.out, &p.algorithm, workspace, kWorkspaceBytes, context.stream);
    context.launched();
    return status == CUBLAS_STATUS_SUCCESS;
  }

  bool knows(const BlasProduct& product) override { return prepared(product).possible; }

 private:
  const Prepared& prepared(const BlasProduct& product) {
    const Key key = key_of(product);
    auto found = prepared_.find(key);
    if (found == prepared_.end()) found = prepared_.emplace(key, prepare(product)).first;
    return found->second;
  }

  bool point_to_scales(cublasLtMatmulDesc_t description, const BlasProduct& product) const {
    if (product.scales == BlasScales::none) return true;
    const void *of_w = product.w_scales, *of_x = product.x_scales;
    return api_.description_set(description, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &of_w, sizeof of_w) ==
               CUBLAS_STATUS_SUCCESS &&
           api_.description_set(description, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &of_x, sizeof of_x) ==
               CUBLAS_STATUS_SUCCESS;
  }
  bool describe_scales(cublasLtMatmulDesc_t description, const BlasProduct& product) const {
    if (product.scales == BlasScales::none) return true;
    const bool rows = product.scales == BlasScales::rows;
    const std::int32_t of_w =
        rows ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F : CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
    const std::int32_t of_x =
        rows ? CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F : CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    return api_.description_set(description, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &of_w, sizeof of_w) ==
               CUBLAS_STATUS_SUCCESS &&
           api_.description_set(description, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &of_x, sizeof of_x) ==
               CUBLAS_STATUS_SUCCESS &&
           point_to_scales(description, product);
  }

  void destroy(Prepared& p) const {
    if (p.description != nullptr) api_.description_destroy(p.description);
    for (cublasLtMatrixLayout_t layout : {p.w, p.x, p.out})
      if (layout != nullptr) api_.layout_destroy(layout);
  }

  bool layout(cublasLtMatrixLayout_t& out, cudaDataType_t type, std::int64_t rows, std::int64_t columns,
              std::int64_t stride, std::int64_t batch, std::int64_t step) const {
    if (api_.layout_create(&out, type, static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns), stride) !=
        CUBLAS_STATUS_SUCCESS)
      return false;
    if (batch == 1) return true;
    const auto count = static_cast<std::int32_t>(batch);
    return api_.layout_set(out, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count) == CUBLAS_STATUS_SUCCESS &&
           api_.layout_set(out, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof step) ==
               CUBLAS_STATUS_SUCCESS;
  }

  /// Row-major out = x · wᵀ is column-major outᵀ = w · xᵀ: cuBLASLt's A is the weight, its B is x.
  Prepared prepare(const BlasProduct& product) const {
    Prepared p;
    static constexpr cudaDataType_t types[] = {CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF, CUDA_R_8F_E4M3, CUDA_R_8I};
    const cudaDataType_t type = types[static_cast<int>(product.type)];
    const bool whole = product.type == BlasType::i8;
    const cublasComputeType_t compute = whole ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F;
    const cudaDataType_t sums = whole ? CUDA_R_32I : CUDA_R_32F;
    const cublasOperation_t a = product.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                            b = product.x_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    const std::int64_t w_rows = product.transposed ? product.k : product.n,
                       w_columns = product.transposed ? product.n : product.k,
                       x_rows = product.x_transposed ? product.tokens : product.k,
                       x_columns = product.x_transposed ? product.k : product.tokens;
    p.possible =
        api_.description_create(&p.description, compute, sums) == CUBLAS_STATUS_SUCCESS &&
        api_.description_set(p.description, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof a) == CUBLAS_STATUS_SUCCESS &&
        api_.description_set(p.description, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof b) == CUBLAS_STATUS_SUCCESS &&
        describe_scales(p.description, product) &&
        layout(p.w, type, w_rows, w_columns, product.w_stride, product.batch, product.w_step) &&
        layout(p.x, type, x_rows, x_columns, product.x_stride, product.batch, product.x_step) &&
        layout(p.out, product.rounded ? type : sums, product.n, product.tokens, product.out_stride, product.batch,
               product.out_step);
    p.possible = p.possible && choose(p);
    return p;
  }

  bool choose(Prepared& p) const {
    cublasLtMatmulPreference_t preference = nullptr;
    if (api_.preference_create(&preference) != CUBLAS_STATUS_SUCCESS) return false;
    const std::uint64_t room = kWorkspaceBytes;
    // No sums by atomic additions, whose order changes from run to run.
    const std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE | CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
    const std::uint32_t alignment = 16;
    api_.preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room, sizeof room);
    api_.preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions);
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      api_.preference_set(preference, attribute, &alignment, sizeof alignment);
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t status =
        api_.heuristic(handle_, p.description, p.w, p.x, p.out, p.out, preference, 1, &result, &found);
    api_.preference_destroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0 || result.state != CUBLAS_STATUS_SUCCESS) return false;
    p.algorithm = result.algo;
    return true;
  }

  Api api_;
  cublasLtHandle_t handle_;
  std::map<Key, Prepared> prepared_;
};

void* open_library() {
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so", "/usr/local/cuda/lib64/libcublasLt.so.13",
                           "/usr/local/cuda/lib64/libcublasLt.so"})
    if (void* library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL); library != nullptr) return library;
  return nullptr;
}

}  // namespace

Result<std::unique_ptr<Blas>> Blas::load() {
  void* library = open_library();
  if (library == nullptr) return fail_environment("cuda.no_cublas");
  Api api;
  cublasLtHandle_t handle = nullptr;
  if (!look_up_all(library, api)) {
    ::dlclose(library);
    return fail_environment("cuda.no_cublas");
  }
  if (const cublasStatus_t status = api.create(&handle); status != CUBLAS_STATUS_SUCCESS) {
    ::dlclose(library);
    return fail_environment("cuda.cublas_failed", {{"code", std::to_string(static_cast<int>(status))}});
  }
  return std::make_unique<LtBlas>(api, handle);
}

}  // namespace fathom::cuda
