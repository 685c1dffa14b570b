// Matrix products on cuBLASLt, which is opened when the first product is asked for. cuBLASLt is column-major: a
// row-major c [m, n] is its transpose [n, m] there, so b goes in as its A and a as its B. What cuBLASLt has no
// algorithm for (odd alignments, a bias in another type than c) is done by the plain kernels below.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <tuple>

#include "cublaslt.cuh"
#include "ops/columns.cuh"

namespace fa {

namespace {

// Everything that decides which algorithm runs.
using PlanKey = std::tuple<int, int, int, int64_t, int64_t, int64_t, int, int, int, int, int, bool, int, int, int>;

struct Plan {
  bool usable = false;  // false: cuBLASLt has no algorithm for it
  lt::MatmulDesc desc = nullptr;
  lt::Layout a = nullptr, b = nullptr, c = nullptr;
  lt::HeuristicResult choice = {};
};

constexpr size_t gemm_workspace_bytes = size_t{32} << 20;

}  // namespace

struct GemmState {
  lt::Library library;
  lt::Handle handle = nullptr;
  void *workspace = nullptr;
  std::map<PlanKey, Plan> plans;

  void release(Plan &plan) const {
    if (plan.desc != nullptr) library.desc_destroy(plan.desc);
    for (lt::Layout layout : {plan.a, plan.b, plan.c}) {
      if (layout != nullptr) library.layout_destroy(layout);
    }
    plan = Plan{};
  }

  ~GemmState() {
    for (auto &entry : plans) release(entry.second);
    if (handle != nullptr) library.destroy(handle);
    cudaFree(workspace);
    // The library stays loaded: its own worker state does not survive being unmapped.
  }
};

void GemmStateDeleter::operator()(GemmState *state) const { delete state; }

namespace {

// ---- plain kernels ------------------------------------------------------------------------------------------------

// Any operand as float.
__device__ __forceinline__ float element(const void *data, int64_t i, int dtype) {
  if (dtype == FA_BF16) return to_float(static_cast<const bf16 *>(data)[i]);
  if (dtype == FA_F16) return to_float(static_cast<const f16 *>(data)[i]);
  return static_cast<const float *>(data)[i];
}

__device__ __forceinline__ void set_element(void *data, int64_t i, int dtype, float value) {
  if (dtype == FA_BF16) {
    static_cast<bf16 *>(data)[i] = from_float<bf16>(value);
  } else if (dtype == FA_F16) {
    static_cast<f16 *>(data)[i] = from_float<f16>(value);
  } else {
    static_cast<float *>(data)[i] = value;
  }
}

__device__ __forceinline__ float finish_element(const fa_gemm_args &g, int64_t row, int64_t column, float product) {
  float value = g.alpha * product;
  if (g.beta != 0.0f) value += g.beta * element(g.c, row * g.ldc + column, g.dtype_c);
  const bool bias = g.epilogue == FA_EPILOGUE_BIAS || g.epilogue == FA_EPILOGUE_BIAS_RELU;
  if (bias) value += element(g.bias, column, g.dtype);
  return g.epilogue == FA_EPILOGUE_BIAS_RELU ? fmaxf(value, 0.0f) : value;
}

constexpr int tile = 32;

// c in tiles of 32 x 32, four rows a thread. Correct for any stride, alignment and k, k = 0 included; not fast.
__global__ __launch_bounds__(256) void plain_gemm_kernel(fa_gemm_args g) {
  __shared__ float a_tile[tile][tile + 1], b_tile[tile][tile + 1];
  const int x = threadIdx.x, y = threadIdx.y;  // 32 x 8
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) * tile;
  for (int64_t row0 = static_cast<int64_t>(blockIdx.y) * tile; row0 < g.m;
       row0 += static_cast<int64_t>(gridDim.y) * tile) {
    float sum[4] = {};
    for (int64_t k0 = 0; k0 < g.k; k0 += tile) {
      for (int i = y; i < tile; i += 8) {
        // x runs along memory: along k or along the other dimension, by the operand's layout.
        const int64_t a_row = g.trans_a ? row0 + x : row0 + i, a_k = g.trans_a ? k0 + i : k0 + x;
        const bool a_in = a_row < g.m && a_k < g.k;
        const int64_t a_at = g.trans_a ? a_k * g.lda + a_row : a_row * g.lda + a_k;
        a_tile[g.trans_a ? x : i][g.trans_a ? i : x] = a_in ? element(g.a, a_at, g.dtype) : 0.0f;
        const int64_t b_column = g.trans_b ? column0 + i : column0 + x, b_k = g.trans_b ? k0 + x : k0 + i;
        const bool b_in = b_column < g.n && b_k < g.k;
        const int64_t b_at = g.trans_b ? b_column * g.ldb + b_k : b_k * g.ldb + b_column;
        b_tile[g.trans_b ? x : i][g.trans_b ? i : x] = b_in ? element(g.b, b_at, g.dtype) : 0.0f;
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < tile; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] += a_tile[y + 8 * i][k] * b_tile[k][x];
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int64_t row = row0 + y + 8 * i, column = column0 + x;
      if (row < g.m && column < g.n)
        set_element(g.c, row * g.ldc + column, g.dtype_c, finish_element(g, row, column, sum[i]));
    }
  }
}

// c = max(0, c + bias) or c + bias, for a c of another type than the bias.
__global__ __launch_bounds__(256) void bias_kernel(fa_gemm_args g) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (column >= g.n) return;
  const float shift = element(g.bias, column, g.dtype);
  for (int64_t row = blockIdx.y; row < g.m; row += gridDim.y) {
    const int64_t at = row * g.ldc + column;
    const float value = element(g.c, at, g.dtype_c) + shift;
    set_element(g.c, at, g.dtype_c, g.epilogue == FA_EPILOGUE_BIAS_RELU ? fmaxf(value, 0.0f) : value);
  }
}

