#include "cuda/matmul.h"

#include <algorithm>
#include <cinttypes>
#include <map>
#include <memory>
#include <optional>

#include "core/failure.h"
#include "cuda/copy.h"
#include "cuda/matmul_plan.h"
#include "cuda/stream.h"

namespace etcuda {
namespace {

constexpr size_t kMostWorkspace = size_t{32} << 20;
constexpr size_t kMaxPlans = 4096;

// A plan's descriptors change with every call (the bias' address), so each thread has plans of its own.
MatmulPlan& plan_for(const PlanKey& key) {
  thread_local std::map<PlanKey, std::unique_ptr<MatmulPlan>> plans;
  if (plans.size() >= kMaxPlans) plans.clear();
  auto& plan = plans[key];
  if (!plan) plan = std::make_unique<MatmulPlan>(key, kMostWorkspace);
  return *plan;
}

uint32_t alignment_of(const BatchedMatrix& matrix, int64_t batch) {
  const auto element = static_cast<uintptr_t>(dtype_size(matrix.dtype));
  uintptr_t bits = reinterpret_cast<uintptr_t>(matrix.data) | 256;
  if (batch > 1) bits |= static_cast<uintptr_t>(matrix.batch_stride) * element;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

// Describes a [rows, cols] matrix whose elements step by these strides; nothing if neither order fits.
std::optional<PlanOperand> operand(int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
  PlanOperand result;
  if ((row_stride == 1 || rows == 1) && (cols == 1 || col_stride >= std::max<int64_t>(rows, 1))) {
    result.ld = cols == 1 ? std::max<int64_t>(rows, 1) : col_stride;
    return result;
  }
  if ((col_stride == 1 || cols == 1) && (rows == 1 || row_stride >= std::max<int64_t>(cols, 1))) {
    result.transposed = true;
    result.ld = rows == 1 ? std::max<int64_t>(cols, 1) : row_stride;
    return result;
  }
  return std::nullopt;
}

BatchedMatrix swapped(BatchedMatrix matrix) {
  std::swap(matrix.row_stride, matrix.col_stride);
  return matrix;
}

std::unique_ptr<Tensor> view(const BatchedMatrix& matrix, int64_t batch, int64_t rows, int64_t cols) {
  const int64_t sizes[3] = {batch, rows, cols};
  const int64_t strides[3] = {matrix.batch_stride, matrix.row_stride, matrix.col_stride};
  return make_view(borrow_storage(matrix.data, SIZE_MAX, kCuda, current_cuda().device), 3, sizes, strides, 0,
                   matrix.dtype);
}

// A row-major copy, and the matrix that describes it.
std::unique_ptr<Tensor> dense(int64_t batch, int64_t rows, int64_t cols, DType dtype, BatchedMatrix* matrix) {
  const int64_t sizes[3] = {batch, rows, cols};
  const int64_t strides[3] = {rows * cols, cols, 1};
  auto tensor = make_empty(3, sizes, strides, dtype, kCuda, current_cuda().device);
  *matrix = BatchedMatrix{tensor->data_as<char>(), dtype, strides[0], strides[1], strides[2]};
  return tensor;
}

std::unique_ptr<Tensor> densified(const BatchedMatrix& source, int64_t batch, int64_t rows, int64_t cols,
                                  BatchedMatrix* matrix) {
  auto copy = dense(batch, rows, cols, source.dtype, matrix);
  copy_tensor(*copy, *view(source, batch, rows, cols));
  return copy;
}

void check_dtypes(const char* name, const MatmulArguments& p) {
  const bool same =
      p.a.dtype == p.b.dtype && p.a.dtype == p.out.dtype && (p.beta == 0 || p.addend.dtype == p.out.dtype);
  if (!same) {
    fail(ErrorCode::NotSupported,
         "%s on the GPU: dtypes %s, %s and %s differ. Convert the operands to one dtype.", name,
         dtype_name(p.a.dtype), dtype_name(p.b.dtype), dtype_name(p.out.dtype));
  }
}

// Nothing to multiply: the result is the scaled addend.
void without_depth(const char* name, const MatmulArguments& p) {
  const auto out = view(p.out, p.batch, p.m, p.n);
  if (p.beta == 0) {
    BatchedMatrix ignored;
    const auto zeros = dense(p.batch, p.m, p.n, p.out.dtype, &ignored);
    zero_bytes(zeros->data(), kCuda, zeros->storage->nbytes);
    copy_tensor(*out, *zeros);
  } else if (p.beta == 1) {
    copy_tensor(*out, *view(p.addend, p.batch, p.m, p.n));
  } else {
    fail(ErrorCode::NotSupported, "%s on the GPU: an inner size of 0 with beta %g is not supported.", name,
         p.beta);
  }
}

bool is_same(const BatchedMatrix& a, const BatchedMatrix& b) {
  return a.data == b.data && a.batch_stride == b.batch_stride && a.row_stride == b.row_stride &&
         a.col_stride == b.col_stride;
}

// The output is row major: as column major matrices, out^T [n, m] = b^T [n, k] @ a^T [k, m].
void run(const char* name, const MatmulArguments& p, const PlanOperand& d) {
  BatchedMatrix a = p.a;
  BatchedMatrix b = p.b;
  std::unique_ptr<Tensor> kept_a;
  std::unique_ptr<Tensor> kept_b;
  auto left = operand(p.n, p.k, b.col_stride, b.row_stride);
  if (!left) {
    kept_b = densified(p.b, p.batch, p.k, p.n, &b);
    left = operand(p.n, p.k, b.col_stride, b.row_stride);
  }
  auto right = operand(p.k, p.m, a.col_stride, a.row_stride);
  if (!right) {
    kept_a = densified(p.a, p.batch, p.m, p.k, &a);
    right = operand(p.k, p.m, a.col_stride, a.row_stride);
  }
  PlanKey key;
  key.device = current_cuda().device;
  key.dtype = p.out.dtype;
  key.tf32 = current_cuda().allow_tf32;
  key.rows = p.n;
  key.cols = p.m;
  key.depth = p.k;
  key.batch = p.batch;
  const auto complete = [&](PlanOperand described, const BatchedMatrix& matrix) {
    described.batch_stride = p.batch > 1 ? matrix.batch_stride : 0;
    described.alignment = alignment_of(matrix, p.batch);
    return described;
  };
  key.a = complete(*left, b);
  key.b = complete(*right, a);
  key.d = complete(d, p.out);
  // One value per column of `out`, the same for every row and batch: cuBLASLt adds it while it stores.
  key.bias = p.beta == 1 && p.out.dtype != kFloat64 && (p.addend.row_stride == 0 || p.m == 1) &&
             (p.addend.col_stride == 1 || p.n == 1) && (p.addend.batch_stride == 0 || p.batch == 1) &&
             reinterpret_cast<uintptr_t>(p.addend.data) % 16 == 0;
  Stream& stream = require_current_stream();
  const auto run = [&](const MatmulPlan& plan, const void* bias, double beta) {
    void* workspace = stream.workspace(plan.workspace_bytes());
    plan.run(b.data, a.data, p.out.data, bias, p.alpha, beta, workspace, stream.handle());
  };
  if (key.bias) {
    const MatmulPlan& plan = plan_for(key);
    if (plan.usable()) return run(plan, p.addend.data, 0);
    key.bias = false;
  }
  key.adds = p.beta != 0;
  if (key.adds && !is_same(p.addend, p.out)) {
    copy_tensor(*view(p.out, p.batch, p.m, p.n), *view(p.addend, p.batch, p.m, p.n));
  }
  const MatmulPlan& plan = plan_for(key);
  if (!plan.usable()) {
    fail(ErrorCode::NotSupported,
         "%s on the GPU: cuBLASLt has no algorithm for %" PRId64 " x [%" PRId64 ", %" PRId64 "] @ [%" PRId64
         ", %" PRId64 "] of %s. Install a newer cuBLAS, or pad the sizes to multiples of 8.",
         name, p.batch, p.m, p.k, p.k, p.n, dtype_name(p.out.dtype));
  }
  run(plan, nullptr, p.beta);
}

}  // namespace

void cuda_matmul(const char* name, const MatmulArguments& arguments) {
  MatmulArguments p = arguments;
  if (p.m == 0 || p.n == 0 || p.batch == 0) return;
  check_dtypes(name, p);
  if (p.k == 0) return without_depth(name, p);
  auto d = operand(p.n, p.m, p.out.col_stride, p.out.row_stride);
  if (d && d->transposed) {
    // A column major output: its transpose is row major.
    std::swap(p.m, p.n);
    std::swap(p.a, p.b);
    p.a = swapped(p.a);
    p.b = swapped(p.b);
    p.out = swapped(p.out);
    p.addend = swapped(p.addend);
    d = operand(p.n, p.m, p.out.col_stride, p.out.row_stride);
  }
  const bool batches_overlap = p.batch > 1 && p.out.batch_stride == 0;
  if (d && !d->transposed && !batches_overlap) return run(name, p, *d);
  BatchedMatrix target;
  const auto result = dense(p.batch, p.m, p.n, p.out.dtype, &target);
  const auto out = view(p.out, p.batch, p.m, p.n);
  p.out = target;
  run(name, p, *operand(p.n, p.m, target.col_stride, target.row_stride));
  copy_tensor(*out, *result);
}

}  // namespace etcuda
