#include "cuda/matmul_plan.h"

#include "core/failure.h"

namespace etcuda {
namespace {

// Partial sums of a split product are added in the accumulation type and in a fixed order.
constexpr uint32_t kReductionInComputeType = 2;

int cuda_type(DType dtype) {
  switch (dtype) {
    case kFloat32:
      return kCudaR32F;
    case kFloat64:
      return kCudaR64F;
    case kFloat16:
      return kCudaR16F;
    case kBFloat16:
      return kCudaR16BF;
    default:
      break;
  }
  fail(ErrorCode::NotSupported,
       "a matrix product of %s is not supported on the GPU. Export the model in float32, float64, float16 or "
       "bfloat16.",
       dtype_name(dtype));
}

template <typename T>
void set_desc(CublasMatmulDesc desc, int attribute, T value) {
  CublasLt& lt = CublasLt::require();
  lt.check(lt.cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof(T)),
           "cublasLtMatmulDescSetAttribute");
}

template <typename T>
void set_preference(CublasPreference preference, int attribute, T value) {
  CublasLt& lt = CublasLt::require();
  lt.check(lt.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(T)),
           "cublasLtMatmulPreferenceSetAttribute");
}

}  // namespace

MatmulPlan::MatmulPlan(const PlanKey& key, size_t most_workspace_bytes) : key_(key) {
  CublasLt& lt = CublasLt::require();
  const bool doubles = key.dtype == kFloat64;
  const int compute =
      doubles ? kCompute64F : (key.tf32 && key.dtype == kFloat32 ? kCompute32FFastTf32 : kCompute32F);
  try {
    lt.check(lt.cublasLtMatmulDescCreate(&desc_, compute, doubles ? kCudaR64F : kCudaR32F),
             "cublasLtMatmulDescCreate");
    set_desc<int32_t>(desc_, kDescTransA, key.a.transposed ? kOpT : kOpN);
    set_desc<int32_t>(desc_, kDescTransB, key.b.transposed ? kOpT : kOpN);
    if (key.bias) {
      set_desc<uint32_t>(desc_, kDescEpilogue, kEpilogueBias);
      set_desc<int32_t>(desc_, kDescBiasDataType, cuda_type(key.dtype));
    }
    a_ = key.a.transposed ? layout(key.depth, key.rows, key.a) : layout(key.rows, key.depth, key.a);
    b_ = key.b.transposed ? layout(key.cols, key.depth, key.b) : layout(key.depth, key.cols, key.b);
    d_ = layout(key.rows, key.cols, key.d);
    find_algorithm(most_workspace_bytes);
  } catch (...) {
    release();
    throw;
  }
}

MatmulPlan::~MatmulPlan() {
  release();
}

void MatmulPlan::release() noexcept {
  // Opened successfully before, or there would be nothing to release.
  const CublasLt& lt = CublasLt::require();
  if (a_ != nullptr) lt.cublasLtMatrixLayoutDestroy(a_);
  if (b_ != nullptr) lt.cublasLtMatrixLayoutDestroy(b_);
  if (d_ != nullptr) lt.cublasLtMatrixLayoutDestroy(d_);
  if (desc_ != nullptr) lt.cublasLtMatmulDescDestroy(desc_);
}

CublasLayout MatmulPlan::layout(int64_t rows, int64_t cols, const PlanOperand& operand) const {
  CublasLt& lt = CublasLt::require();
  CublasLayout made = nullptr;
  lt.check(lt.cublasLtMatrixLayoutCreate(&made, cuda_type(key_.dtype), static_cast<uint64_t>(rows),
                                         static_cast<uint64_t>(cols), operand.ld),
           "cublasLtMatrixLayoutCreate");
  if (key_.batch > 1) {
    const auto count = static_cast<int32_t>(key_.batch);
    const int64_t stride = operand.batch_stride;
    CublasStatus status = lt.cublasLtMatrixLayoutSetAttribute(made, kLayoutBatchCount, &count, sizeof(count));
    if (status == kCublasSuccess) {
      status = lt.cublasLtMatrixLayoutSetAttribute(made, kLayoutBatchOffset, &stride, sizeof(stride));
    }
    if (status != kCublasSuccess) lt.cublasLtMatrixLayoutDestroy(made);
    lt.check(status, "cublasLtMatrixLayoutSetAttribute");
  }
  return made;
}

void MatmulPlan::find_algorithm(size_t most_workspace_bytes) {
  CublasLt& lt = CublasLt::require();
  CublasPreference preference = nullptr;
  lt.check(lt.cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  CublasHeuristic found{};
  int count = 0;
  CublasStatus status = kCublasSuccess;
  try {
    set_preference<uint64_t>(preference, kPreferenceWorkspace, most_workspace_bytes);
    set_preference<uint32_t>(preference, kPreferenceReduction, kReductionInComputeType);
    set_preference<uint32_t>(preference, kPreferenceAlignmentA, key_.a.alignment);
    set_preference<uint32_t>(preference, kPreferenceAlignmentB, key_.b.alignment);
    set_preference<uint32_t>(preference, kPreferenceAlignmentC, key_.d.alignment);
    set_preference<uint32_t>(preference, kPreferenceAlignmentD, key_.d.alignment);
    status = lt.cublasLtMatmulAlgoGetHeuristic(lt.handle(key_.device), desc_, a_, b_, d_, d_, preference, 1,
                                               &found, &count);
  } catch (...) {
    lt.cublasLtMatmulPreferenceDestroy(preference);
    throw;
  }
  lt.cublasLtMatmulPreferenceDestroy(preference);
  if (status == kCublasNotSupported) return;
  lt.check(status, "cublasLtMatmulAlgoGetHeuristic");
  usable_ = count > 0 && found.state == kCublasSuccess;
  algo_ = found.algo;
  workspace_bytes_ = found.workspace_bytes;
}

void MatmulPlan::run(const void* a, const void* b, void* d, const void* bias, double alpha, double beta,
                     void* workspace, CUstream stream) const {
  CublasLt& lt = CublasLt::require();
  if (key_.bias) set_desc<const void*>(desc_, kDescBiasPointer, bias);
  const auto alpha32 = static_cast<float>(alpha);
  const auto beta32 = static_cast<float>(beta);
  const bool doubles = key_.dtype == kFloat64;
  const void* alpha_at = doubles ? static_cast<const void*>(&alpha) : &alpha32;
  const void* beta_at = doubles ? static_cast<const void*>(&beta) : &beta32;
  lt.check(lt.cublasLtMatmul(lt.handle(key_.device), desc_, alpha_at, a, a_, b, b_, beta_at, d, d_, d, d_,
                             &algo_, workspace, workspace_bytes_, stream),
           "cublasLtMatmul");
}

}  // namespace etcuda