// out[row] (+)= the sum of a row of x [rows, columns]; one warp a row.
__global__ __launch_bounds__(256) void row_sum_kernel(float *out, const void *x, int dtype, int64_t rows,
                                                      int64_t columns, int64_t stride, bool accumulate) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + (threadIdx.x >> 5);
  if (row >= rows) return;
  float sum = 0.0f;
  for (int64_t c = threadIdx.x & 31; c < columns; c += 32) sum += element(x, row * stride + c, dtype);
  sum = warp_sum(sum);
  if ((threadIdx.x & 31) == 0) out[row] = accumulate ? out[row] + sum : sum;
}

fa_status plain_gemm(fa_ctx *ctx, const fa_gemm_args &args) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.n, tile)),
                  static_cast<unsigned>(ceil_div(args.m, tile) < 65535 ? ceil_div(args.m, tile) : 65535));
  plain_gemm_kernel<<<grid, dim3(tile, 8), 0, ctx->stream>>>(args);
  return FA_LAUNCHED(ctx, "plain_gemm_kernel");
}

fa_status add_bias(fa_ctx *ctx, const fa_gemm_args &args) {
  const dim3 grid(static_cast<unsigned>(ceil_div(args.n, 256)), static_cast<unsigned>(args.m < 65535 ? args.m : 65535));
  bias_kernel<<<grid, 256, 0, ctx->stream>>>(args);
  return FA_LAUNCHED(ctx, "bias_kernel");
}

// bias_grad (+)= the sums over k of op(b), by a kernel of our own.
fa_status bias_gradient(fa_ctx *ctx, const fa_gemm_args &args) {
  const bool accumulate = args.beta != 0.0f;
  if (args.trans_b) {
    row_sum_kernel<<<static_cast<unsigned>(ceil_div(args.n, 8)), 256, 0, ctx->stream>>>(
        args.bias_grad, args.b, args.dtype, args.n, args.k, args.ldb, accumulate);
    return FA_LAUNCHED(ctx, "row_sum_kernel");
  }
  if (column_sum_bytes(ctx, args.k, args.n) <= static_cast<int64_t>(gemm_workspace_bytes)) {
    return column_sum(ctx, args.bias_grad, args.b, args.k, args.n, args.ldb, args.dtype, accumulate,
                      ctx->gemm->workspace);
  }
  return fail(ctx, FA_UNSUPPORTED, "n is too large for the bias gradient: current value is %d", args.n);
}

// ---- cuBLASLt -----------------------------------------------------------------------------------------------------

bool open_first(lt::Library &library, std::string &tried) {
  std::string folders[4];
  int count = 1;  // the loader's own path first
  if (const char *home = getenv("CUDA_HOME")) {
    if (home[0] != '\0') folders[count++] = std::string(home) + "/lib64/";
  }
  folders[count++] = "/usr/local/cuda/lib64/";
  for (int i = 0; i < count; i++) {
    for (const char *name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
      library.handle = dlopen((folders[i] + name).c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library.handle != nullptr) return true;
    }
    tried += i == 0 ? "the loader's path" : ", " + folders[i];
  }
  return false;
}

template <class Function>
bool bind(const lt::Library &library, Function &function, const char *name) {
  function = reinterpret_cast<Function>(dlsym(library.handle, name));
  return function != nullptr;
}

fa_status open_library(fa_ctx *ctx, lt::Library &library) {
  std::string tried;
  if (!open_first(library, tried)) {
    return fail(
        ctx, FA_LIBRARY,
        "cuBLASLt (libcublasLt.so.13 or .12) was not found in %s: install the CUDA toolkit's cuBLAS (Debian, Ubuntu: "
        "libcublas-13-0 or libcublas-12-x), or set CUDA_HOME or LD_LIBRARY_PATH to where it is",
        tried.c_str());
  }
  const bool complete = bind(library, library.create, "cublasLtCreate") &&
                        bind(library, library.destroy, "cublasLtDestroy") &&
                        bind(library, library.desc_create, "cublasLtMatmulDescCreate") &&
                        bind(library, library.desc_destroy, "cublasLtMatmulDescDestroy") &&
                        bind(library, library.desc_set, "cublasLtMatmulDescSetAttribute") &&
                        bind(library, library.layout_create, "cublasLtMatrixLayoutCreate") &&
                        bind(library, library.layout_destroy, "cublasLtMatrixLayoutDestroy") &&
                        bind(library, library.preference_create, "cublasLtMatmulPreferenceCreate") &&
                        bind(library, library.preference_destroy, "cublasLtMatmulPreferenceDestroy") &&
                        bind(library, library.preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
                        bind(library, library.heuristic, "cublasLtMatmulAlgoGetHeuristic") &&
                        bind(library, library.matmul, "cublasLtMatmul");
  return complete ? FA_OK : fail(ctx, FA_LIBRARY, "the cuBLASLt found lacks an entry point: %s", dlerror());
}

fa_status open_gemm(fa_ctx *ctx) {
  if (ctx->gemm != nullptr) return FA_OK;
  std::unique_ptr<GemmState, GemmStateDeleter> state(new GemmState);
  FA_TRY(open_library(ctx, state->library));
  const lt::Status status = state->library.create(&state->handle);
  if (status != 0) return fail(ctx, FA_LIBRARY, "cublasLtCreate answered status %d", status);
  FA_TRY(FA_CUDA(ctx, cudaMalloc(&state->workspace, gemm_workspace_bytes)));
  ctx->gemm = std::move(state);
  return FA_OK;
}

cudaDataType data_type(int32_t dtype) {
  return dtype == FA_BF16 ? CUDA_R_16BF : dtype == FA_F16 ? CUDA_R_16F : CUDA_R_32F;
}

// The largest power of two up to 256 that divides an address and a row's bytes: what an algorithm may assume.
int alignment_of(const void *pointer, int64_t ld, int32_t dtype) {
  const uint64_t bits = reinterpret_cast<uintptr_t>(pointer) | static_cast<uint64_t>(ld * dtype_bytes(dtype)) | 256u;
  return static_cast<int>(bits & (~bits + 1));
}

// Fills `plan`; a status of cuBLASLt other than 0 means that it cannot do this product.
lt::Status choose(const GemmState &state, Plan &plan, const fa_gemm_args &g, int epilogue, const int (&alignment)[3]) {
  const lt::Library &library = state.library;
  const cudaDataType type = data_type(g.dtype), type_c = data_type(g.dtype_c);
  lt::Status status = library.desc_create(&plan.desc, lt::compute_32f, CUDA_R_32F);
  const auto set = [&](int attribute, const auto &value) {
    if (status == 0) status = library.desc_set(plan.desc, attribute, &value, sizeof(value));
  };
  const int32_t trans_a = g.trans_b ? lt::operation_t : lt::operation_n;
  const int32_t trans_b = g.trans_a ? lt::operation_t : lt::operation_n;
  set(lt::desc_trans_a, trans_a);
  set(lt::desc_trans_b, trans_b);
  set(lt::desc_epilogue, static_cast<int32_t>(epilogue));
  if (epilogue != lt::epilogue_default) {
    set(lt::desc_bias_data_type, static_cast<int32_t>(type_c));
    set(lt::desc_bias_pointer, g.bias);
  }
  const auto layout = [&](lt::Layout &out, cudaDataType t, int64_t rows, int64_t columns, int64_t ld) {
    if (status == 0) status = library.layout_create(&out, t, rows, columns, ld);
  };
  layout(plan.a, type, g.trans_b ? g.k : g.n, g.trans_b ? g.n : g.k, g.ldb);
  layout(plan.b, type, g.trans_a ? g.m : g.k, g.trans_a ? g.k : g.m, g.lda);
  layout(plan.c, type_c, g.n, g.m, g.ldc);
  lt::Preference preference = nullptr;
  if (status == 0) status = library.preference_create(&preference);
  const auto prefer = [&](int attribute, const auto &value) {
    if (status == 0) status = library.preference_set(preference, attribute, &value, sizeof(value));
  };
  prefer(lt::preference_max_workspace_bytes, static_cast<uint64_t>(gemm_workspace_bytes));
  prefer(lt::preference_min_alignment_a_bytes, static_cast<uint32_t>(alignment[1]));
  prefer(lt::preference_min_alignment_b_bytes, static_cast<uint32_t>(alignment[0]));
  prefer(lt::preference_min_alignment_c_bytes, static_cast<uint32_t>(alignment[2]));
  prefer(lt::preference_min_alignment_d_bytes, static_cast<uint32_t>(alignment[2]));
  int found = 0;
  if (status == 0) {
    status =
        library.heuristic(state.handle, plan.desc, plan.a, plan.b, plan.c, plan.c, preference, 1, &plan.choice, &found);
  }
  if (preference != nullptr) library.preference_destroy(preference);
  plan.usable = status == 0 && found > 0 && plan.choice.state == 0;
  return status;
}

// The cached plan of this product. A plan that is not usable is remembered as well.
Plan &plan_for(GemmState &state, const fa_gemm_args &g, int epilogue) {
  const int alignment[3] = {alignment_of(g.a, g.lda, g.dtype), alignment_of(g.b, g.ldb, g.dtype),
                            alignment_of(g.c, g.ldc, g.dtype_c)};
  const PlanKey key(g.m, g.n, g.k, g.lda, g.ldb, g.ldc, g.trans_a != 0, g.trans_b != 0, g.dtype, g.dtype_c, epilogue,
                    g.beta != 0.0f, alignment[0], alignment[1], alignment[2]);
  const auto found = state.plans.find(key);
  if (found != state.plans.end()) return found->second;
  Plan plan;
  choose(state, plan, g, epilogue, alignment);
  if (!plan.usable) state.release(plan);
  return state.plans.emplace(key, plan).first->second;
}

fa_status run_plan(fa_ctx *ctx, const Plan &plan, const fa_gemm_args &g, int epilogue) {
  const GemmState &state = *ctx->gemm;
  lt::Status status = 0;
  if (epilogue != lt::epilogue_default) {
    status = state.library.desc_set(plan.desc, lt::desc_bias_pointer, &g.bias, sizeof(g.bias));
  }
  if (status == 0) {
    status = state.library.matmul(state.handle, plan.desc, &g.alpha, g.b, plan.a, g.a, plan.b, &g.beta, g.c, plan.c,
                                  g.c, plan.c, &plan.choice.algo, state.workspace, gemm_workspace_bytes, ctx->stream);
  }
  FA_TRY(FA_LAUNCHED(ctx, "cublasLtMatmul"));
  if (status != 0) {
    return fail(ctx, FA_DEVICE, "cublasLtMatmul answered status %d for m %d, n %d, k %d", status, g.m, g.n, g.k);
  }
  return FA_OK;
}

// The epilogue that cuBLASLt is to do; what it cannot do follows in kernels of our own. Its bias gradients (BGRADA) are
// left alone: on an H200 they cost two to three times what the column sum beside the product does.
int fused_epilogue(const fa_gemm_args &g) {
  if (g.dtype != g.dtype_c) return lt::epilogue_default;
  if (g.epilogue == FA_EPILOGUE_BIAS) return lt::epilogue_bias;
  return g.epilogue == FA_EPILOGUE_BIAS_RELU ? lt::epilogue_relu_bias : lt::epilogue_default;
}

// Does what `done` left of the epilogue.
fa_status finish_epilogue(fa_ctx *ctx, const fa_gemm_args &g, int done) {
  if (g.epilogue == FA_EPILOGUE_BIAS_GRAD) return bias_gradient(ctx, g);
  const bool bias_left = g.epilogue != FA_EPILOGUE_NONE && done == lt::epilogue_default;
  return bias_left ? add_bias(ctx, g) : FA_OK;
}

fa_status gemm(fa_ctx *ctx, const fa_gemm_args &g) {
  if (g.n == 0) return FA_OK;
  FA_TRY(open_gemm(ctx));
  if (g.m == 0 || g.k == 0) {
    if (g.m > 0) FA_TRY(plain_gemm(ctx, g));
    return g.epilogue == FA_EPILOGUE_BIAS_GRAD ? bias_gradient(ctx, g) : FA_OK;
  }
  const int wanted = fused_epilogue(g);
  for (const int epilogue : {wanted, static_cast<int>(lt::epilogue_default)}) {
    const Plan &plan = plan_for(*ctx->gemm, g, epilogue);
    if (!plan.usable) continue;
    FA_TRY(run_plan(ctx, plan, g, epilogue));
    return finish_epilogue(ctx, g, epilogue);
  }
  FA_TRY(plain_gemm(ctx, g));
  return g.epilogue == FA_EPILOGUE_BIAS_GRAD ? bias_gradient(ctx, g) : FA_OK;
}

fa_status check_gemm(fa_ctx *ctx, const fa_gemm_args &g) {
  FA_TRY(check_range(ctx, g.m, 0, INT32_MAX, "m"));
  FA_TRY(check_range(ctx, g.n, 0, INT32_MAX, "n"));
  FA_TRY(check_range(ctx, g.k, 0, INT32_MAX, "k"));
  FA_TRY(check_range(ctx, g.lda, g.trans_a ? g.m : g.k, INT64_MAX / 8, "lda"));
  FA_TRY(check_range(ctx, g.ldb, g.trans_b ? g.k : g.n, INT64_MAX / 8, "ldb"));
  FA_TRY(check_range(ctx, g.ldc, g.n, INT64_MAX / 8, "ldc"));
  FA_TRY(check_dtype(ctx, g.dtype, true));
  if (g.dtype_c != g.dtype && g.dtype_c != FA_F32) {
    return fail(ctx, FA_INVALID, "dtype_c must be dtype or FA_F32: current value is %d", g.dtype_c);
  }
  FA_TRY(check_range(ctx, g.epilogue, FA_EPILOGUE_NONE, FA_EPILOGUE_BIAS_GRAD, "epilogue"));
  const uintptr_t unit = static_cast<uintptr_t>(dtype_bytes(g.dtype));
  const bool product = g.m > 0 && g.n > 0 && g.k > 0;
  if (product) FA_TRY(check_pointer(ctx, g.a, "a", unit));
  if (product || (g.epilogue == FA_EPILOGUE_BIAS_GRAD && g.n > 0 && g.k > 0))
    FA_TRY(check_pointer(ctx, g.b, "b", unit));
  if (g.m > 0 && g.n > 0) FA_TRY(check_pointer(ctx, g.c, "c", static_cast<uintptr_t>(dtype_bytes(g.dtype_c))));
  if (g.n == 0) return FA_OK;
  if (g.epilogue == FA_EPILOGUE_BIAS_GRAD) return check_pointer(ctx, g.bias_grad, "bias_grad", 4);
  if (g.epilogue != FA_EPILOGUE_NONE) return check_pointer(ctx, g.bias, "bias", unit);
  return FA_OK;
}

}  // namespace
}  // namespace fa

extern "C" FA_EXPORT fa_status fa_gemm(fa_ctx *ctx, const fa_gemm_args *args) {
  return fa::entry(ctx, "fa_gemm", [&]() -> fa_status {
    FA_TRY(fa::check_pointer(ctx, args, "args", alignof(fa_gemm_args)));
    const fa_gemm_args copy = *args;
    FA_TRY(fa::check_gemm(ctx, copy));
    return fa::gemm(ctx, copy);
  });
}
